"""`dit-video inspect`: reads how a clip was made, makes it again, and says what stands in the way."""

import json
import shutil
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from dit_video.cli import generate
from dit_video.cli import inspect as inspect_verb
from dit_video.cli.main import main
from dit_video.data.video import write_video
from dit_video.generate.decode import Tiles
from dit_video.generate.pipeline import VideoPipeline
from dit_video.weights.folder import save_model

PROMPT = "a red circle moves right"


@pytest.fixture(scope="module")
def made(tiny, tmp_path_factory):
    """A folder with a model and clips of it: one alone, and two in a batch that begin with a picture."""
    folder = tmp_path_factory.mktemp("made")
    save_model(tiny, folder / "model")
    Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(folder / "first.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generate, "prepare_jax", lambda device: None)
        patch.chdir(folder)
        common = ["--model", "model", "--seed", "3", "--quiet", "--num_inference_steps", "2"]
        assert main(["generate", PROMPT, *common, "--output", "one.mp4", "--negative_prompt", "blue"]) == 0
        pair = [PROMPT, "a blue star", *common, "--image", "first.png", "--output", "pair.gif"]
        assert main(["generate", *pair]) == 0
    return folder


@pytest.fixture(autouse=True)
def here(made, tmp_path, monkeypatch):
    """A copy of the folder to work in."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(generate, "prepare_jax", lambda device: None)
    return tmp_path


@pytest.fixture
def inspect(capsys):
    """`inspect(...)`: (exit code, what stands on stdout as JSON, stderr)."""

    def inspect(*argv):
        code = main(["inspect", "--json", *argv])
        out, err = capsys.readouterr()
        return code, json.loads(out) if out else None, err

    return inspect


def rewrite(file, **changes):
    """The clip's JSON with changes, as a file that inspect reads."""
    metadata = json.loads(file.with_suffix(".json").read_text()) | changes
    file.with_name("changed.json").write_text(json.dumps(metadata))
    return "changed.json"


def test_it_tells_what_the_file_tells(here, inspect, capsys):
    (here / "one.json").unlink()
    code, report, _ = inspect("one.mp4")
    assert code == 0
    assert (report["metadata"]["prompt"], report["metadata"]["seed"]) == (PROMPT, 3)
    assert main(["inspect", "one.mp4"]) == 0
    out = capsys.readouterr().out
    assert f"prompt               {PROMPT}" in out
    assert "negative_prompt      blue" in out


def test_the_json_beside_it_is_enough(here, inspect):
    metadata = json.loads((here / "one.json").read_text())
    write_video(here / "bare.mp4", np.zeros((5, 32, 32, 3), np.uint8), 8.0)
    code, _, err = inspect("bare.mp4")
    assert (code, "does not say how it was made" in err) == (2, True)
    (here / "bare.json").write_text(json.dumps(metadata))
    assert inspect("bare.mp4")[1]["metadata"] == metadata
    assert inspect("one.json")[1]["metadata"] == metadata


@pytest.mark.parametrize("name", ["one.mp4", "pair_1.gif"])
def test_made_again_it_is_the_same(name, inspect):
    code, report, _ = inspect(name, "--rerun")
    again = report["rerun"]
    assert code == 0
    assert again["identical"]
    assert again["frames_sha256"] == again["stored_sha256"] == report["metadata"]["frames_sha256"]
    assert again["changed"] == []


FOOTAGE = {
    "extend": ["--extend", "one.mp4"],
    "before": ["--extend", "one.mp4", "--before", "--resize", "pad", "--height", "48"],
    "inpaint": ["--video", "one.mp4", "--mask", "mask.png"],
    "begun on": ["--video", "one.mp4", "--strength", "0.5"],
    "all anew": ["--video", "one.mp4", "--strength", "1"],
    "guided otherwise": ["--guidance_interval", "0.4", "1", "--guidance_rescale", "0.5", "--cfg_zero_star"],
    "between": ["--video", "one.mp4", "--interpolate", "2"],
    "windows": ["--num_frames", "13", "--long", "window", "--window", "3", "--overlap", "1", "--extend", "one.mp4"],
}


@pytest.mark.slow
@pytest.mark.parametrize("flags", FOOTAGE.values(), ids=FOOTAGE)
def test_made_of_footage_again(here, inspect, capsys, flags):
    """What footage was used, and how, is in the file; that of the second of two clips too."""
    Image.fromarray(np.repeat(np.uint8([[0, 255]]), 32, 0).repeat(16, 1)).save("mask.png")
    words = [PROMPT, "a blue star", "--model", "model", "--seed", "5", "--num_inference_steps", "2"]
    assert main(["generate", *words, *flags, "--quiet", "--output", "new.mp4"]) == 0
    capsys.readouterr()
    code, report, err = inspect("new_1.mp4", "--rerun")
    assert code == 0, err or report["rerun"]
    (here / "one.mp4").unlink()
    assert inspect("new_1.mp4", "--rerun")[0] == (3 if "one.mp4" in flags else 0)


def test_decoded_as_it_was_then(here, inspect, capsys, monkeypatch):
    """The second of two clips of one prompt with a time line, made when memory was scarce: tiles blend, and round in
    their own way."""
    with monkeypatch.context() as scarce:
        scarce.setattr(VideoPipeline, "whole", lambda *_: False)
        scarce.setattr("dit_video.generate.pipeline.tiles_for", lambda *_: (Tiles(3, 3, 1), 1))
        line = ["--num_frames", "9", "--num_inference_steps", "1", "--num_videos_per_prompt", "2", "--seed", "3"]
        line += ["--prompt_at", "0.5", "a blue star", "--quiet", "--output", "new.gif"]
        assert main(["generate", PROMPT, "--model", "model", *line]) == 0
    capsys.readouterr()
    code, report, _ = inspect("new_1.gif", "--rerun")
    assert (code, report["metadata"]["decoded"]) == (0, {"slots": 1, "tiles": [3, 3, 1]})
    assert report["rerun"]["changed"] == []
    assert inspect(rewrite(here / "new_1.gif", decoded={"slots": 4, "tiles": None}), "--rerun")[0] == 1
    name = rewrite(here / "new_1.gif", decoded={"slots": 1, "tiles": [3, 3, 1], "dtype": "bfloat16"})
    told = inspect_verb.changes(json.loads((here / name).read_text()), report["metadata"])
    assert len(told) == 1 and told[0].startswith("decoded: {'slots': 1")


def test_made_with_an_adapter_again(here, inspect, capsys):
    """What was merged into the weights stands in the file; without it they are other weights."""
    ends = {"A": (1, 32), "B": (32, 1)}
    save_file({f"transformer.blocks.0.attn1.to_q.lora_{end}.weight": np.ones(shape, np.float32)
               for end, shape in ends.items()}, "style.safetensors")  # fmt: skip
    line = ["--model", "model", "--seed", "3", "--num_inference_steps", "2", "--lora", "style.safetensors=0.5"]
    assert main(["generate", PROMPT, *line, "--quiet", "--output", "styled.mp4"]) == 0
    capsys.readouterr()
    code, report, _ = inspect("styled.mp4", "--rerun")
    assert (code, report["metadata"]["lora"]) == (0, ["style.safetensors=0.5"])
    code, _, err = inspect(rewrite(here / "styled.mp4", lora=[]), "--rerun")
    assert (code, "model now has" in err) == (3, True)


def test_other_frames_are_told_from_the_stored_ones(here, inspect, capsys):
    name = rewrite(here / "one.mp4", seed=4, versions={"dit_video": "0.0.9", "jax": "0.1", "python": "3.11.7"})
    code, report, _ = inspect(name, "--rerun")
    assert code == 1
    assert not report["rerun"]["identical"]
    assert "versions.dit_video: 0.0.9 -> " in report["rerun"]["changed"][0]
    shutil.copy("one.mp4", "changed.mp4")
    write_video(here / "changed.mp4", np.zeros((5, 32, 32, 3), np.uint8), 8.0)
    assert main(["inspect", "changed.mp4", "--rerun"]) == 1
    out = capsys.readouterr().out
    assert "NOT identical" in out
    assert "of 255 away" in out
    assert "changed: versions.jax: 0.1 -> " in out


def test_other_weights_are_not_tried(here, inspect):
    name = rewrite(here / "one.mp4", model={"name": "model", "hash": "0123456789ab"})
    code, _, err = inspect(name, "--rerun")
    assert code == 3
    assert "made with the weights 0123456789ab; model now has" in err


def test_a_model_or_a_picture_that_has_moved(here, inspect):
    (here / "model").rename(here / "elsewhere")
    (here / "first.png").rename(here / "second.png")
    code, _, err = inspect("pair_0.gif", "--rerun")
    assert code == 3
    assert "is not at first.png" in err
    code, _, err = inspect("pair_0.gif", "--rerun", "--image", "second.png")
    assert code == 3
    assert "Give --model" in err
    code, report, _ = inspect("pair_0.gif", "--rerun", "--image", "second.png", "--model", "elsewhere")
    assert code == 0
    assert report["rerun"]["identical"]


@pytest.mark.parametrize(
    "changes, code, message",
    [
        ({"frames_sha256": None}, 2, "no hash of its frames"),
        ({"frames_sha256": None, "by": "run.py"}, 2, "made by an export's run.py"),
        ({"teleport": {"to": "mars"}}, 2, "was made with teleport"),
        ({"latents": "given"}, 2, "was made with latents"),
        ({"given": [{"hologram": "old.mp4", "frames": 9}]}, 2, "was made with given"),
        ({"given": [{"extend": "old.mp4", "used": 9}]}, 2, "does not say on which side of its footage it is"),
        ({"given": [{"extend": "old.mp4", "used": 9, "before": False}]}, 3, "made from is not at old.mp4"),
        ({"image": {"image": "given", "height": 8, "width": 8}}, 3, "given from Python"),
        ({"batch": [""]}, 2, "empty"),
    ],
)
def test_what_cannot_be_made_again(here, inspect, changes, code, message):
    got, _, err = inspect(rewrite(here / "one.mp4", **changes), "--rerun")
    assert (got, message in err) == (code, True), err


def test_arguments_of_all_kinds_are_found(here):
    picture = {"image": "first.png", "height": 64, "width": 64, "resize": "pad"}
    metadata = json.loads((here / "one.json").read_text()) | {
        "num_frames": 16, "loop": True, "prompt_at": [[1.0, "a blue star"]], "cache": "safe",
        "long": {"mode": "window", "why": "x", "window": 5, "overlap": 2, "noise": "shuffled", "rope": None},
        "given": [{"frame": frame} | picture for frame in (0, 8, 15)],
    }  # fmt: skip
    found = inspect_verb.arguments(types.SimpleNamespace(image=None, file=here / "one.mp4"), metadata)
    wanted = {
        "num_frames": 17, "loop": True, "prompt_at": [[1.0, "a blue star"]], "cache": "safe", "long": "window",
        "window": 5, "overlap": 2, "noise_order": "shuffled", "rope": None, "resize": "pad", "seed": 3,
        "image": Path("first.png"), "keyframes": {8: Path("first.png")}, "negative_prompt": "blue",
        "last_image": Path("first.png"),
    }  # fmt: skip
    assert {name: found[name] for name in wanted} == wanted


def test_of_several_pictures_each_is_found(here, inspect):
    """One --image does not stand for all of them."""
    for name in ("a", "b"):
        shutil.copy("first.png", f"{name}.png")
    sources = [{"frame": f, "image": f"gone/{n}.png", "height": 64, "width": 64, "resize": "crop"}
               for f, n in ((0, "x"), (4, "y"))]  # fmt: skip
    metadata = json.loads((here / "one.json").read_text()) | {"given": sources}
    told = types.SimpleNamespace(file=here / "one.mp4", image=["a.png", "b.png"])
    found = inspect_verb.arguments(told, metadata)
    assert (found["image"], found["last_image"]) == (Path("a.png"), Path("b.png"))
    name = rewrite(here / "one.mp4", given=sources)
    code, _, err = inspect(name, "--rerun", "--image", "a.png")
    assert (code, "gone/x.png (frame 0), gone/y.png (frame 4)" in err) == (2, True), err
    code, _, err = inspect("one.mp4", "--rerun", "--image", "a.png")
    assert (code, "made from: none" in err) == (2, True), err
    assert inspect(name, "--rerun", "--image", "a.png", "--image", "nowhere.png")[0] == 3


def test_a_stream_without_a_frame(here, inspect):
    import av

    with av.open(str(here / "empty.mp4"), "w", options={"movflags": "empty_moov+frag_keyframe"}) as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        container.start_encoding()
    code, _, err = inspect("empty.mp4")
    assert (code, "empty.mp4 holds a video stream without a frame" in err) == (2, True), err


@pytest.mark.parametrize("name, code", [("nowhere.mp4", 3), ("broken.mp4", 2), ("broken.json", 2)])
def test_files_that_cannot_be_read(here, inspect, name, code):
    (here / "broken.mp4").write_bytes(b"not a video")
    (here / "broken.json").write_text("{")
    assert inspect(name)[0] == code
