"""`dit-video doctor`: what it finds, what it says about what is missing, and that it never falls over."""

import json
import os
import types

import pytest

from dit_video.cli import doctor, generate
from dit_video.cli.main import main
from dit_video.core.errors import BadInput, MissingError


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A cache of its own, this process's devices as they are, and the hardware that JAX sees."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(generate, "prepare_jax", lambda device: None)
    monkeypatch.setattr(doctor, "has_gpu", lambda: False)
    monkeypatch.setattr(doctor, "has_tpu", lambda: False)
    monkeypatch.setattr(doctor, "ROOM", 0)
    monkeypatch.setattr(
        "dit_video.weights.folder.load_model", lambda name: types.SimpleNamespace(digest="0123456789ab")
    )
    return tmp_path


@pytest.fixture
def report(capsys):
    """`report(code, ...)`: the JSON of a run that must end with `code`."""

    def report(code, *argv):
        assert main(["doctor", "--json", *argv]) == code
        return json.loads(capsys.readouterr().out)

    return report


def test_a_machine_where_all_is_well(report, monkeypatch):
    monkeypatch.setattr(doctor, "requirements", lambda: [("numpy", "1.0", ""), ("nothing-at-all", "1", "later")])
    found = report(0)
    assert (found["ok"], found["problems"]) == (True, [])
    assert len(found["devices"]) == 8
    assert found["devices"][0]["platform"] == "cpu"
    assert {"python", "dit_video", "numpy"} <= set(found["versions"])
    assert {"libx264", "h264"} <= set(found["codecs"])
    assert found["extras"] == {"later": ["nothing-at-all"]}


def test_the_weights_on_board_are_whole(monkeypatch):
    monkeypatch.undo()
    about, problems = doctor.weights()
    assert about["name"] == "board"
    assert len(about["hash"]) == 12
    assert not problems


def test_it_is_readable_without_json(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "requirements", lambda: [("numpy", "999", "")])
    assert main(["doctor"]) == 3
    out = capsys.readouterr().out
    assert "device    cpu" in out
    assert "pip install 'numpy>=999'" in out
    assert out.splitlines()[-1] == "1 problem(s)"


def test_what_is_missing_or_old_names_the_line_that_installs_it(report, monkeypatch):
    monkeypatch.setattr(doctor, "requirements", lambda: [("numpy", "999.1", ""), ("nothing-at-all", "2", "")])
    old, missing = report(3)["problems"]
    assert "999.1 or newer is needed" in old["what"]
    assert old["fix"] == "pip install 'numpy>=999.1'"
    assert "nothing-at-all is missing" in missing["what"]


def test_the_declared_requirements_are_read(monkeypatch):
    lines = ["av>=18.1", "jax[cuda12]>=0.10.2; extra == 'cuda'", 'torch==2.13.0; extra == "parity"', "tensorboardX"]
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: lines)
    assert doctor.requirements() == [
        ("av", "18.1", ""), ("jax", "0.10.2", "cuda"), ("torch", "2.13.0", "parity"), ("tensorboardX", "0", ""),
    ]  # fmt: skip
    assert doctor.numbers("1.26.0rc1+local") == (1, 26, 0)


def test_codecs(report, monkeypatch):
    import av

    monkeypatch.setattr(av, "codecs_available", {"h264", "aac"})
    found = report(3)
    assert found["codecs"] == ["h264", "aac"]
    assert "no libx264 (writes MP4)" in found["problems"][-1]["what"]


def test_hardware_that_jax_does_not_see(report, monkeypatch):
    monkeypatch.setattr(doctor, "has_gpu", lambda: True)
    (problem,) = report(3)["problems"]
    assert problem["fix"] == "pip install 'dit_video[cuda]'"
    assert report(0, "--device", "cpu")["ok"]


def test_a_device_that_is_not_there(report, monkeypatch):
    def refuse(device):
        raise MissingError(f"--device {device}: none here")

    monkeypatch.setattr(generate, "prepare_jax", refuse)
    found = report(3, "--device", "tpu")
    assert found["devices"] == []
    assert found["problems"] == [{"what": "--device tpu: none here", "fix": "pip install 'dit_video[tpu]'"}]


def test_cache_and_disk(report, here, monkeypatch):
    (here / "cache").mkdir()
    (here / "cache" / "program").write_bytes(b"12345")
    assert report(0)["cache"] == {"path": str(here / "cache"), "programs": 1, "bytes": 5}
    monkeypatch.setattr(doctor, "ROOM", 2**60)
    monkeypatch.setattr(os, "access", lambda *_: False)
    cache, *disk = report(3)["problems"]
    assert "cannot be written" in cache["what"]
    assert all("free" in problem["what"] for problem in disk)
    assert disk


def test_a_cache_in_an_object_store_is_no_folder_here(report, here, monkeypatch, capsys):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "gs://bucket/cache")
    assert report(0)["cache"] == {"path": "gs://bucket/cache", "programs": None, "bytes": None}
    assert main(["doctor"]) == 0
    assert "gs://bucket/cache\n" in capsys.readouterr().out
    assert not list(here.glob("gs:*"))


def test_weights_that_are_damaged(report, monkeypatch):
    def damaged(*_):
        raise BadInput("transformer/x.safetensors not as written")

    monkeypatch.setattr("dit_video.weights.folder.load_model", damaged)
    assert "not as written" in report(3)["problems"][0]["what"]


def test_one_failing_part_leaves_the_others(report, monkeypatch, capsys):
    def fall_over():
        raise RuntimeError("boom")

    monkeypatch.setattr(doctor, "codecs", fall_over)
    found = report(3)
    assert found["codecs"] is None
    assert "RuntimeError: boom" in found["problems"][0]["what"]
    assert found["weights"]["hash"]
    assert "--verbose" in found["problems"][0]["fix"]
    assert main(["doctor", "--json", "--verbose"]) == 3
    out, err = capsys.readouterr()
    assert "See the traceback" in json.loads(out)["problems"][0]["fix"] and "in fall_over" in err


@pytest.mark.parametrize(
    "count, text", [(None, "unknown"), (5, "5 B"), (1500, "1.5 kB"), (25.3e9, "25.3 GB"), (2e15, "2e+03 TB")]
)
def test_sizes(count, text):
    assert doctor.size(count) == text
