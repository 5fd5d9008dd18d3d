"""Kills for real, and other machines after them: whatever ended a run, it goes on to the very same parameters.

A parent that has imported everything and computed nothing forks a child for each attempt: starting twenty processes
would take longer than what they do.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
STANDIN = Path(__file__).with_name("standin.py")

PARENT = """
import dataclasses, json, os, runpy, signal, sys, time, traceback
from pathlib import Path
import grain, jax, numpy as np, orbax.checkpoint
from dit_video.train.loop import Trainer, train

here = Path(sys.argv[2])
small = runpy.run_path(sys.argv[1])["small"]
line = type(small().objective)

def child(work):
    "What `work` returns, in a process of its own; of one that was killed None."
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(writing, json.dumps(work()).encode())
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, -signal.SIGKILL), status
    return json.loads(said) if status == 0 else None

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def saved(run):
    return sorted(int(p.name) for p in (here / run / "checkpoints").glob("*") if p.name.isdigit())
"""

AT_STEPS = """
long = small(steps=240, eval_every=240, checkpoint_every=8)
straight = child(lambda: train(long, here / "straight"))
rng = np.random.default_rng(int(sys.argv[3]))

def dies(more, delay):
    whole, first = Trainer._flops, []
    def flops(self, *args):
        first.append(self.step)
        if self.step == first[0] + more:
            time.sleep(delay)  # a save is under way, or has just ended, or not
            die()
        return whole(self, *args)
    Trainer._flops = flops
    return train(long, here / "killed")

kills, newest = 0, []
for _ in range(20):
    more, delay = int(rng.integers(1, 25)), rng.uniform(0, 0.05)
    kills += child(lambda: dies(more, delay)) is None
    newest.append(max(saved("killed"), default=0))
resumed = child(lambda: train(long, here / "killed"))
print(json.dumps({"kills": kills, "newest": newest, "straight": straight, "resumed": resumed}))
"""

IN_A_SAVE = """
wide = small(steps=15, objective=line(width=200_000))

def dies():
    whole = Trainer.save
    def save(self, wait=False):
        whole(self, wait)
        while self.step == 10:
            begun = (here / "killed" / "checkpoints").glob("10.orbax-checkpoint-tmp*/**/*")
            if any(path.is_file() for path in begun):
                die()
            assert not (here / "killed" / "checkpoints" / "10").exists(), "it was saved before it could be killed"
    Trainer.save = save
    return train(wide, here / "killed")

straight, killed = child(lambda: train(wide, here / "straight")), child(dies)
left = [path.name for path in (here / "killed" / "checkpoints").iterdir()]
resumed = child(lambda: train(wide, here / "killed"))
print(json.dumps({"killed": killed, "left": left, "straight": straight, "resumed": resumed}))
"""

ON_FEWER = """
def on(devices, *steps, name="moved"):
    jax.config.update("jax_num_cpu_devices", devices)
    steady = dataclasses.replace(small().optimizer, decay="none")
    shape = dataclasses.replace(small().mesh, fsdp=2 if devices > 1 else 1)
    runs = [train(small(steps=n, optimizer=steady, mesh=shape, eval_every=15), here / name) for n in steps]
    assert len(jax.devices()) == devices
    return runs

eight, four, two = child(lambda: on(8, 5)), child(lambda: on(4, 5, 10)), child(lambda: on(2, 10, 15))
(straight,) = child(lambda: on(1, 15, name="straight"))
print(json.dumps({"eight": eight, "four": four, "two": two, "straight": straight}))
"""


def run(code, folder, *args):
    command = [sys.executable, "-W", "ignore::RuntimeWarning", "-c", PARENT + code, str(STANDIN), str(folder), *args]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=840, env=os.environ | {"JAX_PLATFORMS": "cpu"}
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def losses(workdir):
    rows = [json.loads(text) for text in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row["loss"]) for row in rows if "loss" in row]


def test_twenty_kills_at_random_steps(tmp_path):
    said = run(AT_STEPS, tmp_path, "7")
    assert said["kills"] == 20
    assert len(set(said["newest"])) > 5, "they met the run in different places"
    assert said["resumed"]["fingerprint"] == said["straight"]["fingerprint"]
    assert losses(tmp_path / "killed") == losses(tmp_path / "straight")
    assert [step for step, _ in losses(tmp_path / "killed")] == list(range(5, 245, 5))


def test_a_kill_during_a_save(tmp_path):
    said = run(IN_A_SAVE, tmp_path)
    assert said["killed"] is None
    assert "5" in said["left"] and "10" not in said["left"]
    assert any(name.startswith("10.orbax-checkpoint-tmp") for name in said["left"])
    assert said["resumed"]["fingerprint"] == said["straight"]["fingerprint"]
    assert losses(tmp_path / "killed") == losses(tmp_path / "straight")


def test_a_run_moves_from_eight_devices_to_four_and_to_two(tmp_path):
    said = run(ON_FEWER, tmp_path)
    assert said["four"][0]["fingerprint"] == said["eight"][0]["fingerprint"], "restored bit for bit"
    assert said["two"][0]["fingerprint"] == said["four"][1]["fingerprint"]
    assert said["two"][1]["held_out"] == pytest.approx(said["straight"]["held_out"], rel=1e-3)
    assert dict(losses(tmp_path / "moved")) == pytest.approx(dict(losses(tmp_path / "straight")), rel=1e-3)
