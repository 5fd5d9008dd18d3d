"""Export to StableHLO: what stands in the files for each platform, that they give the package's numbers, run.py."""

import errno
import json
import re
import runpy
import shutil
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from jax import export
from safetensors import safe_open

from dit_video.core.errors import BadInput, MissingError
from dit_video.core.types import Text, Time
from dit_video.data.video import read_video
from dit_video.diffusion.noise import clip_noise
from dit_video.diffusion.schedule import Schedule
from dit_video.export import programs, stablehlo
from dit_video.export.card import card
from dit_video.export.folder import Order, Target, describe
from dit_video.export.programs import Programs, portable
from dit_video.export.verify import run_export
from dit_video.models.tokenizer import clean
from dit_video.weights.find import verify_files

pytest.importorskip("flatbuffers")


@pytest.fixture(scope="module")
def model(tiny):
    return portable(tiny, "float32", stablehlo.BACK)


@pytest.fixture(scope="module")
def out(model, tmp_path_factory):
    """The text encoder and the denoiser for any shape; the others are what takes time, and are tested by themselves."""
    folder = tmp_path_factory.mktemp("exports") / "tiny"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stablehlo, "NAMES", ("text_encoder", "denoiser"))
        return stablehlo.export_stablehlo(Order(model, "float32", 3.0, ((9, 32, 32),), ("a=0.5",)), folder)


@pytest.fixture(scope="module")
def run(out):
    """The definitions of run.py, in a copy whose manifest names a sampler (it is not asked for frames here)."""
    shutil.copytree(out, out.with_name("copy"))
    about = json.loads((out / "manifest.json").read_text())
    about["programs"]["sampler"] = about["programs"]["denoiser"]
    (out.with_name("copy") / "manifest.json").write_text(json.dumps(about))
    return runpy.run_path(str(out.with_name("copy") / "run.py"))


def convolutions(text, dimensions):
    layout = ", ".join(map(str, range(dimensions)))
    return len(re.findall(re.escape(f"[b, {layout}, f]x"), text))


def calls(text):
    """What is called outside of the program. Symbols in shapes are checked by calls that a compiler takes away."""
    return set(re.findall(r"custom_call @(\w+)", text)) - {"shape_assertion"}


def test_each_platform_has_its_own_branch(model):
    """Made on a CPU: convolutions over frames are folded into two dimensions there, and are of three elsewhere."""
    program = (Programs(model), "vae_decoder", (5, 32, 32), "float32")
    texts = {name: stablehlo.lowered(*program, platforms=(name,)).mlir_module() for name in ("cpu", "cuda", "tpu")}
    assert convolutions(texts["cpu"], 3) == 0
    for name in ("cuda", "tpu"):
        assert convolutions(texts[name], 3) > 0
        assert 0 < convolutions(texts[name], 2) < convolutions(texts["cpu"], 2)
        assert not calls(texts[name])
    together = stablehlo.lowered(*program)
    assert together.platforms == ("cpu", "cuda", "tpu")
    text = together.mlir_module()
    assert convolutions(text, 3) >= convolutions(texts["tpu"], 3) and convolutions(text, 2) > convolutions(
        texts["cpu"], 2
    )
    assert "stablehlo.case" in text  # which of them, is asked where the program runs


def test_a_residual_vae_takes_any_shape(rng):
    """That of Wan 2.2, whose shortcuts reshape more."""
    made = runpy.run_path(str(Path(__file__).parents[1] / "weights" / "variants.py"))
    programs = Programs(portable(made["variant"]("ti2v"), "float32", stablehlo.BACK))
    exported = stablehlo.lowered(programs, "vae_decoder", None, "float32", platforms=("cpu",))
    weights = {path: np.asarray(x) for path, x in programs.weights("vae").items()}
    latents = rng.standard_normal((1, 4, 4, 2, 4)).astype(np.float32)
    frames = np.asarray(exported.call(weights, latents))
    wanted = np.asarray(jax.jit(programs.vae_decoder)(weights, latents))
    assert frames.shape == (1, 13, 32, 16, 3) and frames.std() > 10
    assert np.abs(frames.astype(int) - wanted).max() <= 1


def test_the_host_leaves_no_trace(model):
    """The denoiser calls nothing outside of the program, whatever the machine that exports it has."""
    text = stablehlo.lowered(Programs(model), "denoiser", (5, 32, 32), "float32").mlir_module()
    assert not calls(text)
    assert text.count("stablehlo.while") == 2  # layers of text keys, layers of blocks


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("name", ["text_encoder", "sampler"])
def test_nothing_is_called_where_the_others_run(model, name, platform):
    text = stablehlo.lowered(Programs(model), name, (5, 32, 32), "float32", platforms=(platform,)).mlir_module()
    assert not calls(text)
    assert convolutions(text, 3) > 0 or name == "text_encoder"


def test_any_shape_gives_the_numbers_of_the_package(model, rng):
    exported = export.deserialize(
        bytearray(stablehlo.lowered(Programs(model), "denoiser", None, "float32").serialize())
    )
    weights = {path: np.asarray(x) for path, x in Programs(model).weights("dit").items()}
    x = rng.standard_normal((2, 5, 4, 6, 4)).astype(np.float32)
    rows = rng.standard_normal((2, 7, 24)).astype(np.float32)
    time, length = np.array([0.3, 0.9], np.float32), np.array([7, 5], np.int32)
    wanted = jax.jit(model.module("dit"))(x, Time(time[:, None]), Text(rows, length))
    np.testing.assert_allclose(exported.call(weights, x, time, rows, length), wanted, atol=2e-5)


def test_attention_of_a_long_clip_of_fixed_size_is_in_pieces(model, rng, monkeypatch):
    """On no platform is there a number for every pair of tokens; the velocity is the package's."""
    shape, pairs = (5, 272, 512), re.compile("x1088x1088x")
    assert programs.tokens(model, shape) == 1088
    at_once = stablehlo.lowered(Programs(model), "denoiser", shape, "float32")
    monkeypatch.setattr(programs, "LONG", 1000)
    program = stablehlo.lowered(Programs(model), "denoiser", shape, "float32")
    assert pairs.search(at_once.mlir_module()) and not pairs.search(program.mlir_module())
    weights = {path: np.asarray(x) for path, x in Programs(model).weights("dit").items()}
    x = rng.standard_normal((1, *model.vae.latent_shape(*shape)[:3], 4)).astype(np.float32)
    rows = rng.standard_normal((1, 7, 24)).astype(np.float32)
    time, length = np.array([0.3], np.float32), np.array([5], np.int32)
    wanted = jax.jit(model.module("dit"))(x, Time(time[:, None]), Text(rows, length))
    np.testing.assert_allclose(program.call(weights, x, time, rows, length), wanted, atol=2e-5)


@pytest.mark.parametrize(
    "name, shapes, said",
    [
        ("stablehlo", (), "GB for 81 frames of 832x480. Exported with `--shapes 81x480x832` it has them in pieces"),
        ("stablehlo", ((81, 480, 832),), ""),
        ("onnx", ((81, 480, 832), (5, 32, 32)), "GB for 81 frames of 832x480.\n"),
        ("onnx", ((5, 32, 32),), ""),
    ],
)
def test_the_card_says_what_attention_holds(model, name, shapes, said):
    defaults = replace(model.defaults, num_frames=81, height=480, width=832)
    order = Order(replace(model, defaults=defaults), "float32", 3.0, shapes)
    text = card("a title", order.model, describe(Target(name, "", ()), order), None)
    assert said in text and ("Attention holds all logits" in text) is bool(said)


def test_the_manifest_says_what_is_there(out, model):
    about = json.loads((out / "manifest.json").read_text())
    assert verify_files(out)
    assert about["format"] == "stablehlo" and about["platforms"] == ["cpu", "cuda", "tpu"]
    assert about["model"]["lora"] == ["a=0.5"] and about["shapes"] == [[9, 32, 32]]
    assert about["defaults"]["shift"] == 3.0 and about["defaults"]["schedule"] == "unipc"
    (denoiser,) = about["programs"]["denoiser"]
    assert denoiser["file"] == "programs/denoiser_9x32x32.jax_export" and (out / denoiser["file"]).is_file()
    assert denoiser["arguments"]["latents"] == "float32[b, 3, 4, 4, 4]"
    assert about["loadable"]["until"] > about["loadable"]["created"]
    assert about["parameters"]["dit"] == sum(x.size for x in jax.tree.leaves(model.params["dit"]))
    card = (out / "README.md").read_text()
    assert "9 frames of 32x32" in card and "--refresh" in card and "## Limits" in card


def test_encoder_weights_stay_at_home(out):
    with safe_open(out / "weights" / "vae.safetensors", "numpy") as file:
        parts = {name.partition("/")[0] for name in file.keys()}  # noqa: SIM118
    assert parts == {"decoder", "post_quant_conv"}


def test_a_short_default_gets_a_program_of_its_own(model, monkeypatch, tmp_path):
    monkeypatch.setattr(stablehlo, "NAMES", ("text_encoder",))
    seen = {}
    monkeypatch.setattr(
        stablehlo, "write_programs", lambda folder, programs, shapes, dtype: seen.update(s=shapes) or {}
    )
    stablehlo.export_stablehlo(Order(model, "float32", 3.0), tmp_path / "a")
    assert seen["s"] == ((5, 32, 32), None)
    long = replace(model, defaults=replace(model.defaults, num_frames=17))
    stablehlo.export_stablehlo(Order(long, "float32", 3.0), tmp_path / "b")
    assert seen["s"] == (None,)


def test_run_py_shares_the_definitions(run, tiny):
    assert np.array_equal(run["clip_noise"](7, [0, 2], 3, (4, 4, 4)), clip_noise(7, [0, 2], 3, (4, 4, 4)))
    for kind in ("unipc", "euler", "even"):
        assert np.array_equal(run["Schedule"](9, 3.0, kind).instants(), Schedule(9, 3.0, kind).instants())
    odd = "  a “red”\u00a0circle &amp; ﬁve  stars\x85 "
    assert run["clean"](odd) == clean(odd)
    about = json.loads((run["HERE"] / "manifest.json").read_text())
    for prompt in (odd, "a red circle moves left", ""):
        ids, length = run["tokens"](about, prompt)
        wanted = tiny.tokenizer.encode([prompt], max_length=tiny.dit.text_len)
        assert np.array_equal(ids, wanted.ids) and np.array_equal(length, wanted.length)


@pytest.mark.parametrize(
    "flags, said",
    [
        ("--num_frames 10", "4k+1"),
        ("--num-frames 10", "4k+1"),
        ("--prompt=", "prompt is empty"),
        ("--guidance_scale nan", "a number from 0 up"),
        ("--guidance-scale=inf", "a number from 0 up"),
        ("--guidance_scale -3", "a number from 0 up"),
        ("--output MINE.npy", "MINE.npy exists"),
        ("--output OUR.npy --prompt a b", "OUR_1.npy exists"),
        ("--height 40", "multiple of 16"),
        ("--output a.avi", ".mp4 or .npy"),
        ("--seed -1", "2^63"),
        ("--latents LATENTS", "(1, 3, 4, 4, 4) wanted"),
        ("--latents NOWHERE", "No such file"),
        ("--latents TEXT", "holds no latents"),
        ("--latents EMPTY", "holds no latents"),
        ("--latents ZIP", "holds no latents"),
        ("--fps 0", "more than 0"),
        ("--fps nan", "more than 0"),
        ("--output TEXT/a.npy", "File exists"),
        ("--num_frames 13", "13x32x32: this export makes"),
    ],
)
def test_run_py_refuses(run, flags, said, capsys, tmp_path, monkeypatch):
    """Before anything is computed."""
    monkeypatch.chdir(tmp_path)
    np.save("LATENTS", np.zeros((3, 4, 4, 1), np.float32))
    Path("LATENTS.npy").rename("LATENTS")
    Path("TEXT").write_text("mine")
    Path("MINE.npy").write_text("mine")
    Path("OUR_1.npy").write_text("mine")
    Path("EMPTY").touch()
    Path("ZIP").write_bytes(b"PK\x03\x04, cut")
    assert run["main"](["--prompt", "a", "--num_frames", "9", *flags.split()]) == 2
    assert said in capsys.readouterr().err
    there = ["EMPTY", "LATENTS", "MINE.npy", "OUR_1.npy", "TEXT", "ZIP"]
    assert sorted(path.name for path in tmp_path.iterdir()) == there
    assert Path("MINE.npy").read_text() == "mine"


def test_run_py_spells_flags_either_way(run):
    same = run["same_flags"](
        ["--num-frames", "9", "--guidance-scale=-1", "--prompt", "a-b", "-- c-d", "--prompt=--e-f"]
    )
    assert same == ["--num_frames", "9", "--guidance_scale=-1", "--prompt", "a-b", "-- c-d", "--prompt=--e-f"]


def test_what_is_not_finite_is_no_video(run, capsys, tmp_path, monkeypatch):
    """Black frames would be. --force takes the place of a file, but not for that."""
    program = run["Programs"].__new__(run["Programs"])
    program.weights, latents = [], np.zeros((1, 3, 4, 4, 4), np.float32)
    computed = lambda *_: (np.zeros((1, 9, 32, 32, 3), np.uint8), latents)  # noqa: E731
    program.ready = type("Any", (dict,), {"__contains__": lambda *_: True, "__missing__": lambda *_: computed})()
    monkeypatch.setitem(run["main"].__globals__, "Programs", lambda *_: program)
    line = ["--prompt", "a", "--num-frames", "9", "--output", str(tmp_path / "a.npy")]
    latents[0, 1] = np.nan
    assert run["main"](line) == 5
    assert "not finite" in capsys.readouterr().err and not list(tmp_path.iterdir())
    latents[:] = 0
    assert [run["main"](line), run["main"](line), run["main"]([*line, "--force"])] == [0, 2, 0]
    assert np.load(tmp_path / "a.npy").shape == (9, 32, 32, 3)


def test_bfloat16_runs_where_this_package_is_not(tiny, alone, tmp_path, monkeypatch):
    """The whole of run.py in a process of its own, for one platform to be quick."""
    monkeypatch.setattr(stablehlo, "NAMES", ("sampler",))
    monkeypatch.setattr(stablehlo, "lowered", partial(stablehlo.lowered, platforms=("cpu",)))
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    order = Order(portable(tiny, "bfloat16", stablehlo.BACK), "bfloat16", 3.0, ((5, 32, 32),))
    out = stablehlo.export_stablehlo(order, tmp_path / "out")
    with safe_open(out / "weights" / "dit.safetensors", "numpy") as file:
        assert "BF16" in {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    (frames,) = run_export(alone, out, ["a red circle moves right"], 7, ["--num-inference-steps=1"])
    assert frames.shape == (5, 32, 32, 3) and frames.std() > 10
    assert "which is bfloat16 here" in (out / "run.py").read_text()


def test_run_py_names_what_is_missing(run, capsys, tmp_path, monkeypatch):
    """The package that writes videos is asked for before there is a video."""
    monkeypatch.setitem(sys.modules, "av", None)
    assert run["main"](["--prompt", "a", "--num_frames", "9", "--output", str(tmp_path / "a.mp4")]) == 3
    assert "pip install jax flatbuffers numpy safetensors sentencepiece 'imageio[pyav]'" in capsys.readouterr().err


def test_run_py_leaves_no_half_a_video(run, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    for name in ("a.npy", "a.mp4"):
        with pytest.raises(OSError, match="No space left"):
            run["save"](tmp_path / name, np.zeros((5, 32, 32, 3), np.uint8), 8.0, {})
    assert not list(tmp_path.iterdir())


def test_run_py_writes_what_players_show(run, tmp_path):
    frames = np.zeros((5, 32, 48, 3), np.uint8)
    frames[..., 0], frames[:, :, 24:, 1] = 200, 120
    run["save"](tmp_path / "a.mp4", frames, 8.0, {"prompt": "ä", "seed": 3})
    footage = read_video(tmp_path / "a.mp4")
    assert footage.fps == 8 and footage.metadata == {"prompt": "ä", "seed": 3}
    assert np.abs(footage.frames[:, 4:-4, 4:20].astype(int) - frames[:, 4:-4, 4:20]).max() <= 4
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_an_expired_file_says_what_to_do(out, run):
    """What ages is the program inside, which JAX opens only to call it: here of a version that is not known."""
    old = export.export(jax.jit(lambda x: x))(jax.ShapeDtypeStruct((), np.float32)).serialize()
    old[old.index(b"ML\xefR") + 4] = 0xFF
    export.deserialize(old)
    about = json.loads((out / "manifest.json").read_text())
    program = run["Programs"].__new__(run["Programs"])
    (out.parent / "old.jax_export").write_bytes(old)
    program.about, program.file, program.weights, program.ready = about, out.parent / "old.jax_export", [], {}
    with pytest.raises(run["BadInput"], match=r"not read by jax .* any more .*dit-video export THIS_FOLDER --refresh"):
        program.make(*[np.zeros(1)] * 3, (0, 0), 1)


def test_what_is_no_matter_of_age_is_not_called_so(out, run, tmp_path):
    """A program that is given something else, and one that was cut on its way."""
    about = json.loads((out / "manifest.json").read_text())
    program = run["Programs"].__new__(run["Programs"])
    program.about, program.file, program.weights, program.ready = about, tmp_path / "denoiser.jax_export", [], {}
    program.file.write_bytes(export.export(jax.jit(lambda x: x))(jax.ShapeDtypeStruct((), np.float32)).serialize())
    with pytest.raises(ValueError, match="same pytree structure"):
        program.make(*[np.zeros(1)] * 3, (0, 0), 1)
    about["sha256"]["programs/denoiser.jax_export"] = "0" * 64
    with pytest.raises(run["BadInput"], match=r"denoiser.jax_export is damaged\. Copy the export again"):
        program.make(*[np.zeros(1)] * 3, (0, 0), 1)


def test_weights_that_are_not_there_are_named(run, capsys, tmp_path):
    line = ["--prompt", "a", "--num_frames", "9", "--output", str(tmp_path / "a.npy")]
    file = run["HERE"] / "weights" / "dit.safetensors"
    whole = file.read_bytes()
    try:
        file.write_bytes(whole[:100])
        assert run["main"](line) == 2
        assert "weights/dit.safetensors is damaged: " in capsys.readouterr().err
        file.unlink()
        assert run["main"](line) == 3
        assert "weights/dit.safetensors is missing. Copy the export again" in capsys.readouterr().err
    finally:
        file.write_bytes(whole)


def test_a_tokenizer_that_is_not_there_is_named(run):
    """In the exports of both formats: what reads it is the same."""
    about = json.loads((run["HERE"] / "manifest.json").read_text())
    file = run["HERE"] / "tokenizer" / "spiece.model"
    whole = file.read_bytes()
    try:
        file.write_bytes(whole[:100])
        with pytest.raises(run["BadInput"], match="spiece.model is damaged"):
            run["tokens"](about, "a")
        file.unlink()
        with pytest.raises(run["Missing"], match=r"spiece.model is missing\. Copy the export again"):
            run["tokens"](about, "a")
    finally:
        file.write_bytes(whole)
    assert run["tokens"](about, "a")[0].shape[0] == 1


@pytest.mark.parametrize(
    "suite, cells", [("toyworld", "91.3 % | 80.0 % - 95.1 %"), ("reconstruction", "0.9127 | 0.8 - 0.951")]
)
def test_the_card_has_the_units_of_the_suite(model, suite, cells):
    """What is no share of clips is no percentage. A score of which nothing is known has no row."""
    scores = {"a": {"value": 0.9127, "low": 0.8, "high": 0.951, "n": 96}, "psnr": None}
    order = Order(model, "float32", 3.0, scores={"suite": suite, "scores": scores})
    text = card("a title", model, describe(Target("stablehlo", "", ()), order), order.scores)
    assert f"| a | {cells} | 96 |" in text and "psnr" not in text


def test_no_float16(tiny, tmp_path):
    order = Order(portable(tiny, "float16", stablehlo.BACK), "float16", 3.0)
    with pytest.raises(BadInput, match="Use float32 or bfloat16"):
        stablehlo.export_stablehlo(order, tmp_path / "out")


def test_shapes_off_the_rule(model):
    with pytest.raises(BadInput, match="Use 9 or 13"):
        Order(model, "float32", 3.0, ((10, 32, 32),))
    with pytest.raises(BadInput, match="height=40 must be a multiple of 16"):
        Order(model, "float32", 3.0, ((9, 40, 32),))


def test_without_flatbuffers(model, tmp_path, monkeypatch):
    monkeypatch.setattr(stablehlo, "find_spec", lambda name: None)
    with pytest.raises(MissingError, match=r"pip install 'dit_video\[stablehlo\]'"):
        stablehlo.export_stablehlo(Order(model, "float32", 3.0), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_models_that_want_more_than_a_prompt(tiny):
    with pytest.raises(BadInput, match="--to diffusers takes them all"):
        portable(replace(tiny, dit_2=tiny.dit), "float32", "platform")
