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

from dit_video.weights.folder import save_model

MEMBER = Path(__file__).with_name("member.py")


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


def start(workdir, count, *changes, kind="line", pause=0.0, code=None):
    with socket.create_server(("", 0)) as probe:
        address = f"localhost:{probe.getsockname()[1]}"
    env = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(8 // count), "PAUSE": str(pause)}
    if count > 1:
        env |= {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count)}
    program = [str(MEMBER)] if code is None else ["-c", code]
    return [
        subprocess.Popen(
            [sys.executable, *program, kind, str(workdir), *changes], text=True,
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
@pytest.mark.parametrize("kind", ["denoise", "vae"])
def test_two_processes_train_the_real_models_as_one_does(tiny, tmp_path, kind):
    """The DiT with its text encoder, and the VAE: weights over fsdp and heads over tensor reach across both."""
    save_model(tiny, tmp_path / "model")
    mesh = ["mesh.data=2", "mesh.fsdp=2", "mesh.tensor=2"]
    two, one = (start(tmp_path / name, count, *mesh, kind=kind) for name, count in (("two", 2), ("one", 1)))
    (first, second), (alone,) = finish(two), finish(one)
    assert (first[0], second[0], alone[0]) == (0, 0, 0), first[2] + second[2] + alone[2]
    said = [json.loads(text.splitlines()[-1]) for _, text, _ in (first, second, alone)]
    assert said[0]["fingerprint"] == said[1]["fingerprint"]
    expected = losses(tmp_path / "one")
    assert sorted(expected) == [1, 2, 3, 4]
    assert len(set(expected.values())) == 4
    assert losses(tmp_path / "two") == pytest.approx(expected, rel=1e-5)
    assert said[0]["held_out"] == pytest.approx(said[2]["held_out"], rel=1e-5)


@pytest.mark.slow
def test_the_real_denoiser_killed_and_resumed_ends_alike(tiny, tmp_path):
    """With its pool of encoded clips, its conditions and its text encoder: kill -9 between two checkpoints."""
    save_model(tiny, tmp_path / "model")
    fields = ["steps=8", "eval_every=8", "checkpoint_every=2"]
    killed = start(tmp_path / "killed", 1, *fields, kind="denoise", pause=0.5)
    wait_for_step(tmp_path / "killed", 5, killed)
    killed[0].kill()
    killed[0].communicate()
    runs = [start(tmp_path / name, 1, *fields, kind="denoise") for name in ("killed", "straight")]
    ended = [finish(run)[0] for run in runs]
    assert [code for code, *_ in ended] == [0, 0], ended[0][2] + ended[1][2]
    assert len({json.loads(out.splitlines()[-1])["fingerprint"] for _, out, _ in ended}) == 1
    assert losses(tmp_path / "killed") == losses(tmp_path / "straight")


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
    processes = start(tmp_path / "lost", 2, "hang_after=25", pause=0.3)
    wait_for_step(tmp_path / "lost", 10, processes)
    processes[1].kill()
    (code, _, err), _ = finish(processes)
    assert code != 0
    assert code in (124, 1, -signal.SIGABRT), err
    saved = (tmp_path / "lost" / "checkpoints").iterdir()
    assert any(path.name.isdigit() and 5 <= int(path.name) < 40 for path in saved), "what it goes on from"
    again, straight = finish(start(tmp_path / "lost", 2)), finish(start(tmp_path / "straight", 2))
    assert [code for code, *_ in again + straight] == [0] * 4, again[0][2] + again[1][2] + straight[0][2]
    assert losses(tmp_path / "lost") == losses(tmp_path / "straight")
    rows = [json.loads(line) for line in (tmp_path / "lost" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == list(range(5, 45, 5)), "none was done twice"
    prints = {json.loads(text.splitlines()[-1])["fingerprint"] for _, text, _ in again + straight}
    assert len(prints) == 1, "the same parameters as of a run that lost nobody"


@pytest.mark.slow
def test_a_step_that_one_cannot_read_is_left_by_both(tmp_path):
    ended = finish(start(tmp_path, 2, code=CUT))
    assert [code for code, *_ in ended] == [0, 0], ended[0][2] + ended[1][2]
    assert [json.loads(text.splitlines()[-1]) for _, text, _ in ended] == [[[5, 5.0], [5, 5.0]]] * 2
    assert "by another process; trying the one before" in ended[0][2]
    assert len([*(tmp_path / "checkpoints").glob("10.damaged.*")]) == 1
