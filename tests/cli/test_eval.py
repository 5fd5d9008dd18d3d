"""`dit-video eval`, with a pipeline that renders instead of generating."""

import json
import re
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from dit_video.cli.eval import FREE
from dit_video.cli.main import main
from dit_video.data.toyworld.draw import make_scene
from dit_video.evals.prompts import suite
from dit_video.evals.references import renders

pytestmark = pytest.mark.usefixtures("optimized")
ONE_STEP = ("--num_inference_steps", "1", "--guidance_scale", "1")


@cache
def scenes():
    """What prompts ask for."""
    asked = (*suite(12), *suite(12, "plain"), *suite(100, "free"))
    return {one.prompt: one.scene for one in asked if one.scene is not None}


class Renderer:
    """Called as `VideoPipeline`; answers with renders of what is asked, or, if `lazy`, of the first prompt."""

    def __init__(self, lazy=False):
        self.lazy, self.calls, self.hash = lazy, [], "0" * 12
        defaults = SimpleNamespace(height=64, width=64, num_frames=9, fps=8.0)
        self.model = SimpleNamespace(defaults=defaults, name="renderer")
        self.known = scenes()

    def scene(self, prompt, i):
        if self.lazy:
            return next(iter(self.known.values()))
        if prompt in self.known:
            return self.known[prompt]
        return make_scene(np.random.default_rng(i), shape="circle", colour="red", motion="still")

    def __call__(self, prompts, seed, **more):
        self.calls.append((len(prompts), seed, more))
        scenes = [self.scene(prompt, i) for i, prompt in enumerate(prompts)]
        return SimpleNamespace(frames=list(renders(scenes, more["num_frames"] or 9, more["height"], more["width"])))


@pytest.fixture
def pipe(monkeypatch):
    made = Renderer()
    monkeypatch.setattr("dit_video.evals.references._TRAINING", 300)  # scenes to choose from: fewer do
    monkeypatch.setattr("dit_video.generate.pipeline.VideoPipeline.from_pretrained", lambda *args, **kwargs: made)
    return made


def test_what_comes_after_the_main_suite_does_not_lose_it(pipe, tmp_path, monkeypatch):
    whole = Renderer.__call__

    def fails(self, prompts, seed, **more):
        if self.calls:
            raise MemoryError("no more")
        return whole(self, prompts, seed, **more)

    monkeypatch.setattr(Renderer, "__call__", fails)
    argv = ["eval", "--count", "4", "--out", str(tmp_path / "r"), "--seeds", "2", "--references", "0", "--quiet"]
    assert main(argv) == 4
    report = json.loads((tmp_path / "r" / "report.json").read_text())
    assert report["scores"]["all"]["value"] == 1.0
    assert report["model"]["name"] == "renderer" and "diversity" not in report


def test_report_of_a_perfect_model(pipe, tmp_path, capsys):
    assert main(["eval", "--count", "12", "--out", str(tmp_path / "r"), "--json", "--seeds", "2", "--quiet"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["suite"], printed["count"], printed["model"]["name"]) == ("toyworld", 12, "renderer")
    assert {"scores", "splits", "reference", "values", "settings", "seconds"} <= set(printed)
    assert printed["scores"]["all"]["value"] == 1.0
    assert set(printed["reference"]) == {"renders", "shuffled", "frozen", "nearest"}
    assert printed["reference"]["shuffled"]["main"] < 0.1
    assert printed["reference"]["frozen"]["motion"] < 0.2 < 0.9 < printed["reference"]["frozen"]["shape"]
    assert printed["reference"]["nearest"]["colour"] < 0.9
    assert printed["quality"]["flicker"]["value"] == printed["quality"]["jitter"]["value"] == 1.0
    assert printed["diversity"]["n"] == 8
    spread, ratio = printed["diversity"]["spread"], printed["diversity"]["ratio"]
    assert 0 < spread["low"] < spread["value"] < spread["high"]
    assert ratio["value"] == pytest.approx(spread["value"] / printed["diversity"]["renders"], abs=2e-3)
    assert printed["free"]["scores"]["all"] == {"value": 1.0, "low": 1.0, "high": 1.0, "n": 3}
    stored = json.loads((tmp_path / "r" / "report.json").read_text())
    assert [clip["prompt"] for clip in stored["clips"]] == [one.prompt for one in suite(12)]
    assert Image.open(tmp_path / "r" / "first.png").size[0] > 2 * 5 * 64
    assert [call[:2] for call in pipe.calls] == [(12, 0), (8, 1), (3, 0)]
    page = (tmp_path / "r" / "index.html").read_text()
    assert "<svg" in page and "data:image/png;base64," in page and "http" not in page.replace("http://www.w3.org", "")
    assert all(one.prompt in page for one in suite(12))


def test_image_condition_gives_first_frames(pipe, tmp_path, capsys):
    flags = ["--count", "3", "--condition", "image", "--seeds", "0", "--free", "0", "--references", "3"]
    assert main(["eval", *flags, "--prompts", "plain", "--out", str(tmp_path), "--quiet"]) == 0
    text = capsys.readouterr().out
    (table,) = re.findall(r"first_frame\n((?:.+\n)+)", text)
    rows = [line.split() for line in table.splitlines()[1:]]
    assert rows[:2] == [["psnr", "99", "99", "..", "99", "3"], ["lowest", "99", "-", "-"]]
    assert rows[2] == ["over_28", "1", "1", "..", "1", "3"]
    assert text.splitlines()[-2:] == [str(tmp_path / "report.json"), str(tmp_path / "index.html")]
    assert [call[:2] for call in pipe.calls] == [(1, 0), (1, 1), (1, 2)]
    assert all(call[2]["image"].shape == (64, 64, 3) for call in pipe.calls)


def test_model_that_ignores_the_prompt_is_near_the_floor(pipe, tmp_path, capsys):
    pipe.lazy = True
    flags = ["--count", "12", "--seeds", "0", "--free", "0", "--references", "4", "--prompts", "plain"]
    assert main(["eval", *flags, "--out", str(tmp_path), "--json", "--quiet"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["scores"]["colour"]["value"] < 0.4
    assert printed["scores"]["motion"]["value"] < 0.5
    assert printed["reference"]["renders"]["all"] == 1.0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--count", "0"], "count=0"),
        (["--suite", "other"], "invalid choice"),
        (["--condition", "sound"], "sound"),
        (["--suite", "drift", "--condition", "image", "--by", "steps=4"], "--condition, --by: --suite drift does not"),
        (["--suite", "reconstruction", "--solver", "nonsense"], "--solver: --suite reconstruction does not look"),
        (["--by", "steps=4", "--by", "steps=8"], "an axis is given twice"),
        (["--seeds", "1"], "Use 2 or more, or 0 to leave it out"),
        (["--free", "200"], "there are 100 free prompts. Use 100 or less"),
        (["--prompts", "free", "--free", "3"], "they are all that is asked. Leave --free out"),
        (["--prompts", "free", "--heldout"], "--heldout: of free prompts nobody knows"),
        (["--prompts", "free", "--count", "200"], "--count 200: there are 100 free prompts"),
    ],
)
def test_bad_input_is_found_first(pipe, flags, message, tmp_path, capsys):
    assert main(["eval", "--out", str(tmp_path), *flags]) == 2
    assert message in capsys.readouterr().err
    assert pipe.calls == []


def test_free_prompts_are_asked_once(pipe, tmp_path, capsys):
    assert len(suite(1000, "free")) == FREE
    flags = ["--prompts", "free", "--count", "2", "--references", "0", "--seeds", "0", "--json", "--quiet"]
    assert main(["eval", *flags, "--out", str(tmp_path)]) == 0
    assert [call[0] for call in pipe.calls] == [2]
    assert "free" not in json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("name", ["index.html", "report.json", "first.png"])
def test_what_eval_did_not_write_is_kept(pipe, name, tmp_path, capsys):
    (tmp_path / name).write_text("[1]")
    assert main(["eval", "--out", str(tmp_path), "--count", "1"]) == 2
    assert f"{name} is there already, and eval did not write it. Give another --out." in capsys.readouterr().err
    assert pipe.calls == [] and (tmp_path / name).read_text() == "[1]"


def test_a_report_is_replaced(pipe, tmp_path, capsys):
    (tmp_path / "report.json").write_text('{"suite": "drift"}')
    (tmp_path / "index.html").write_text("older")
    flags = ["--count", "1", "--prompts", "plain", "--seeds", "0", "--free", "0", "--references", "0", "--quiet"]
    assert main(["eval", "--out", str(tmp_path), *flags]) == 0
    assert json.loads((tmp_path / "report.json").read_text())["suite"] == "toyworld"
    assert (tmp_path / "index.html").read_text().startswith("<!")


def evaluated(capsys, model, folder, *flags):
    """What is printed of an evaluation of a model in miniature, two clips; that it lies in the folder too."""
    argv = ["eval", "--model", model, "--count", "2", "--height", "32", "--width", "32", "--out", str(folder)]
    assert main([*argv, "--json", "--quiet", *flags]) == 0
    printed = json.loads(capsys.readouterr().out)
    stored = json.loads((folder / "report.json").read_text())
    assert printed == {name: value for name, value in stored.items() if name != "clips"}
    assert (folder / "index.html").stat().st_size > 1000 and (folder / "first.png").exists()
    assert len(printed["model"]["hash"]) == 12 and printed["count"] == 2
    assert {"suite", "count", "scores", "splits", "reference"} <= set(printed)
    assert {"renders", "shuffled"} <= set(printed["reference"])
    assert all(set(one) >= {"value", "low", "high", "n"} for one in printed["scores"].values())
    return printed


def same(report):
    """That a model against itself is no better and no worse."""
    assert report["against"]["model"] == report["model"]
    assert report["against"]["scores"] == report["scores"]
    differences = report["against"]["difference"]
    assert set(differences) == set(report["scores"])
    assert {entry["value"] for entry in differences.values()} == {0.0}


def test_reconstruction_of_a_real_model(model, here, capsys):
    report = evaluated(capsys, model, here, "--suite", "reconstruction", "--num_frames", "5", "--against", model)
    same(report)
    assert report["against"]["bytes"] == report["bytes"] and report["against"]["judge"] == report["judge"]
    assert report["suite"] == "reconstruction"
    assert 3 < report["scores"]["psnr"]["value"] < 30 and report["scores"]["psnr"]["n"] == 2
    assert report["bytes"]["frames"] == 2 * 5 * 32 * 32 * 3


def test_distribution_of_a_real_model(model, here, capsys):
    report = evaluated(
        capsys, model, here, "--suite", "distribution", "--num_frames", "9", *ONE_STEP, "--against", model
    )
    same(report)
    assert (here / "against.png").read_bytes() == (here / "first.png").read_bytes()
    assert report["suite"] == "distribution"
    assert all(np.isfinite(entry["value"]) for entry in report["scores"].values())


def test_drift_of_a_real_model(model, here, capsys):
    report = evaluated(capsys, model, here, "--suite", "drift", "--num_frames", "33", *ONE_STEP, "--against", model)
    same(report)
    assert report["suite"] == "drift" and report["seconds_of_windows"] == [0.0, 2.0]
    assert report["curves"]["renders"]["change"] != report["curves"]["model"]["change"]


def test_a_real_model_against_itself_and_by_steps(model, here, capsys, monkeypatch):
    monkeypatch.setattr("dit_video.evals.references._TRAINING", 300)
    few = ["--seeds", "0", "--free", "0", "--references", "1", "--num_frames", "5", *ONE_STEP]
    report = evaluated(capsys, model, here, *few, "--against", model, "--by", "steps=1,2", "--by_count", "1")
    same(report)
    assert report["against"]["values"] == report["values"] and report["against"]["splits"] == report["splits"]
    assert len(report["splits"]["steps"]) == 2


def test_values_of_axes_are_checked_first(pipe, tiny, tmp_path, capsys):
    pipe.model = tiny
    assert main(["eval", "--by", "frames=9,18", "--out", str(tmp_path)]) == 2
    assert "num_frames=18: this model needs 4k+1" in capsys.readouterr().err
    assert pipe.calls == []


def test_what_was_measured_is_kept_when_the_other_model_is_not_there(pipe, monkeypatch, tmp_path, capsys):
    """Without a render to compare with, first frames have no score, and that is all."""
    from dit_video.core.errors import MissingError

    def find(name, *_, **__):
        if name == "nowhere":
            raise MissingError("nowhere: no such model")
        return pipe

    monkeypatch.setattr("dit_video.generate.pipeline.VideoPipeline.from_pretrained", find)
    flags = ["--count", "1", "--condition", "image", "--seeds", "0", "--free", "0", "--references", "0"]
    argv = ["eval", *flags, "--prompts", "plain", "--out", str(tmp_path), "--quiet", "--against", "nowhere"]
    assert main(argv) == 3
    assert "no such model" in capsys.readouterr().err
    stored = json.loads((tmp_path / "report.json").read_text())
    assert stored["scores"]["all"]["value"] == 1.0
    assert "first_frame" not in stored


def test_unwritable_folder_is_found_first(pipe, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["eval", "--out", str(tmp_path / "file")]) == 2
    assert "cannot make this folder" in capsys.readouterr().err
    assert pipe.calls == []
