"""Measurements of clips: renders in a model's place get what they deserve, and what is wrong shows in the numbers."""

import argparse
import contextlib
import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from dit_video.cli.main import main
from dit_video.data.toyworld.draw import make_scene
from dit_video.evals import toyworld
from dit_video.evals.prompts import suite
from dit_video.evals.references import renders
from dit_video.generate.pipeline import VideoPipeline
from dit_video.weights.folder import save_model

pytestmark = pytest.mark.usefixtures("optimized")


@pytest.fixture(scope="module")
def judged(load):
    tool = load("judged.py")
    tool["steps"].__globals__.update(STEPS=(4, 8), SEEDS=8)
    return tool


@pytest.fixture(scope="module")
def tiny_folder(tiny, tmp_path_factory):
    return str(save_model(tiny, tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture
def measured(load, monkeypatch, tmp_path, tiny_folder, with_optimizations):
    """Stores a measurement of a model in miniature, two clips, commands run in this process; what is stored."""
    tool = load("measure.py")
    monkeypatch.setattr("dit_video.evals.references._TRAINING", 300)
    monkeypatch.setattr("dit_video.cli.generate.prepare_jax", lambda device: None)

    def command(*args, cwd):
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            assert main([*args, "--json", "--quiet"]) == 0
        return json.loads(out.getvalue()), 0.0

    def measure(what):
        monkeypatch.setitem(tool[what].__globals__, "command", command)
        monkeypatch.setitem(tool[what].__globals__, "ASPECTS", "48x32")
        tool["main"]([what, "--model", tiny_folder, "--count", "2", "--out", str(tmp_path)])
        stored = json.loads((tmp_path / f"{what}.json").read_text())
        assert stored["made_by"] == f"python tools/measure.py {what} --model {tiny_folder} --count 2"
        return stored

    return measure


class Renderer:
    """In the place of a pipeline: renders what is asked, each seed another scene of the same words, or the same one."""

    def __init__(self, same=False):
        self.same, self.hash, self.calls = same, "0" * 12, []
        defaults = SimpleNamespace(height=64, width=64, num_frames=9, fps=8.0, guidance=3.0)
        self.model = SimpleNamespace(defaults=defaults)
        self.known = {one.prompt: one for one in suite(8, "plain")}

    def __call__(self, prompts, seed=0, image=None, **how):
        single = isinstance(prompts, str)
        self.calls.append(how)
        scenes = [
            self.scene(prompt, seed, 0 if self.same else i) for i, prompt in enumerate([prompts] * single or prompts)
        ]
        if how.get("num_inference_steps") == 4:  # far too few: every clip is that of the first prompt
            scenes = [next(iter(self.known.values())).scene] * len(scenes)
        frames = list(renders(scenes, 9, 64, 64))
        return SimpleNamespace(frames=frames, metadata=[{"seconds": {"denoise": 0.5}}])

    def scene(self, prompt, seed, i):
        if prompt in self.known:
            return self.known[prompt].scene
        return self.words[prompt](seed, i)


def run(judged, what, pipe, folder, count):
    judged[what].__globals__["pipeline"] = lambda args: pipe
    judged[what](argparse.Namespace(model=None, count=count, out=folder, made_by="a command"))
    return json.loads((folder / f"{what}.json").read_text())


def test_rows_are_stored_as_they_are_done_and_found_again(rows_of, tmp_path):
    def rows(**settings):
        return rows_of("table", tmp_path, ["a", "b", "score"], 2, settings, "a command")

    first = rows(count=3)
    first.add(["x", 1, 0.5], note="of two")
    first.add(["x", 2, 0.6])
    again = rows(count=3)
    assert ("x", 1) in again and ("x", 3) not in again and ("y", 1) not in again
    again.add(["x", 1, 0.7])
    stored = json.loads((tmp_path / "table.json").read_text())
    assert stored["rows"] == [["x", 2, 0.6], ["x", 1, 0.7]]
    assert (stored["note"], stored["made_by"]) == ("of two", "a command")
    with pytest.raises(SystemExit, match="count"):
        rows(count=4)


def test_scores_by_steps_go_on_where_they_were_stopped(judged, tmp_path):
    pipe = Renderer()
    stored = run(judged, "steps", pipe, tmp_path, 4)
    table = {tuple(row[:2]): dict(zip(stored["columns"][2:], row[2:], strict=True)) for row in stored["rows"]}
    assert len(table) == 4 * 2
    assert table["unipc", 8]["all"] == "100 %" and table["unipc", 8]["seconds a clip"] == 0.5
    assert table["euler", 4]["colour"] == "25 %"
    done = len(pipe.calls)
    stored["rows"].pop()
    (tmp_path / "steps.json").write_text(json.dumps(stored))
    assert len(run(judged, "steps", pipe, tmp_path, 4)["rows"]) == len(table)
    assert len(pipe.calls) == done + 2


def test_a_given_first_frame_is_kept_and_goes_on(judged, tmp_path):
    table = dict(run(judged, "image", Renderer(), tmp_path, 3)["rows"])
    assert table["PSNR of the first frame, dB: mean"] > 40
    assert table["identity: the given object's colour and shape in at least nine frames of ten"] == "100 %"
    assert table["motion as asked"] == "100 %" and "100 % (n 1)" in table["motion by what was asked"]
    table = dict(run(judged, "image", wrong_first(), tmp_path, 3)["rows"])
    assert table["identity: the given object's colour and shape in at least nine frames of ten"] == "33 %"
    assert table["the worst"] < 28


def wrong_first():
    """Makes the first prompt's clip whatever is asked."""
    pipe = Renderer()
    first = next(iter(pipe.known.values()))
    pipe.known = dict.fromkeys(pipe.known, first)
    return pipe


def test_seeds_that_do_not_differ_have_no_spread(judged, tmp_path, monkeypatch):
    def words(given, number, height, width):
        prompt, places = starts(given, number, height, width)
        prompt += "."  # not one of the list
        kinds[prompt] = lambda seed, i: make_scene(np.random.default_rng((seed, i)), **given)
        return prompt, places

    starts, kinds = toyworld.starts, {}
    monkeypatch.setattr(toyworld, "starts", words)
    ratios = []
    for same in (False, True):
        pipe = Renderer(same)
        pipe.words = kinds
        (total, *each) = run(judged, "start", pipe, tmp_path, 2)["rows"]
        assert total[:2] == ["all", 2 * 8] and len(each) == 2
        ratios.append(total[4])
    assert 0.75 < ratios[0] < 1.3
    assert ratios[1] < 0.01


def test_a_jump_where_the_given_frames_end_is_a_seam(judged):
    (asked,) = [one for one in suite(12, "plain") if one.objects[0]["motion"] == "circles"][:1]
    (clip,) = renders([asked.scene], 33, 64, 64)
    assert judged["ratio"](clip) < judged["JUMP"]
    brighter = np.concatenate([clip[:17], np.clip(clip[17:].astype(int) + 8, 0, 255).astype(np.uint8)])
    assert judged["ratio"](brighter) > judged["JUMP"]


def test_a_note_and_a_picture_stand_below_a_table(load):
    data = {"columns": ["a"], "rows": [[1]], "made_by": "a command", "note": "a law", "picture": "tools/x.svg"}
    lines = load("tables.py")["table"](data).splitlines()
    assert lines == ["| a |", "| --- |", "| 1 |", "", "a law", "", "![a law](tools/x.svg)", "", "`a command`"]


@pytest.mark.slow
def test_the_world_is_stored_in_every_aspect_with_the_free_prompts(measured, load, tmp_path):
    stored = measured("world")
    assert stored["settings"]["prompts"] == "world" and stored["settings"]["heldout"] is True
    assert stored["scores"]["all"]["n"] == 2 and list(stored["splits"]["size"]) == ["48x32"]
    assert stored["free"]["count"] == 2 and set(stored["reference"]) == {"renders", "shuffled"}
    assert "picture" not in stored and Image.open(tmp_path / "world_worst.png").size[0] > 400
    text = load("tables.py")["table"](stored)
    assert "| size: 48x32 | renders | shuffled |" in text
    assert "| boil | " in text and "| 2 free prompts | as asked (95 % interval) |" in text


def test_what_the_vae_loses_is_stored_with_textures_apart(measured):
    stored = measured("reconstruction")
    rows = {row[0]: row[1:] for row in stored["rows"]}
    found = stored["report"]["scores"]["psnr"]["value"]
    assert 3 < found < 30 and rows["PSNR, dB"][0].startswith(f"{found:.3g} (") and rows["PSNR, dB"][0].endswith("n 2)")
    assert {"SSIM", "flicker added, levels of 255"} <= set(rows) and len(stored["columns"]) == 4
    assert rows["bytes of frames over those of latents in float16"][0] == stored["bytes"]["ratio"]


def test_the_worst_clips_are_a_picture(load, tmp_path):
    """Of the first prompt's clip for four prompts, a line of words each."""
    load("pictures.py")["judged"](wrong_first(), 0, tmp_path, 4)
    width, height = Image.open(tmp_path / "worst.png").size
    assert width > 5 * 64 + 400 and height > 4 * 64


@pytest.mark.slow
def test_the_seam_of_a_model(judged, tmp_path, tiny):
    stored = run(judged, "seam", VideoPipeline(tiny), tmp_path, 2)
    table = {row[0]: row for row in stored["rows"]}
    assert set(table) == {"in the file", "decoded as one", "renders", "renders through the VAE"}
    assert table["renders"][3] == "100 %" and table["renders"][1] == pytest.approx(1, abs=0.2)
    assert all(len(own) == 2 and min(own) > 0 for own in stored["ratios"].values())
