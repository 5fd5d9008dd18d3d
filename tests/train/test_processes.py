"""Two real processes with four devices each are one run: the losses of one process with eight, a stop of both after the
same step, and an end when one of them is lost."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

STANDIN = Path(__file__).with_name("standin.py")

# The stand-in's run in a cluster; each process is given its part of every batch. A pause makes room for signals.
CODE = """
import os, runpy, sys, time
from dit_video.core.cluster import join_cluster
import jax
cluster = join_cluster(240)
import dit_video.train.loop as loop
sys.argv = sys.argv[1:]
scope = runpy.run_path(sys.argv[0])
Numbers, whole, flops = scope["Numbers"], scope["Numbers"].__next__, loop.Trainer._flops
def own(self):
    part, parts = experiment.part()
    size = self.batch // parts
    return {name: x[part * size :][:size] for name, x in whole(self).items()}
Numbers.__next__ = own
loop.Trainer._flops = lambda *args: (time.sleep(float(os.environ["PAUSE"])), flops(*args))[1]
from dit_video.core.config import override
from dit_video.core.errors import DitVideoError
import json
experiment = override(scope["EXPERIMENT"], dict(a.split("=", 1) for a in sys.argv[2:]))
try:
    print(json.dumps(loop.train(experiment, sys.argv[1], sample=lambda *_: None)))
except DitVideoError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


# One of two reads a step whose files were cut off after the other had read them; then each reads alone, in turn.
CUT = """
import json, os, sys, time
from pathlib import Path
from dit_video.core.cluster import join_cluster
join_cluster(240)
import jax, numpy as np, orbax.checkpoint as ocp
from jax.sharding import NamedSharding, PartitionSpec as P, SingleDeviceSharding
from dit_video.core.mesh import make_mesh
from dit_video.train.processes import in_turn
from dit_video.weights.checkpoints import Checkpoints

here, first = Path(sys.argv[2]), jax.process_index() == 0
where = NamedSharding(make_mesh(), P("data"))
checkpoints = Checkpoints(here / "checkpoints", keep=3)
for step in (5, 10):
    values = np.full((8, 64), step, np.float32)
    array = jax.make_array_from_callback(values.shape, where, lambda at: values[at])
    checkpoints.save(step, {"w": array}, {}, wait=True)

plain = ocp.PyTreeCheckpointHandler.restore
def restore(self, folder, *args, **more):
    if not first and folder.parent.name == "10":
        while not (here / "read").exists():
            time.sleep(0.05)
        for path in folder.rglob("*"):
            if path.is_file():
                os.truncate(path, path.stat().st_size // 2)
    found = plain(self, folder, *args, **more)
    (here / "read").touch()
    return found
ocp.PyTreeCheckpointHandler.restore = restore

def newest(checkpoints, where):
    wanted = {"w": jax.ShapeDtypeStruct((8, 64), np.float32, sharding=where)}
    step, flat = checkpoints.latest(lambda step: checkpoints.restore(step, wanted))
    return [step, float(flat["w"].addressable_data(0).mean())]

said = [newest(checkpoints, where)]
checkpoints.forget_after(said[0][0])
with in_turn():
    said.append(newest(Checkpoints(here / "checkpoints"), SingleDeviceSharding(jax.local_devices()[0])))
checkpoints.close()
print(json.dumps(said))
"""


def start(workdir, count, *changes, pause=0.0, code=CODE):
    with socket.create_server(("", 0)) as probe:
        address = f"localhost:{probe.getsockname()[1]}"
    env = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(8 // count), "PAUSE": str(pause)}
    if count > 1:
        env |= {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count)}
    return [
        subprocess.Popen(
            [sys.executable, "-c", code, str(STANDIN), str(workdir), *changes], text=True,
            env=env | ({"JAX_PROCESS_ID": str(index)} if count > 1 else {}),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for index in range(count)
    ]  # fmt: skip


def finish(processes):
    """(exit code, stdout, stderr) of each."""
    said = [process.communicate(timeout=500) for process in processes]
    return [(process.returncode, *text) for process, text in zip(processes, said, strict=True)]


def losses(workdir):
    file = Path(workdir) / "metrics.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


def wait_for_step(workdir, step, processes):
    for _ in range(4000):
        if any(told >= step for told in losses(workdir)):
            return
        assert all(process.poll() is None for process in processes), finish(processes)
        time.sleep(0.1)
    raise AssertionError("the run did not come to its step")


@pytest.mark.slow
@pytest.mark.parametrize(
    "mesh",
    [("data=4", "fsdp=2"), ("data=1", "context=8")],  # halves of a batch; the same clips on both, split between them
)
def test_two_processes_are_one_run(tmp_path, mesh):
    mesh = ["sample_every=20", *(f"mesh.{axis}" for axis in mesh)]
    two, one = start(tmp_path / "two", 2, *mesh), start(tmp_path / "one", 1, *mesh)
    (first, second), (alone,) = finish(two), finish(one)
    assert (first[0], second[0], alone[0]) == (0, 0, 0), first[2] + second[2] + alone[2]
    said = [json.loads(text.splitlines()[-1]) for _, text, _ in (first, second, alone)]
    assert said[0]["fingerprint"] == said[1]["fingerprint"]
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    assert said[0]["held_out"] == pytest.approx(said[2]["held_out"], rel=1e-5)
    assert (tmp_path / "two" / "finished").exists()


@pytest.mark.slow
@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_to_one_stops_both_after_the_same_step(tmp_path, number, code):
    processes = start(tmp_path, 2, "checkpoint_every=1000", pause=0.3)
    wait_for_step(tmp_path, 5, processes)
    processes[1].send_signal(number)
    ended = finish(processes)
    assert [got for got, *_ in ended] == [75, code], ended[0][2] + ended[1][2]
    steps = [path.name for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit()]
    assert len(steps) == 1
    assert all(f"stopped at step {steps[0]} of 40" in err for _, _, err in ended)


@pytest.mark.slow
def test_when_one_is_lost_the_other_ends_and_both_go_on_later(tmp_path):
    processes = start(tmp_path, 2, "hang_after=25", pause=0.3)
    wait_for_step(tmp_path, 10, processes)
    processes[1].kill()
    (code, _, err), _ = finish(processes)
    assert code != 0
    assert code in (124, 1, -signal.SIGABRT), err
    again = finish(start(tmp_path, 2))
    assert [code for code, *_ in again] == [0, 0], again[0][2] + again[1][2]
    assert sorted(losses(tmp_path)) == list(range(5, 45, 5))


@pytest.mark.slow
def test_a_step_that_one_cannot_read_is_left_by_both(tmp_path):
    ended = finish(start(tmp_path, 2, code=CUT))
    assert [code for code, *_ in ended] == [0, 0], ended[0][2] + ended[1][2]
    assert [json.loads(text.splitlines()[-1]) for _, text, _ in ended] == [[[5, 5.0], [5, 5.0]]] * 2
    assert "by another process; trying the one before" in ended[0][2]
    assert len([*(tmp_path / "checkpoints").glob("10.damaged.*")]) == 1
