"""The watchdog, the clock, the trace: alone, and in a run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dit_video.core.errors import BadInput
from dit_video.train.watch import Clock, Profile, Watchdog, profile_steps

STANDIN = Path(__file__).with_name("standin.py")

# The stand-in's run, whose step 8 never ends; what hangs is named so that it is found among the stacks.
HUNG = """
import runpy, sys, time
import dit_video.train.loop as loop
given = loop.Trainer._flops
def waits_for_a_lost_host(self, *args):
    if self.step == 7:
        self.checkpoints.manager.wait_until_finished()
        self.watchdog.seconds = 2.0
        time.sleep(600)
    return given(self, *args)
loop.Trainer._flops = waits_for_a_lost_host
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_hung_step_ends_with_124_and_its_stack(tmp_path):
    argv = [sys.executable, "-c", HUNG, str(STANDIN), str(tmp_path)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=580)
    assert done.returncode == 124, done.stderr
    stacks = (tmp_path / "hung_0.txt").read_text()
    assert "waits_for_a_lost_host" in stacks
    assert "run_to_the_end" in stacks
    assert "waits_for_a_lost_host" in done.stderr
    assert [int(path.name) for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit()] == [5]


def test_the_watchdog_leaves_alone_what_moves(tmp_path, monkeypatch):
    ended = []
    dog = Watchdog(0.4, tmp_path)
    monkeypatch.setattr(dog, "_end", lambda: ended.append(dog.stopped.set()))
    with dog:
        for _ in range(12):
            dog.stopped.wait(0.05)
            dog.pat()
        assert not ended
        dog.stopped.wait(30)
    assert len(ended) == 1
    with Watchdog(0, tmp_path) as none:
        assert not none.thread.is_alive()


def test_the_clock_counts_what_was_lost():
    clock = Clock({"step": 6.0, "compile": 4.0})
    rows = [
        {"step": 10, "seconds/step": 6.0, "seconds/compile": 4.0},
        {"step": 20, "loss": 1.0},
        {"step": 15, "seconds/step": 8.5, "seconds/compile": 4.0},
    ]
    clock.resume(rows, 10)
    assert clock.report() == pytest.approx(
        {"goodput": 6 / 12.5, "seconds/step": 6.0, "seconds/compile": 4.0, "seconds/lost": 2.5}
    )
    clock.resume(rows[:1], 10)
    assert clock.seconds["lost"] == 2.5, "nothing more"
    with clock.spend("data"):
        pass
    assert 0 < clock.seconds["data"] < 1


@pytest.mark.parametrize("text", ["10", "15:10", "0:3", "a:b", ":", "-1:4"])
def test_steps_that_are_not(text):
    with pytest.raises(BadInput, match="as in 10:15"):
        profile_steps(text)


@pytest.mark.parametrize("steps, step, told", [((5, 7), 5, True), ((21, 22), 0, True), ((6, 30), 5, False)])
def test_a_trace_that_will_not_be_is_said(tmp_path, caplog, steps, step, told):
    Profile(steps, tmp_path).check(step, 20)
    assert ("no trace" in caplog.text) == told


def test_a_run_tells_where_its_seconds_went_and_traces_the_steps(tmp_path):
    import runpy

    from dit_video.train.loop import train

    small = runpy.run_path(str(STANDIN))["small"]
    train(small(steps=15), tmp_path, profile=profile_steps("7:9"))
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    first, *_, last = [row for row in rows if "goodput" in row]
    wanted = {"seconds/step", "seconds/compile", "seconds/data", "seconds/checkpoint", "seconds/measure"}
    assert wanted <= set(last)
    assert 0 < last["goodput"] < 1
    assert last["seconds/step"] > first["seconds/step"] > 0
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    # A run that goes on from step 10 has lost what came after.
    train(small(steps=16), tmp_path, resume="10")
    again = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row for row in again if "goodput" in row][-1]["seconds/lost"] > 0
