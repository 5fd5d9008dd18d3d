"""Faults injected for real: what a run has learnt is kept, and it ends with the very same parameters."""

import ctypes
import os
import runpy
from pathlib import Path

import pytest

from dit_video.core.errors import Partial
from dit_video.train.loop import Trainer, train
from dit_video.train.metrics import MetricsLog, rows_of
from dit_video.weights.runs import Run

STANDIN = Path(__file__).with_name("standin.py")


@pytest.fixture(scope="module")
def small():
    return runpy.run_path(str(STANDIN))["small"]


def losses(workdir):
    return [(row["step"], row["loss"]) for row in rows_of(workdir) if "loss" in row]


def saved(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())


@pytest.fixture
def disk(tmp_path):
    """A small disk of its own. Who may not mount one has it written in the log of the tests."""
    place, libc = tmp_path / "disk", ctypes.CDLL(None, use_errno=True)
    place.mkdir()
    if libc.mount(b"none", bytes(place), b"tmpfs", 0, b"size=8m"):
        pytest.skip(f"a disk cannot be mounted here: {os.strerror(ctypes.get_errno())}")
    yield place
    libc.umount2(bytes(place), 2)  # though files may be open


def fill(file):
    with file.open("wb", buffering=0) as out:
        try:
            while True:
                out.write(bytes(4096))
        except OSError:
            return


def test_a_full_disk_keeps_the_run_and_what_was_saved(small, disk, tmp_path, monkeypatch, caplog):
    short = small(steps=30, ema=(0.5,), eval_every=30)
    straight = train(short, tmp_path / "straight")
    seen, whole = [], Trainer._flops

    def flops(self, *args):
        if self.step in (8, 27):
            self.checkpoints.settle()
            fill(disk / "other files")
        elif self.step == 17:
            seen.extend(saved(disk / "run"))
            (disk / "other files").unlink()
        return whole(self, *args)

    monkeypatch.setattr(Trainer, "_flops", flops)
    with pytest.raises(Partial, match=r"step 30 could not be saved in .*\(steps: 5, 20, 25\)") as error:
        train(short, disk / "run")
    assert error.value.exit_code == 6
    assert seen == [5], "the old one stays"
    assert caplog.text.count("a checkpoint could not be saved: ") >= 3
    assert "No space left on device" in caplog.text
    monkeypatch.setattr(Trainer, "_flops", whole)
    (disk / "other files").unlink()
    assert train(short, disk / "run")["fingerprint"] == straight["fingerprint"]
    assert losses(disk / "run") == losses(tmp_path / "straight")
    assert saved(disk / "run") == [20, 25, 30]


def test_metrics_wait_until_a_disk_has_room(disk, caplog):
    log = MetricsLog(disk, 0, 0)
    log.write(1, {"loss": 1.0})
    fill(disk / "other files")
    for step in range(2, 42):  # more than what is left of a file's last page
        log.write(step, {"x" * 200: float(step)})
    assert "metrics cannot be written: No space left on device" in caplog.text
    assert len(rows_of(disk)) < 41
    (disk / "other files").unlink()
    log.write(42, {"loss": 42.0})
    log.close()
    assert [row["step"] for row in rows_of(disk)] == list(range(1, 43))
    assert len(list((disk / "tensorboard").iterdir())) > 1, "half an event is the last of its file"


def test_a_run_goes_on_before_a_damaged_checkpoint_and_keeps_its_files(small, tmp_path):
    short = small(steps=15, ema=(0.5,), eval_every=15)
    straight = train(short, tmp_path)
    files = [path for path in (tmp_path / "checkpoints" / "15" / "state").rglob("*") if path.is_file()]
    for path in files:
        os.truncate(path, path.stat().st_size // 2)
    left = sorted(path.read_bytes() for path in files)
    assert train(short, tmp_path)["fingerprint"] == straight["fingerprint"]
    assert saved(tmp_path) == [5, 10, 15]
    (aside,) = (tmp_path / "checkpoints").glob("15.damaged.*")
    assert sorted(path.read_bytes() for path in (aside / "state").rglob("*") if path.is_file()) == left
    assert Run(tmp_path).checkpoints().steps() == [5, 10, 15]
