"""The loop: a run that was killed ends like a straight one, bit for bit; it stops in good order, and reports."""

import dataclasses
import json
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from dit_video.core.config import load_experiment, override, to_dict
from dit_video.core.errors import BadInput, MissingError, NonFinite, Partial, Preempted
from dit_video.core.mesh import MeshShape
from dit_video.data.loader import NoHeldOut, Toyworld
from dit_video.train.ahead import Ahead
from dit_video.train.loop import Trainer, train
from dit_video.train.watch import Watchdog
from dit_video.weights.runs import Run

STANDIN = Path(__file__).with_name("standin.py")


@pytest.fixture(scope="module")
def small():
    return runpy.run_path(str(STANDIN))["small"]


def start(workdir, *changes, pause=0.0):
    env = os.environ | {"JAX_PLATFORMS": "cpu", "PAUSE": str(pause)}
    command = [sys.executable, str(STANDIN), str(workdir), *changes]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process):
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    return json.loads(out.splitlines()[-1])


def wait_for_step(workdir, step, process):
    """Until the metrics tell that the run is beyond `step`."""
    for _ in range(2400):
        if any(row["step"] >= step for row in metrics(workdir)):
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    raise AssertionError("the run did not come to its step")


def metrics(workdir):
    file = Path(workdir) / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def losses(workdir):
    return [(row["step"], row["loss"]) for row in metrics(workdir) if "loss" in row]


def test_a_killed_run_ends_like_a_straight_one(tmp_path):
    straight = start(tmp_path / "straight")
    killed = start(tmp_path / "killed", pause=0.06)
    wait_for_step(tmp_path / "killed", int(np.random.default_rng().integers(5, 30)), killed)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    whole, resumed = finish(straight), finish(start(tmp_path / "killed"))
    assert resumed["fingerprint"] == whole["fingerprint"]
    assert resumed["steps"] == 40
    assert losses(tmp_path / "killed") == losses(tmp_path / "straight")
    assert [step for step, _ in losses(tmp_path / "killed")] == list(range(5, 45, 5))


@pytest.mark.parametrize("which, code", [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_saves_a_checkpoint_and_has_its_exit_code(tmp_path, which, code):
    process = start(tmp_path, "checkpoint_every=1000", pause=0.06)
    wait_for_step(tmp_path, 5, process)
    process.send_signal(which)
    _, err = process.communicate(timeout=120)
    assert process.returncode == code, err
    assert "the same command goes on" in err
    (step,) = Run(tmp_path).checkpoints().steps()
    assert 5 <= step < 40


def test_it_learns_and_reports(small, tmp_path):
    seen = []
    experiment = small(steps=60, sample_every=30)
    summary = train(experiment, tmp_path, sample=lambda model, e, folder, step: seen.append((step, folder.name)))
    rows = metrics(tmp_path)
    assert rows[0]["loss"] > 20 * summary["held_out"]
    assert seen == [(30, "samples"), (60, "samples")]
    assert {"loss", "grad_norm", "largest", "clips_per_second", "gflops"} <= set(rows[0])
    assert [row["step"] for row in rows if "held_out" in row] == [10, 20, 30, 40, 50, 60]
    assert {"held_out/0.5", "held_out/0.9"} <= set(next(row for row in rows if "held_out" in row))
    assert summary["parameters"] == 8 * 2 + 2
    assert (tmp_path / "finished").exists()
    assert any((tmp_path / "tensorboard").iterdir())
    assert json.loads((tmp_path / "experiment.json").read_text())["steps"] == 60


def test_resume_at_a_step_never_and_longer(small, tmp_path):
    first = train(small(), tmp_path)
    assert train(small(), tmp_path)["fingerprint"] == first["fingerprint"], "nothing is left to do"
    again = train(small(), tmp_path, resume="30")
    assert again["fingerprint"] == first["fingerprint"]
    with pytest.raises(BadInput, match="no step 7"):
        train(small(), tmp_path, resume="7")
    with pytest.raises(BadInput, match="auto, never"):
        train(small(), tmp_path, resume="perhaps")
    fresh = train(small(steps=10), tmp_path, resume="never")
    assert fresh["steps"] == 10
    assert (tmp_path / "checkpoints.1" / "40").is_dir(), "the earlier run is put aside, not lost"


def test_other_shapes_are_an_error_that_names_them(small, tmp_path):
    train(small(steps=5), tmp_path)
    with pytest.raises(BadInput, match=r"Step 5 was saved with .*line/linear/kernel"):
        train(small(objective=type(small().objective)(width=16)), tmp_path)
    with pytest.raises(BadInput, match="Step 5 was saved with"):
        train(small(ema=(0.5, 0.9, 0.99)), tmp_path)


@pytest.mark.parametrize(
    "changes, wrong, message",
    [
        (
            {"ema": "0.99"},
            "ema/1/a",
            r"saved with ema=.*; the experiment says \(0\.99,\)\. Give ema=\(0\.99, 0\.998\), or",
        ),
        ({"optimizer.kind": "adamw"}, "opt/a", r"saved with kind=muon; .* Give optimizer\.kind=muon, or"),
        (
            {"ema": "0.9,0.99", "objective.dit.depth": "7"},
            "params/a",
            r"Give objective\.dit\.depth=6 \(now 7\) and objective\.path\.shift=3\.0 \(now 5\.0\), or",
        ),
        ({"ema": "0.9,0.99"}, "opt/a", r"saved with other shapes: opt/a is \[1\] there and missing here\. Use another"),
    ],
)
def test_other_shapes_are_blamed_on_what_made_them(changes, wrong, message):
    """Not on whatever else was changed."""
    old = load_experiment("toyworld")
    new = override(old, {"objective.path.shift": "5", **changes})
    trainer = SimpleNamespace(experiment=new)
    trainer._changes = lambda about: Trainer._changes(trainer, about)
    about = {"experiment": to_dict(old), "shapes": {"ema/0/a": [1], wrong: [1]}}
    with pytest.raises(BadInput, match=message):
        Trainer._check_shapes(trainer, 500, about, {"ema/0/a": SimpleNamespace(shape=(1,))})


def test_the_mesh_does_not_change_the_numbers(small, tmp_path):
    runs = [
        train(small(mesh=mesh), tmp_path / str(i))
        for i, mesh in enumerate([MeshShape(), MeshShape(2, 4), MeshShape(1, 2, 2, 2)])
    ]
    for run in runs[1:]:
        np.testing.assert_allclose(run["loss"], runs[0]["loss"], rtol=1e-4)
        np.testing.assert_allclose(run["held_out"], runs[0]["held_out"], rtol=1e-4)


def test_a_run_goes_on_on_another_mesh(small, tmp_path):
    steady = dataclasses.replace(small().optimizer, decay="none")
    train(small(steps=20, optimizer=steady), tmp_path)
    moved = train(small(optimizer=steady, mesh=MeshShape(2, 2, 2, 1)), tmp_path)
    straight = train(small(optimizer=steady), tmp_path / "straight")
    np.testing.assert_allclose(moved["held_out"], straight["held_out"], rtol=1e-3)
    assert moved["steps"] == 40


def test_one_bad_batch_is_skipped(small, tmp_path):
    good = train(small(objective=type(small().objective)(bad=(7,))), tmp_path)
    assert np.isfinite(good["loss"])
    assert sum(row.get("skipped", 0) for row in metrics(tmp_path)) == pytest.approx(1 / 5)
    assert [row["rollbacks"] for row in metrics(tmp_path) if "loss" in row] == [0] * 8


def test_many_bad_batches_send_a_run_back_and_on_with_other_data(small, tmp_path, monkeypatch):
    """Batches 13 to 20 are bad, which is known when step 21 was run: the steps after 10 see the batches after 21."""
    bad = small(steps=30, objective=type(small().objective)(bad=tuple(range(13, 21))))
    went_back = train(bad, tmp_path / "back")
    rows = metrics(tmp_path / "back")
    assert [step for step, _ in losses(tmp_path / "back")] == [5, 10, 15, 20, 25, 30]
    assert [row["rollbacks"] for row in rows if "loss" in row] == [0, 1, 1, 1, 1, 1], "10 is told at 11"
    assert all(row["skipped"] == 0 for row in rows if "loss" in row)
    assert [row["step"] for row in rows if "held_out" in row] == [10, 20, 30]
    assert [row for row in rows if "loss" in row][-1]["seconds/lost"] > 0

    # Ended in the middle of it, after a checkpoint at step 15 that holds three steps of the bad ones.
    with monkeypatch.context() as patch:
        whole = Trainer._flops

        def end(self, *args):
            if self.step == 17:
                raise KeyboardInterrupt
            return whole(self, *args)

        patch.setattr(Trainer, "_flops", end)
        with pytest.raises(KeyboardInterrupt):
            train(bad, tmp_path / "ended")
    assert Run(tmp_path / "ended").checkpoints().steps() == [5, 10, 15]
    resumed = train(bad, tmp_path / "ended")
    assert resumed["fingerprint"] == went_back["fingerprint"]
    assert losses(tmp_path / "ended") == losses(tmp_path / "back")

    # A run that never saw the batches in between.
    numbers = type(bad.objective.stream(bad, None, held_out=True))
    following = numbers.__next__

    def leaping(self):
        self.place = 21 if self.place == 10 else self.place
        return following(self)

    monkeypatch.setattr(numbers, "__next__", leaping)
    assert train(small(steps=30), tmp_path / "leaping")["fingerprint"] == went_back["fingerprint"]


@pytest.mark.parametrize(
    "bad, changes, message",
    [
        (range(8, 60), {}, r"for 4 steps up to step 9, after going back 2 times with other data"),
        (range(8, 60), {"rollbacks": 0}, r"for 4 steps up to step 11\."),
        (range(3, 60), {}, "from step 3 on, and there is no checkpoint before it"),
    ],
)
def test_batches_that_stay_bad_end_a_run(small, tmp_path, bad, changes, message):
    objective = type(small().objective)(bad=tuple(bad))
    with pytest.raises(NonFinite, match=message):
        train(small(objective=objective, **{"patience": 4, "rollbacks": 2, "ema": (0.5,), **changes}), tmp_path)


def test_a_failing_sampler_does_not_end_a_run(small, tmp_path):
    def fail(*args):
        raise RuntimeError("no encoder")

    assert train(small(steps=10, sample_every=5), tmp_path, sample=fail)["steps"] == 10


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"steps": 0}, "steps=0"),
        ({"batch": 6, "accumulate": 4}, "accumulate=4"),
        ({"keep": 1}, "keep=1"),
        ({"eval_batches": 0}, "eval_batches=0"),
        ({"keep_every": 7}, "keep_every=7: a multiple of checkpoint_every"),
        ({"matmul_precision": "float8"}, "matmul_precision='float8': choose one of float32, tensorfloat32, bfloat16"),
        ({"patience": 0}, "patience=0"),
        ({"ema": (1.0,)}, "ema"),
        ({"batch": 7}, "does not divide over the mesh"),
    ],
)
def test_numbers_that_cannot_be(small, tmp_path, changes, message):
    with pytest.raises(BadInput, match=message):
        train(small(**changes), tmp_path)


def test_what_is_wrong_with_the_held_out_part_is_said_first(small, tmp_path):
    def open_part(buckets, held_out=False):
        if held_out:
            raise BadInput("no held_out clips")

    with pytest.raises(BadInput, match="no held_out clips"):
        train(small(data=SimpleNamespace(open=open_part)), tmp_path)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_source_without_a_held_out_part_is_trained_on(small, tmp_path, monkeypatch, caplog):
    def open_part(self, buckets, held_out=False):
        if held_out:
            raise NoHeldOut("latents has no held-out clips")

    monkeypatch.setattr(Toyworld, "open", open_part)
    summary = train(small(steps=10), tmp_path)
    assert summary["steps"] == 10 and summary["held_out"] is None
    assert caplog.text.count("no held-out loss: latents has no held-out clips") == 1


def end_with(error, place, objective, patch, held_out=False):
    """The streams of one part end with an error."""
    whole = objective.stream

    def stream(*args, **more):
        numbers = whole(*args, **more)

        class Ending(type(numbers)):
            def __next__(self):
                if self.place == place:
                    raise error
                return super().__next__()

        numbers.__class__ = Ending if more["held_out"] == held_out else type(numbers)
        return numbers

    patch.setattr(objective, "stream", stream)


@pytest.mark.parametrize(
    "error, kind, message",
    [
        (BadInput("too many damaged clips"), BadInput, "too many damaged clips"),
        (MissingError("gs://a/train-00003: no such file"), MissingError, "no such file"),
        (OSError("gs://a cannot be fetched"), Partial, r"at step 7 of 40: gs://a cannot.*same command.*\(steps: 7\)"),
    ],
)
def test_what_was_learnt_is_kept_when_the_data_turn_out_bad(small, tmp_path, monkeypatch, error, kind, message):
    end_with(error, 7, type(small().objective), monkeypatch)
    with pytest.raises(kind, match=message):
        train(small(checkpoint_every=1000), tmp_path)
    assert Run(tmp_path).checkpoints().steps() == [7]


def test_held_out_clips_that_cannot_be_read_do_not_end_a_run(small, tmp_path, monkeypatch, caplog):
    straight = train(small(steps=20), tmp_path / "straight")
    end_with(BadInput("none of the 1 clips can be used"), 1, type(small().objective), monkeypatch, held_out=True)
    summary = train(small(steps=20), tmp_path / "run")
    assert summary["steps"] == 20 and summary["held_out"] is None
    assert summary["fingerprint"] == straight["fingerprint"]
    assert caplog.text.count("no held-out loss") == 1 and "none of the 1 clips can be used" in caplog.text
    assert not any("held_out" in row for row in metrics(tmp_path / "run"))
    assert losses(tmp_path / "run") == losses(tmp_path / "straight")


def test_a_signal_is_heard_while_a_batch_is_made(small, tmp_path, monkeypatch):
    """Without end, in pieces: each keeps the watchdog quiet, and the work ends with the run."""
    line, pats, ended = type(small().objective), [], threading.Event()
    whole, pat = line.stream, Watchdog.pat

    def stream(*args, held_out, beat):
        numbers = whole(*args, held_out=held_out)

        class Endless(type(numbers)):
            def __next__(self):
                if self.place == 7:
                    os.kill(os.getpid(), signal.SIGTERM)
                    try:
                        while time.sleep(0.05) is None:
                            beat()
                    finally:
                        ended.set()
                return super().__next__()

        numbers.__class__ = type(numbers) if held_out else Endless
        return numbers

    monkeypatch.setattr(line, "stream", stream)
    monkeypatch.setattr(Watchdog, "pat", lambda dog: (pats.append(threading.current_thread().name), pat(dog)))
    with pytest.raises(Preempted):
        train(small(checkpoint_every=1000), tmp_path)
    assert len(Run(tmp_path).checkpoints().steps()) == 1
    assert "batches" in pats and ended.wait(30)


def test_every_line_has_a_rate(small, tmp_path):
    train(small(steps=4, log_every=1), tmp_path)
    rates = [row["clips_per_second"] for row in metrics(tmp_path) if "loss" in row]
    assert len(rates) == 4 and min(rates[1:]) > 0, "of the first step, which compiles, there is none"


def test_an_error_in_the_data_reaches_the_loop():
    class Failing:
        def __next__(self):
            raise BadInput("no more")

        def state(self):
            return {}

    ahead = Ahead(Failing(), lambda batch: batch)
    with pytest.raises(BadInput, match="no more"):
        ahead.next()
    ahead.close()
