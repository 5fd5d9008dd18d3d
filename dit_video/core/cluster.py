"""Where several processes make one run: found by what the scheduler tells, and met before JAX waits for anybody.

JAX's own rendezvous ends a process with a stack trace of C++ when another does not come, and does not say which. So
every process first answers a roll call of ours, beside the address where JAX will meet.
"""

import json
import os
import re
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass

from dit_video.core.errors import BadInput, Preempted
from dit_video.core.log import log

TPU_PORT = 8482
WAIT = 300.0  # seconds for all to come


@dataclass(frozen=True)
class Cluster:
    """Process `index` of `count`. `address` is host:port of process 0. `hosts` in the order of the processes, where
    they are told. `local`: which of several processes on its host it is: it takes the device of that number."""

    address: str
    count: int
    index: int
    hosts: tuple[str, ...] = ()
    local: int | None = None

    def name(self, index: int) -> str:
        """A process for people: `2 (node-c)`."""
        return f"{index} ({self.hosts[index]})" if index < len(self.hosts) else str(index)


def find_cluster(env: Mapping[str, str]) -> Cluster | None:
    """What the environment tells; None for a process alone. Raises `BadInput` when it tells only a part.

    JAX_COORDINATOR_ADDRESS and JAX_NUM_PROCESSES, with JAX_PROCESS_ID or the number that srun or mpirun gave, say it
    outright; else Slurm's step (`srun`), or the workers of a TPU slice or of several, as GKE names them.
    """
    number = next((env[n] for n in ("JAX_PROCESS_ID", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK") if env.get(n)), None)
    local = next((int(env[i]) for i, size in (("SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"),
                  ("OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"))
                  if env.get(i) and leading(env.get(size, "1")) > 1), None)  # fmt: skip
    workers = tuple(env["TPU_WORKER_HOSTNAMES"].split(",")) if env.get("TPU_WORKER_HOSTNAMES") else ()
    slices = int(env.get("MEGASCALE_NUM_SLICES") or 1)
    if env.get("JAX_NUM_PROCESSES"):
        if not env.get("JAX_COORDINATOR_ADDRESS") or number is None:
            raise BadInput("JAX_NUM_PROCESSES is set: JAX_COORDINATOR_ADDRESS and JAX_PROCESS_ID must be, too.")
        found = Cluster(env["JAX_COORDINATOR_ADDRESS"], int(env["JAX_NUM_PROCESSES"]), int(number), local=local)
    elif len(workers) * slices > 1:
        index = int(env.get("MEGASCALE_SLICE_ID") or 0) * len(workers) + int(env.get("TPU_WORKER_ID") or 0)
        first = (env.get("MEGASCALE_COORDINATOR_ADDRESS") or workers[0]).partition(":")[0]
        hosts = workers if slices == 1 else ()
        found = Cluster(f"{first}:{TPU_PORT}", len(workers) * slices, index, hosts)
    elif leading(env.get("SLURM_STEP_NUM_TASKS", "1")) > 1 and env.get("SLURM_STEP_NODELIST"):
        port = 61440 + int(env.get("SLURM_JOB_ID") or 0) % 4095
        first = first_host(env["SLURM_STEP_NODELIST"])
        found = Cluster(f"{first}:{port}", int(env["SLURM_STEP_NUM_TASKS"]), int(number or 0), local=local)
    elif leading(env.get("OMPI_COMM_WORLD_SIZE", "1")) > 1:
        raise BadInput("mpirun started several processes: set JAX_COORDINATOR_ADDRESS=HOST:PORT and JAX_NUM_PROCESSES.")
    else:
        return None
    if not 0 <= found.index < found.count or ":" not in found.address:
        raise BadInput(
            f"process {found.index} of {found.count} at {found.address!r}: not a number of theirs, or no port."
        )
    return found if found.count > 1 else None


def leading(text: str) -> int:
    """The number that a text begins with: `2(x4)` is 2."""
    match = re.match(r"\d+", text)
    return int(match[0]) if match else 1


def first_host(nodes: str) -> str:
    """`gpu[007-009,12],login1` begins with gpu007."""
    match = re.match(r"([^\[,]+)(?:\[([^],-]+))?", nodes)
    if match is None:
        raise BadInput(f"the list of nodes {nodes!r} cannot be read. Set JAX_COORDINATOR_ADDRESS=HOST:PORT.")
    return match[1] + (match[2] or "")


def join_cluster(wait: float = WAIT) -> Cluster | None:
    """Where there is a cluster, joins it; before anything of JAX computes. Raises as `find_cluster` and `roll_call`."""
    cluster = find_cluster(os.environ)
    if cluster is None:
        return None
    import jax  # before the roll call: from then on nobody is late

    roll_call(cluster, wait)
    local = None if cluster.local is None else [cluster.local]
    jax.distributed.initialize(
        cluster.address, cluster.count, cluster.index, local, cluster_detection_method="deactivate",
        initialization_timeout=max(int(wait), 10),
    )  # fmt: skip
    log.info("process %d of %d at %s", cluster.index, cluster.count, cluster.address)
    return cluster


def anywhere(here: bool) -> bool:
    """Whether it is so on any of several processes, once they have met. All must call this."""
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    return bool(multihost_utils.process_allgather(np.array(here)).any()) if jax.process_count() > 1 else here


def roll_call(cluster: Cluster, wait: float) -> None:
    """Comes back when every process is there. Raises `Preempted` that names those that are not, in all that are: a
    machine that was taken away comes back, and whoever started these starts them again then."""
    host, _, port = cluster.address.rpartition(":")
    meet = _receive if cluster.index == 0 else _report
    missing = meet(cluster, host.strip("[]"), int(port) + 1, time.monotonic() + wait)
    if missing:
        names = ", ".join(map(cluster.name, missing))
        raise Preempted(
            f"{len(missing)} of {cluster.count} processes did not come in {wait:g} s: {names}. Look at their logs; "
            "start all of them again, with a longer --wait if they only were late."
        )


def _receive(cluster: Cluster, host: str, port: int, until: float) -> list[int]:
    """Process 0: waits for the others, then tells them all who is missing."""
    here: dict[int, socket.socket] = {}
    both = socket.has_dualstack_ipv6()
    try:
        server = socket.create_server(
            ("", port), family=socket.AF_INET6 if both else socket.AF_INET, dualstack_ipv6=both, backlog=cluster.count
        )
    except OSError as error:
        raise BadInput(
            f"port {port} cannot be listened on: {error}. Set JAX_COORDINATOR_ADDRESS to another."
        ) from error
    with server:
        while len(here) < cluster.count - 1 and (left := until - time.monotonic()) > 0:
            server.settimeout(left)
            try:
                caller, _ = server.accept()
            except OSError:
                continue  # nobody came
            try:
                caller.settimeout(5)
                here[int(caller.makefile().readline())] = caller
            except (OSError, ValueError):
                caller.close()  # somebody else's
        missing = sorted(set(range(1, cluster.count)) - set(here))
        for caller in here.values():
            with caller:
                caller.sendall(json.dumps(missing).encode() + b"\n")
    return missing


def _report(cluster: Cluster, host: str, port: int, until: float) -> list[int]:
    """The others: report to process 0 as soon as it answers, and hear from it who is missing."""
    while True:
        try:
            with socket.create_connection((host, port), timeout=5) as server:
                server.sendall(f"{cluster.index}\n".encode())
                server.settimeout(max(until - time.monotonic(), 0) + 30)
                return json.loads(server.makefile().readline())
        except (OSError, ValueError) as error:
            if time.monotonic() > until:
                log.error("process 0 at %s:%d: %s", host, port, error)
                return [0]
            time.sleep(0.5)
