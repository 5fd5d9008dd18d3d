"""Clusters: found by what schedulers tell, and a roll call that names who did not come."""

import os
import socket
import subprocess
import sys
import threading
import time

import pytest

from dit_video.core.cluster import Cluster, find_cluster, first_host, roll_call
from dit_video.core.errors import BadInput, Preempted

SLURM = {
    "SLURM_JOB_ID": "4100",
    "SLURM_STEP_NUM_TASKS": "16",
    "SLURM_STEP_NODELIST": "gpu[007-008]",
    "SLURM_PROCID": "9",
}
GKE = {"TPU_WORKER_HOSTNAMES": "a.x,b.x,c.x,d.x", "TPU_WORKER_ID": "2"}
GIVEN = {"JAX_COORDINATOR_ADDRESS": "h:1", "JAX_NUM_PROCESSES": "4"}


@pytest.mark.parametrize(
    "env, found",
    [
        ({}, None),
        ({"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}, None),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "16"}, None),  # a shell inside an allocation, not a step of it
        (GIVEN | {"JAX_PROCESS_ID": "3"}, Cluster("h:1", 4, 3)),
        (GIVEN | {"SLURM_PROCID": "2", "SLURM_LOCALID": "0"}, Cluster("h:1", 4, 2)),
        (GIVEN | {"JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"}, None),
        (GKE, Cluster("a.x:8482", 4, 2, ("a.x", "b.x", "c.x", "d.x"))),
        (
            GKE | {"MEGASCALE_NUM_SLICES": "2", "MEGASCALE_SLICE_ID": "1", "MEGASCALE_COORDINATOR_ADDRESS": "m.x:8080"},
            Cluster("m.x:8482", 8, 6),
        ),
        (SLURM | {"SLURM_LOCALID": "1", "SLURM_STEP_TASKS_PER_NODE": "8(x2)"}, Cluster("gpu007:61445", 16, 9, (), 1)),
        (SLURM | {"SLURM_LOCALID": "0", "SLURM_STEP_TASKS_PER_NODE": "1(x16)"}, Cluster("gpu007:61445", 16, 9)),
    ],
)
def test_what_schedulers_tell(env, found):
    assert find_cluster(env) == found


@pytest.mark.parametrize(
    "env, message",
    [
        (GIVEN, "JAX_PROCESS_ID must be, too"),
        ({"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"}, "JAX_COORDINATOR_ADDRESS"),
        (GIVEN | {"JAX_PROCESS_ID": "4"}, "process 4 of 4"),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"}, "set JAX_COORDINATOR_ADDRESS"),
    ],
)
def test_half_of_a_cluster(env, message):
    with pytest.raises(BadInput, match=message):
        find_cluster(env)


@pytest.mark.parametrize(
    "nodes, first", [("a1", "a1"), ("a1,a2", "a1"), ("a[3-5,7]", "a3"), ("a-b[007,9],c", "a-b007")]
)
def test_the_first_node(nodes, first):
    assert first_host(nodes) == first


def free_port():
    """One whose next is free as well."""
    while True:
        with socket.create_server(("", 0)) as one:
            port = one.getsockname()[1]
            try:
                with socket.create_server(("", port + 1)):
                    return port
            except OSError:
                continue


def call(count, present, wait):
    """What each process that is there says."""
    cluster = [Cluster(f"localhost:{free_port()}", count, 0, ("a", "b", "c", "d"))]
    said = {}

    def answer(index):
        try:
            roll_call(Cluster(cluster[0].address, count, index, cluster[0].hosts), wait)
            said[index] = "all"
        except Preempted as error:
            said[index] = str(error)

    threads = [threading.Thread(target=answer, args=(index,)) for index in present]
    for thread in threads:
        thread.start()
        time.sleep(0.05)
    for thread in threads:
        thread.join(60)
    return said


def test_all_are_there_in_any_order():
    assert call(4, [2, 1, 3, 0], 30) == dict.fromkeys(range(4), "all")


def test_who_is_missing_is_named_by_all():
    said = call(4, [3, 0], 2)
    assert sorted(said) == [0, 3]
    for text in said.values():
        assert "2 of 4 processes did not come in 2 s: 1 (b), 2 (c)." in text


def test_nobody_waits_for_the_first():
    assert "1 of 4 processes did not come in 1 s: 0 (a)" in call(4, [2], 1)[2]


def test_strangers_are_not_counted():
    port = free_port()
    said = []
    first = threading.Thread(target=lambda: said.append(roll_call(Cluster(f"localhost:{port}", 2, 0), 30)))
    first.start()
    while True:
        try:
            with socket.create_connection(("localhost", port + 1), timeout=5) as stranger:
                stranger.sendall(b"GET / HTTP/1.1\n")
                break
        except OSError:
            time.sleep(0.05)
    roll_call(Cluster(f"localhost:{port}", 2, 1), 30)
    first.join(30)
    assert said == [None]


CODE = """
import sys
from dit_video.cli.main import diagnose
from dit_video.core.cluster import join_cluster
try:
    join_cluster(float(sys.argv[1]))
except Exception as error:
    line, code = diagnose(error)
    print(line, file=sys.stderr)
    sys.exit(code)
import jax, jax.numpy as jnp
from jax.experimental.multihost_utils import process_allgather
print(jax.process_count(), jax.device_count(), process_allgather(jnp.float32(jax.process_index())).tolist())
"""


def processes(count, present, wait):
    """(exit code, stdout, stderr) of each."""
    address = f"localhost:{free_port()}"
    env = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count)}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", CODE, str(wait)], env=env | {"JAX_PROCESS_ID": str(index)}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for index in present
    ]  # fmt: skip
    return [(process.communicate(timeout=580), process.returncode) for process in started]


def test_two_real_processes_meet():
    for (out, err), code in processes(2, [0, 1], 240):
        assert code == 0, err
        assert out.splitlines()[-1] == "2 2 [0.0, 1.0]"  # Gloo speaks before


def test_a_real_process_that_is_alone_names_the_other():
    (((out, err), code),) = processes(2, [0], 2)
    assert (out, code) == ("", 75)  # every launch template starts it again
    assert err.strip() == (
        "1 of 2 processes did not come in 2 s: 1. Look at their logs; start all of them again, with a longer --wait if "
        "they only were late."
    )
