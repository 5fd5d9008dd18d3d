"""`dit-video generate`: what stands on stdout, what lies on disk, and exit codes; with a model in miniature."""

import errno
import json
import runpy
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from dit_video.cli.main import main
from dit_video.core.errors import Interrupted
from dit_video.data.video import read_video
from dit_video.generate import decode
from dit_video.generate.clip import frames_sha256, load_latents
from dit_video.weights.folder import save_model

PROMPT = "a red circle moves right"
pytestmark = pytest.mark.usefixtures("here")


def said(capsys):
    """(stdout, stderr) of the last command."""
    captured = capsys.readouterr()
    return captured.out, captured.err


def test_one_prompt_one_file(model, here, capsys):
    assert main(["generate", PROMPT, "--model", model]) == 0
    out, err = said(capsys)
    path = here / out.strip()
    assert path.parent == here / "outputs"
    meta = json.loads(path.with_suffix(".json").read_text())
    footage = read_video(path)
    assert footage.metadata == meta
    assert footage.frames.shape == (5, 32, 32, 3)
    assert f"seed {meta['seed']}" in err
    assert path.stem.endswith(f"a-red-circle-moves-right_s{meta['seed']}")
    assert len(meta["frames_sha256"]) == 64


def test_json_for_one_and_for_several(model, capsys):
    assert main(["generate", PROMPT, "--model", model, "--seed", "3", "--json", "--output", "a.gif"]) == 0
    one = json.loads(said(capsys)[0])
    assert {k: one[k] for k in ("path", "seed", "frames", "height", "width", "fps", "steps")} == {
        "path": "a.gif", "seed": 3, "frames": 5, "height": 32, "width": 32, "fps": 8.0, "steps": 3,
    }  # fmt: skip
    assert set(one["seconds"]) == {"load", "compile", "denoise", "decode", "write"}
    argv = [
        "generate",
        PROMPT,
        "--prompt",
        "a blue star",
        "--model",
        model,
        "--seed",
        "3",
        "--json",
        "--output",
        "b.gif",
    ]
    assert main(argv) == 0
    several = json.loads(said(capsys)[0])
    assert [clip["path"] for clip in several] == ["b_0.gif", "b_1.gif"]
    assert several[0]["model"] == one["model"] != ""


def test_dashes_and_underscores_and_a_still(model, here, capsys):
    argv = [
        "generate",
        PROMPT,
        "--model",
        model,
        "--num-frames",
        "1",
        "--num_inference_steps",
        "1",
        "--output",
        "s.png",
    ]
    assert main(argv) == 0
    assert read_video(here / "s.png").frames.shape == (1, 32, 32, 3)


def test_an_image_and_latents(model, here, capsys):
    Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save("first.png")
    argv = ["generate", PROMPT, "--model", model, "--image", "first.png", "--resize", "stretch", "--save_latents"]
    assert main([*argv, "--output", "a.mp4", "--seed", "1"]) == 0
    meta = json.loads((here / "a.json").read_text())
    assert meta["image"] == {"image": "first.png", "height": 64, "width": 64, "resize": "stretch"}
    with np.load(here / "a.latents.npz") as saved:
        assert saved["latents"].shape == (2, 4, 4, 4)


def test_the_hash_is_of_the_frames_of_the_python_call(model, tiny, here):
    from dit_video.generate.pipeline import VideoPipeline

    assert main(["generate", PROMPT, "--model", model, "--seed", "9", "--output", "a.mp4"]) == 0
    meta = json.loads((here / "a.json").read_text())
    assert meta["frames_sha256"] == frames_sha256(VideoPipeline(tiny)(PROMPT, seed=9).frames[0])


@pytest.mark.parametrize(
    "argv, code, message",
    [
        ([""], 2, "The prompt is empty"),
        ([], 2, "No prompt"),
        ([PROMPT, "--num_frames", "50"], 2, "num_frames=50: this model needs 4k+1. Use 49 or 53"),
        ([PROMPT, "--height", "500"], 2, "height=500 must be a multiple of 16"),
        ([PROMPT, "--seconds", "5", "--num_frames", "97", "--fps", "16"], 2, "disagree"),
        ([PROMPT, "--image", "none.png"], 3, "no such file"),
        ([PROMPT, "--keyframe", "2=none.png"], 3, "no such file"),
        ([PROMPT, "--video", "none.mp4", "--strength", "0.5"], 3, "no such file"),
        ([PROMPT, "--output", "a.avi"], 2, "Use one of .mp4"),
        ([PROMPT, "--output", "/proc/nowhere/a.mp4"], 2, "cannot write"),
        ([PROMPT, "--solver", "magic"], 2, "unipc"),
        ([PROMPT, "--num_frames", "65", "--strict"], 2, "trained to"),
        ([PROMPT * 10, "--strict"], 2, "Dropped"),
        ([PROMPT, "--seeds", "4"], 2, "--seed"),
        ([PROMPT, "--keyframe", "first.png"], 2, "such as 24=path.png"),
        ([PROMPT, "--keyframe", "3=a.png", "--keyframe", "3=b.png"], 2, "given twice"),
        ([PROMPT, "--prompt_at", "0.2", "a star", "--prompt_at", "0.1", "a ring"], 2, "times must rise"),
        ([PROMPT, "--preview_every", "0"], 2, "preview_every=0"),
    ],
)
def test_bad_input(model, here, capsys, monkeypatch, argv, code, message):
    from dit_video.generate.pipeline import VideoPipeline

    monkeypatch.setattr(VideoPipeline, "run", lambda *_, **__: pytest.fail("it began to sample"))
    assert main(["generate", *argv, "--model", model]) == code
    out, err = said(capsys)
    assert out == ""
    assert message in err
    assert not list(here.rglob("*.mp4"))


def test_a_prompt_that_is_too_long_is_said_on_stderr(model, here, capsys):
    argv = ["generate", " ".join([PROMPT] * 8), "--model", model, "--num_inference_steps", "1", "--output", "a.gif"]
    assert main([*argv, "--quiet"]) == 0
    out, err = said(capsys)
    (line,) = [line for line in err.splitlines() if "limit 32" in line]
    assert (out, 'Dropped: "' in line) == ("a.gif\n", True)


def test_the_seed_is_printed_when_all_else_is_quiet(model, here, capsys):
    assert main(["generate", PROMPT, "--model", model, "--output", "a.gif", "--quiet"]) == 0
    out, err = said(capsys)
    seed = json.loads((here / "a.json").read_text())["seed"]
    assert (out, err) == ("a.gif\n", f"seed {seed}\n")


def test_without_a_terminal_the_phases_are_lines(model, here, capsys):
    assert main(["generate", PROMPT, "--model", model, "--output", "a.gif"]) == 0
    lines = said(capsys)[1].splitlines()
    places = [
        next(i for i, line in enumerate(lines) if line.startswith(name)) for name in ("compile", "denoise", "decode")
    ]
    assert places == sorted(places)


def test_an_unknown_model(here, capsys):
    assert main(["generate", PROMPT, "--model", "nowhere"]) == 2
    assert "nowhere" in said(capsys)[1]


def test_existing_files_are_kept(model, here, capsys):
    (here / "a.mp4").write_text("older")
    assert main(["generate", PROMPT, "--model", model, "--output", "a.mp4"]) == 2
    assert "--force" in said(capsys)[1]
    assert (here / "a.mp4").read_text() == "older"


def test_an_interrupted_run_keeps_its_latents(model, here, capsys, monkeypatch):
    from dit_video.generate import pipeline

    def stop(*_, **__):
        raise pipeline.Unfinished("interrupted at step 2/3", Interrupted, np.zeros((1, 2, 4, 4, 4)), None)

    monkeypatch.setattr(pipeline.VideoPipeline, "_whole", stop)
    assert main(["generate", PROMPT, "--model", model, "--output", "a.mp4"]) == 130
    assert "a.latents.npz" in said(capsys)[1]
    assert (here / "a.latents.npz").is_file()
    assert not (here / "a.mp4").exists()


@pytest.mark.parametrize("whole", [True, False])
def test_a_full_disk_keeps_what_was_made(model, here, capsys, monkeypatch, whole):
    """The second of two clips finds no room: the first stays, the second's latents are kept, and a line says so."""
    from dit_video.data.video import VideoWriter
    from dit_video.generate.film import Film
    from dit_video.generate.pipeline import VideoPipeline

    encode = VideoWriter._encode

    def full(self, frame):
        if self.path.stem == "a_1":
            raise OSError(errno.ENOSPC, "No space left on device")
        encode(self, frame)

    monkeypatch.setattr(VideoWriter, "_encode", full)
    if not whole:
        monkeypatch.setattr(VideoPipeline, "whole", lambda self, request: False)
        monkeypatch.setattr(Film, "_decoded", lambda self: iter(np.zeros((5, 32, 32, 3), np.uint8)))
    assert main(["generate", PROMPT, "a star", "--model", model, "--seed", "1", "--output", "a.mp4"]) == 2
    (line,) = [line for line in said(capsys)[1].splitlines() if line.startswith("dit-video:")]
    assert "a_1.mp4 cannot be written: No space left on device. Make room" in line
    assert line.endswith("Kept: a_0.mp4, a_1.latents.npz")
    assert sorted(path.name for path in here.iterdir()) == ["a_0.json", "a_0.mp4", "a_1.latents.npz"]
    assert load_latents("a_1.latents.npz")[1]["clip"] == 1


def test_clips_that_are_whole_are_kept_with_their_latents(model, here, capsys, monkeypatch):
    """Stopped in the second part of a call, with --save_latents."""
    from dit_video.generate import pipeline

    decode, calls = pipeline.VideoPipeline._decode, []

    def once(self, *args):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return decode(self, *args)

    monkeypatch.setattr(pipeline, "AT_ONCE", 1)
    monkeypatch.setattr(pipeline.VideoPipeline, "_decode", once)
    argv = ["generate", PROMPT, "a star", "--model", model, "--seed", "1", "--save_latents", "--output", "a.gif"]
    assert main(argv) == 130
    names = ["a_0.gif", "a_0.json", "a_0.latents.npz", "a_1.latents.npz"]
    assert sorted(path.name for path in here.iterdir()) == names


def test_latents_are_on_disk_before_they_are_decoded(model, here, capsys, monkeypatch):
    """What ends the process then, as a system that is out of memory does, asks nobody."""
    from dit_video.generate.pipeline import VideoPipeline

    def killed(self, *_):
        raise SystemExit(137)

    line = ["generate", PROMPT, "a star", "--model", model, "--seed", "1", "--output"]
    with monkeypatch.context() as patched:
        patched.setattr(VideoPipeline, "_decode", killed)
        with pytest.raises(SystemExit):
            main([*line, "a.gif"])
    assert sorted(path.name for path in here.iterdir()) == ["a_0.latents.npz", "a_1.latents.npz"]
    assert main([*line, "a.gif"]) == 2 and "a_0.latents.npz exists" in said(capsys)[1]
    assert main([*line, "b.gif"]) == 0
    assert not list(here.glob("b*.npz"))
    for clip in range(2):
        assert main(["decode", f"a_{clip}.latents.npz", "--output", f"a_{clip}.gif"]) == 0
        metas = [json.loads((here / f"{name}_{clip}.json").read_text()) for name in "ab"]
        assert metas[0]["prompt"] == metas[1]["prompt"] == (PROMPT, "a star")[clip]
        np.testing.assert_allclose(
            *(read_video(here / f"{name}_{clip}.gif").frames.astype(float) for name in "ab"), atol=16
        )


def test_a_disk_that_takes_nothing_is_told_in_one_line(model, here, capsys, monkeypatch):
    from dit_video.generate import clip

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(clip.np, "savez", full)
    monkeypatch.setattr("dit_video.data.video.VideoWriter._encode", full)
    assert main(["generate", PROMPT, "--model", model, "--seed", "1", "--output", "a.mp4"]) == 2
    (line,) = [line for line in said(capsys)[1].splitlines() if line.startswith("dit-video:")]
    assert "a.mp4 cannot be written" in line and "a.latents.npz cannot be written" in line
    assert list(here.iterdir()) == []


def test_help_does_not_load_jax():
    code = (
        "import sys; from dit_video.cli.main import main\ntry: main(['generate', '--help'])\nexcept SystemExit: pass\n"
    )
    code += "assert 'jax' not in sys.modules and 'numpy' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for flag in ("--num_frames", "--seconds", "--aspect", "--guidance_scale", "--negative_prompt", "--save_latents"):
        assert flag in done.stdout


def test_a_variant_by_its_flags(here, checkout, capsys):
    """A model with a control branch: a first frame, and a picture to refer to, for which the file has no frames."""
    variant = runpy.run_path(str(checkout / "tests" / "weights" / "variants.py"))["variant"]
    save_model(variant("vace"), here / "vace")
    for name, level in (("first", 40), ("seen", 220)):
        Image.fromarray(np.full((32, 32, 3), level, np.uint8)).save(here / f"{name}.png")
    command = ["generate", PROMPT, "--model", "vace", "--seed", "1", "--num_inference_steps", "2", "--output", "a.gif"]
    assert main([*command, "--image", "first.png", "--reference", "seen.png", "--conditioning_scale", "0.5"]) == 0
    meta = json.loads((here / "a.json").read_text())
    assert [{"image", "reference"} & set(source) for source in meta["given"]] == [{"image"}, {"reference"}]
    assert (meta["num_frames"], meta["conditioning_scale"]) == (5, 0.5)
    assert read_video(here / "a.gif").frames.shape[0] == 5
    said(capsys)
    assert main([*command, "--force", "--guidance_scale_2", "2"]) == 2
    assert "--guidance_scale_2 is for models of two denoisers" in said(capsys)[1]


@pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 (fake) devices")
@pytest.mark.parametrize(
    ("mesh", "more"),
    [
        ("data=2,context=2,tensor=2", []),
        pytest.param("fsdp=4", ["--image", "first.png"], marks=pytest.mark.slow),
        pytest.param(
            "context=8",
            ["--long", "window", "--num_frames", "17", "--window", "3", "--overlap", "1"],
            marks=pytest.mark.slow,
        ),
        pytest.param("context=4", ["--long", "extend", "--num_frames", "17", "--window", "3"], marks=pytest.mark.slow),
    ],
)
def test_a_clip_on_a_mesh_is_the_clip_of_one_device_and_is_made_again(model, here, capsys, monkeypatch, mesh, more):
    Image.fromarray(np.full((32, 32, 3), 90, np.uint8)).save("first.png")
    line = ["generate", PROMPT, "--model", model, "--seed", "4", "--save_latents", *more]
    assert main([*line, "--output", "one.mp4"]) == 0
    assert main([*line, "--output", "many.mp4", "--mesh", mesh]) == 0
    one, many = (load_latents(here / f"{name}.latents.npz")[0] for name in ("one", "many"))
    np.testing.assert_allclose(many, one, atol=1e-4)
    sizes = json.loads((here / "many.json").read_text())["mesh"]
    assert np.prod([*sizes.values()]) == 8 and "mesh" not in json.loads((here / "one.json").read_text())
    said(capsys)
    assert main(["inspect", "many.mp4", "--rerun", "--json"]) == 0
    assert json.loads(said(capsys)[0])["rerun"]["identical"]
    in_force, plain = [], decode.decode_frames

    def spied(*args):
        in_force.append(dict(jax.sharding.get_abstract_mesh().shape))
        return plain(*args)

    monkeypatch.setattr(decode, "decode_frames", spied)
    assert main(["decode", "many.latents.npz", "--output", "again.mp4", "--mesh", mesh]) == 0
    assert in_force and all(found == sizes for found in in_force)
    again, before = (read_video(name).frames.astype(int) for name in ("again.mp4", "many.mp4"))
    assert np.abs(again - before).mean() < 0.5  # which the compression adds


@pytest.mark.parametrize("mesh", ["context=3", "contxt=4", "data=0", "data=2,data=4", "8", "data=x"])
def test_a_mesh_that_cannot_be(model, here, capsys, mesh):
    assert main(["generate", PROMPT, "--model", model, "--mesh", mesh]) == 2
    assert "mesh" in said(capsys)[1] and not (here / "outputs").exists()
