"""Export to ONNX: the parts that need no converter, and (slow) the whole of it where there is one."""

import json
import os
import runpy
import subprocess
import sys
import types
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_video.cli.main import main
from dit_video.core.errors import BadInput, DitVideoError, MissingError
from dit_video.diffusion.sample import run, start, step_function
from dit_video.diffusion.schedule import Schedule
from dit_video.export import convert, onnx
from dit_video.export.folder import Order
from dit_video.export.programs import Programs, portable
from dit_video.weights.folder import save_model


@pytest.fixture
def order(tiny):
    return Order(portable(tiny, "float32", "folded"), "float32", 3.0)


def test_the_step_is_the_solvers(order, rng):
    """Step by step, with arrays alone, from a beginning that the manifest describes."""
    programs, schedule = order.programs, Schedule(4, 3.0)
    noise = rng.standard_normal((1, 2, 4, 4, 4)).astype(np.float32)

    def velocity(x, t, memory):
        return 0.3 * x - t.values[0, 0], memory

    wanted = run(
        jax.jit(step_function(velocity, programs.solver)), start(jnp.asarray(noise), programs.solver), schedule
    ).x
    step, init = programs.step()
    step, memory = jax.jit(step), []
    for leaf, exact in zip(map(onnx.start, init(onnx.PROBE)), init(jnp.asarray(noise)), strict=True):
        begun = noise if leaf["value"] == "noise" else np.full(noise.shape if leaf["sized"] else (), leaf["value"])
        np.testing.assert_array_equal(begun, exact)
        memory.append(begun.astype(leaf["dtype"]))
    x = noise
    for now, then in schedule.pairs():
        x, *memory = step(x, 0.3 * x - now.model, now.flow, then.flow, *memory)
    np.testing.assert_allclose(x, wanted, atol=1e-5)


def test_files_that_are_wanted(order):
    made = convert.wanted(Programs(order.model), [[5, 32, 32], [9, 48, 32]])
    names = [(name, shape) for name, shape, _, _ in made]
    assert names[0] == ("text_encoder", None) and names.count(("denoiser", [9, 48, 32])) == 1 and len(names) == 7
    arguments = made[4][3]
    assert arguments["latents"].shape == (2, 3, 6, 4, 4)  # the prompt and the negative prompt
    assert arguments["rows"].shape == (2, convert.text_rows(32), 24) == (2, 32, 24)
    assert convert.text_rows(512) == 128


def test_the_folder(order, tmp_path, monkeypatch):
    """With a converter that only notes what it was asked for."""
    seen = {}

    def converted(python, job):
        seen.update(json.loads(job.read_text()))
        assert (job.parent / "model" / "model_index.json").is_file()
        return {"denoiser": [{"file": "programs/denoiser_5x32x32.onnx", "shape": [5, 32, 32]}]}

    monkeypatch.setattr(onnx, "converter", lambda python: python)
    monkeypatch.setattr(onnx, "converted", converted)
    out = onnx.export_onnx(order, tmp_path / "out", "python")
    about = json.loads((out / "manifest.json").read_text())
    assert seen["shapes"] == [[5, 32, 32]] == about["shapes"]
    assert about["text_rows"] == 32 and len(about["memory"]) == 6
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md",
        "manifest.json",
        "programs",
        "run.py",
        "tokenizer",
    ]
    text = (out / "run.py").read_text()
    compile(text, "run.py", "exec")
    assert "import onnxruntime" in text and "import jax" not in text and "dit_video import" not in text


@pytest.fixture
def opened(order, tmp_path, monkeypatch):
    """An export of another shape than the model's own, of which each file but the last is whole; and its run.py, with
    an ONNX Runtime that opens what is no more than b"whole"."""

    def converted(python, job):
        files = {"text_encoder": "text_encoder", "denoiser": "denoiser_9x32x32", "solver": "solver_9x32x32",
                 "vae_decoder": "vae_decoder_9x32x32"}  # fmt: skip
        for file in files.values():
            (Path(json.loads(job.read_text())["out"]) / f"{file}.onnx").write_bytes(b"whole")
        (Path(json.loads(job.read_text())["out"]) / "denoiser_9x32x32.onnx.data").write_bytes(b"weights")
        return {name: [{"file": f"programs/{file}.onnx", "shape": [9, 32, 32] if "x" in file[8:] else None}]
                for name, file in files.items()}  # fmt: skip

    class Session:
        def __init__(self, file, *_):
            beside = Path(file + ".data")
            if Path(file).read_bytes() != b"whole" or ("denoiser" in file and not beside.is_file()):
                raise RuntimeError("INVALID_PROTOBUF")

    runtime = types.SimpleNamespace(
        SessionOptions=types.SimpleNamespace, get_available_providers=list, InferenceSession=Session, __version__="1.2"
    )
    monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
    monkeypatch.setattr(onnx, "converter", lambda python: python)
    monkeypatch.setattr(onnx, "converted", converted)
    out = onnx.export_onnx(replace(order, shapes=((9, 32, 32), (9, 48, 32))), tmp_path / "out", "python")
    return out, runpy.run_path(str(out / "run.py"))


def test_the_shape_is_one_that_was_exported(opened):
    """Where the model's own is not among them: left out, the first one is made."""
    out, run = opened
    about = json.loads((out / "manifest.json").read_text())
    assert [about["defaults"][name] for name in ("num_frames", "height", "width")] == [9, 32, 32]
    args = run["arguments"](["--prompt", "a"], about)
    assert run["Programs"](about, (args.num_frames, args.height, args.width)).sessions
    assert "left out, 9 frames of 32x32" in (out / "README.md").read_text()


@pytest.mark.parametrize(
    "name, text, code, said",
    [
        ("manifest.json", None, 3, "manifest.json is missing"),
        ("manifest.json", b"{", 2, "manifest.json is damaged"),
        ("manifest.json", b'{"sha256": {}}', 2, "manifest.json is not that of an export to onnx"),
        ("programs/solver_9x32x32.onnx", None, 3, "programs/solver_9x32x32.onnx is missing"),
        ("programs/solver_9x32x32.onnx", b"cut", 2, "programs/solver_9x32x32.onnx is damaged"),
        ("programs/denoiser_9x32x32.onnx.data", None, 3, "programs/denoiser_9x32x32.onnx.data is missing"),
    ],
)
def test_run_py_says_which_file_is_not_as_it_was(opened, capsys, tmp_path, name, text, code, said):
    out, run = opened
    (out / name).unlink() if text is None else (out / name).write_bytes(text)
    assert run["main"](["--prompt", "a", "--output", str(tmp_path / "a.npy")]) == code
    err = capsys.readouterr().err
    assert said in err and "Copy the export again, or make it anew: dit-video export NEW_FOLDER --to onnx" in err


def test_run_py_blames_no_whole_file(opened, capsys, tmp_path, monkeypatch):
    """What an older ONNX Runtime does not know."""

    def old(*_):
        raise RuntimeError("opset 20 is under development\nmore")

    monkeypatch.setattr(sys.modules["onnxruntime"], "InferenceSession", old)
    assert opened[1]["main"](["--prompt", "a", "--output", str(tmp_path / "a.npy")]) == 2
    assert "onnxruntime 1.2 does not open it: opset 20 is under development Install" in capsys.readouterr().err


def test_no_room_before_the_conversion(order, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx, "converter", lambda python: python)
    monkeypatch.setattr(onnx, "converted", lambda *_: pytest.fail("it was converted"))
    monkeypatch.setattr("shutil.disk_usage", lambda path: types.SimpleNamespace(free=1000))
    with pytest.raises(BadInput, match=r"needs .* MB are free there"):
        onnx.export_onnx(order, tmp_path / "out", "python")
    assert not list(tmp_path.iterdir())


def test_float32_only(tiny, tmp_path):
    with pytest.raises(BadInput, match="float32 only"):
        onnx.export_onnx(Order(portable(tiny, "bfloat16", "folded"), "bfloat16", 3.0), tmp_path / "out")


def test_a_converter_is_asked_for(monkeypatch, tmp_path):
    monkeypatch.setattr(onnx, "find_spec", lambda name: None)
    with pytest.raises(MissingError, match=r"(?s)environment of its own.*pip install jax2onnx.*--converter"):
        onnx.converter(None)
    with pytest.raises(MissingError, match="No such file"):
        onnx.converter(str(tmp_path / "nothing"))
    (tmp_path / "other").write_text("#!/bin/sh\necho 'ModuleNotFoundError: jax2onnx' >&2\nexit 1\n")
    (tmp_path / "other").chmod(0o755)
    with pytest.raises(MissingError, match="ModuleNotFoundError: jax2onnx"):
        onnx.converter(str(tmp_path / "other"))
    for silent in ("/bin/false", "/bin/true"):
        with pytest.raises(MissingError, match=r"it is no Python, or says nothing of why it ended\. jax2onnx converts"):
            onnx.converter(silent)


def test_the_converters_last_words(tmp_path):
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho 'no such operator' >&2\nexit 1\n")
    script.chmod(0o755)
    with pytest.raises(DitVideoError, match=r"(?s)conversion to ONNX failed.*no such operator"):
        onnx.converted(str(script), tmp_path / "job.json")


@pytest.mark.slow
def test_it_runs_in_onnx_runtime(tiny, tmp_path, capsys):
    """The whole of it, in the environment that DIT_VIDEO_CONVERTER names."""
    python = os.environ.get("DIT_VIDEO_CONVERTER")
    if python is None:
        pytest.skip("DIT_VIDEO_CONVERTER names no interpreter with jax2onnx and onnxruntime")
    model = save_model(tiny, tmp_path / "model")
    line = ["export", str(tmp_path / "out"), "--to", "onnx", "--model", str(model), "--converter", python]
    assert main([*line, "--verify", "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)["verified"]
    assert measured["pixels_within_2_of_255"] >= 0.999 and measured["clips"] == 2
    done = subprocess.run(
        [python, str(tmp_path / "out" / "run.py"), "--prompt", "a", "--num_frames", "9"], capture_output=True, text=True
    )
    assert done.returncode == 2 and "this export makes (frames x height x width) 5x32x32" in done.stderr


@pytest.mark.slow
def test_stablehlo_from_end_to_end(tiny, alone, tmp_path, capsys, monkeypatch):
    """The command, run.py in a process of its own that has nothing of this package, the comparison, and a refresh."""
    pytest.importorskip("flatbuffers")
    monkeypatch.setattr(sys, "executable", alone)
    model, out = save_model(tiny, tmp_path / "model"), tmp_path / "out"
    assert main(["export", str(out), "--to", "stablehlo", "--model", str(model), "--verify", "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)["verified"]
    assert measured["pixels_within_2_of_255"] >= 0.999
    first = json.loads((out / "manifest.json").read_text())
    assert first["measured"] == measured
    assert main(["export", str(out), "--refresh", "--quiet"]) == 0
    again = json.loads((out / "manifest.json").read_text())
    assert again["created"] >= first["created"]
    assert again["sha256"]["weights/dit.safetensors"] == first["sha256"]["weights/dit.safetensors"]
    done = subprocess.run(
        [alone, str(out / "run.py"), "--prompt", "a", "--num_frames", "9"], capture_output=True, text=True
    )
    assert done.returncode == 2 and "any from 13 frames up" in done.stderr
