"""Trainings that are compared: one budget, the same clips, rows that stay; and the law that is fitted through sizes."""

import contextlib
import dataclasses
import io
import json
import shutil

import jax
import numpy as np
import pytest

from dit_video.cli.main import main
from dit_video.weights.folder import load_model, save_model

EXPERIMENT = """
from dit_video.data.buckets import Bucket
from dit_video.data.loader import Toyworld
from dit_video.models.dit import DiTConfig
from dit_video.models.text import TextConfig
from dit_video.train.conditions import Conditions
from dit_video.train.denoise import Crop, Denoise
from dit_video.train.experiment import Experiment
from dit_video.train.optim import Optimizer
from dit_video.weights.model import Defaults

EXPERIMENT = Experiment(
    objective=Denoise(
        dit=DiTConfig(
            in_channels=4, out_channels=4, heads=2, head_dim=16, depth=2, ffn_dim=48, freq_dim=16, text_dim=24,
            text_len=32,
        ),
        text=TextConfig(vocab=120, width=24, heads=2, head_dim=12, ffn_dim=32, depth=1),
        conditions=Conditions(1, 0, 0, 0, 0, 0), crops=(Crop(3),), tokens=32, tokenizer="MODEL",
        defaults=Defaults(height=32, width=32, num_frames=9, max_frames=9, steps=3, guidance=2.0),
    ),
    data=Toyworld(), buckets=(Bucket(9, 32, 32),), optimizer=Optimizer(kind="muon", lr=1e-3, warmup=2), batch=8,
)
"""


@pytest.fixture(scope="module")
def built(tiny, tmp_path_factory):
    """A model of random weights, 32 clips encoded with its VAE, and an experiment of its size."""
    root = tmp_path_factory.mktemp("built")
    tiny = dataclasses.replace(tiny, defaults=dataclasses.replace(tiny.defaults, num_frames=9))
    save_model(tiny, root / "model")
    small = ["--buckets", "9x32x32", "--items", "16", "--chunk", "8", "--pictures", "0", "--held_out", "0.3"]
    line = ["data", "build", "toyworld", str(root / "latents"), "--model", str(root / "model"), "--count", "32", *small]
    assert main(line) == 0
    (root / "tiny.py").write_text(EXPERIMENT.replace("MODEL", str(root / "model")))
    return root


@pytest.fixture
def tools(load, monkeypatch):
    """The tools, whose commands run in this process; what they were."""
    import trial

    asked = []

    def said(*args):
        asked.append(args)
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            assert main([*args, "--json"]) == 0
        return json.loads(out.getvalue())

    monkeypatch.setattr(trial, "said", said)
    return {"asked": asked, "trial": trial, "ablate": load("ablate.py"), "scaling": load("scaling.py")}


def given(built, tmp_path):
    paths = {"data": built / "latents", "experiment": built / "tiny.py", "runs": tmp_path / "runs", "out": tmp_path}
    return [word for name, path in paths.items() for word in (f"--{name}", str(path))]


def test_the_error_is_that_of_the_velocity(tools, built):
    model = load_model(str(built / "model"))
    nothing = {name: np.zeros_like(x) for name, x in model.params["dit"]["head"].items()}
    model = dataclasses.replace(model, params=model.params | {"dit": model.params["dit"] | {"head": nothing}})
    silent = tools["trial"].velocity_errors(model, str(built / "latents"), 8)
    assert len(silent) == len(tools["trial"].TIMES)
    assert np.ptp(silent) == 0  # who says nothing errs by noise and data, whenever he is asked
    latents = np.concatenate([s.arrays["latents"].ravel() for s in held_out(built)])
    z = (latents.reshape(-1, 4) - np.float32(model.vae.latents_mean or 0)) / np.float32(model.vae.latents_std or 1)
    assert silent[0] == pytest.approx(1 + np.mean(z**2), rel=0.1)


def held_out(built):
    from dit_video.data.buckets import Bucket
    from dit_video.data.latents import Latents

    reader = Latents(str(built / "latents"), noise=0.0).open((Bucket(9, 32, 32),), held_out=True)
    return [reader.load(i) for i in range(min(8, reader.total))]


def test_what_costs_more_makes_fewer_steps(tools, built):
    def flops(**fields):
        fields = {f"objective.dit.{name}": value for name, value in fields.items()}
        return tools["trial"].flops_a_step(str(built / "tiny.py"), str(built / "latents"), fields, None)

    assert 1.6 < flops(depth="4") / flops() < 2.2
    assert flops(patch="1,1,1") > 2.5 * flops()


def test_a_run_is_of_one_training(tools, tmp_path, monkeypatch):
    """What was trained otherwise is not taken for it."""
    monkeypatch.setattr(tools["trial"], "said", lambda *args: {})
    monkeypatch.setattr(tools["trial"], "manifest", lambda data: {"vae": {"name": "board", "digest": "0" * 12}})
    train = lambda *args: tools["trial"].train(tmp_path / "run", "toyworld", *args)  # noqa: E731
    train("latents", {"batch": "8"}, 10)
    train("latents", {"batch": "8"}, 20)
    for other in (
        ("others", {"batch": "8"}, 20),
        ("latents", {"batch": "4"}, 20),
        ("latents", {"batch": "8"}, 20, "board"),
    ):
        with pytest.raises(SystemExit, match="give other --runs"):
            train(*other)
    monkeypatch.setattr(tools["trial"], "manifest", lambda data: {"vae": {"name": "board", "digest": "1" * 12}})
    with pytest.raises(SystemExit, match="give other --runs"):
        train("latents", {"batch": "8"}, 20)


def test_what_a_training_is_made_of_is_told_by_its_content(tools, built, tmp_path):
    """A file of the same name with another field, other weights in the same folder: another training."""
    identity, (data, init, file) = tools["trial"].identity, (built / "latents", tmp_path / "model", tmp_path / "e.py")
    shutil.copytree(built / "model", init)
    file.write_text((built / "tiny.py").read_text())
    before = identity(str(file), str(data), str(init))
    assert before == identity(str(file), str(data), str(init))
    assert before["vae"] == tools["trial"].manifest(str(data))["vae"]["digest"]
    file.write_text(file.read_text().replace("warmup=2", "warmup=3"))
    other = identity(str(file), str(data), str(init))
    assert (other["experiment"] == before["experiment"], other["init"] == before["init"]) == (False, True)
    model = load_model(str(init))
    params = model.params | {"dit": jax.tree.map(lambda x: x + 1, model.params["dit"])}
    save_model(dataclasses.replace(model, params=params, digest=""), init, force=True)
    assert identity(str(file), str(data), str(init))["init"] != before["init"]
    assert "init" not in identity(str(file), str(data))


@pytest.mark.slow
def test_variants_are_trained_once_and_stand_in_rows(tools, built, tmp_path, capsys):
    line = [*given(built, tmp_path), "--init", str(built / "model"), "--quick"]
    line += ["--only", "recipe", "--only", "adamw 7e-4"]
    tools["ablate"]["SAMPLING"].clear()
    tools["ablate"]["SAMPLING"]["guidance"] = ("1",)
    tools["ablate"]["main"](line)
    stored = json.loads((tmp_path / "ablation.json").read_text())
    rows = {tuple(row[:2]): dict(zip(stored["columns"], row, strict=True)) for row in stored["rows"]}
    assert set(rows) == {("", "recipe"), ("optimizer", "adamw 7e-4"), ("sampling", "guidance 1")}
    errors = [rows[key]["error at t = 0.9"] for key in (("", "recipe"), ("optimizer", "adamw 7e-4"))]
    assert 0 < min(errors) < max(errors) < 100
    text = capsys.readouterr().out
    assert "| ablation, optimizer, from" in text and "adamw 7e-4 (2 steps): " in text
    assert [args[0] for args in tools["asked"]] == ["train", "eval"] * 2
    tools["ablate"]["main"](line)
    assert len(tools["asked"]) == 4
    assert len(stored["settings"]["init"]["hash"]) == 12


@pytest.mark.slow
def test_sizes_go_on_to_the_next_budget(tools, built, tmp_path, monkeypatch):
    scores = {"scores": {"readable": {"value": 0.5}, "all": {"value": 0.25}}}
    monkeypatch.setattr(tools["trial"], "judged", lambda run, count: scores)
    sizes = {"small": {"objective.dit.depth": "1"}, "large": {"objective.dit.depth": "3"}}
    tools["scaling"]["main"].__globals__.update(SIZES=sizes, PARTS=(1 / 8, 1.0))
    tools["scaling"]["main"]([*given(built, tmp_path), "--quick"])
    stored = json.loads((tmp_path / "scaling.json").read_text())
    table = [dict(zip(stored["columns"], row, strict=True)) for row in stored["rows"]]
    assert [row["denoiser"] for row in table] == ["small"] * 2 + ["large"] * 2
    assert table[0]["parameters"] < table[2]["parameters"]
    assert table[0]["steps"] < table[1]["steps"] and table[3]["steps"] < table[1]["steps"]
    assert [row["all"] for row in table] == [None, 0.25] * 2 and table[1]["shape"] is None
    assert "too few points" in stored["note"] and set(stored["fits"].values()) == {None}
    assert stored["settings"]["experiment"]["digest"] and stored["settings"]["vae"]
    picture = (tmp_path / "scaling.svg").read_text()
    assert picture.startswith("<svg") and "large" in picture


def test_a_power_law_is_found_with_its_interval(tools):
    fit = tools["scaling"]["power_law"]
    flops = np.geomspace(1e12, 1e16, 8)
    exact = fit(flops, 0.1 + 3e3 * flops**-0.3)
    assert exact["a"] == pytest.approx(0.1, abs=2e-3) and exact["c"] == pytest.approx(0.3, abs=5e-3)
    hits = 0
    for seed in range(20):
        noisy = (0.1 + 3e3 * flops**-0.3) * np.exp(0.005 * np.random.default_rng(seed).normal(size=8))
        found = fit(flops, noisy)
        hits += found["low"] <= 0.3 <= found["high"]
    assert hits >= 17
    few = fit(flops[:3], 3e3 * flops[:3] ** -0.3)
    assert few["a"] == 0 and few["c"] == pytest.approx(0.3, abs=1e-6)
    assert fit(flops[:2], flops[:2]) is None


def test_a_logistic_is_found_with_its_interval(tools, rng):
    """Shares of clips drawn from a known curve; those of none and of all are no infinite logits."""
    fit, x = tools["scaling"]["logistic"], np.geomspace(1e12, 1e16, 8)
    right = 1 / (1 + np.exp(-1.5 * (np.log10(x) - 14)))
    exact = fit(x, right, 100_000)
    assert exact["slope"] == pytest.approx(1.5, abs=1e-3) and exact["level"] == pytest.approx(-21, abs=0.02)
    hits = 0
    for _ in range(40):
        found = fit(x, rng.binomial(96, right) / 96, 96)
        hits += found["low"] <= 1.5 <= found["high"]
    assert hits >= 34
    steep = fit(x[:3], [0.0, 0.5, 1.0], 96)
    assert np.isfinite([steep["slope"], steep["low"], steep["high"]]).all() and steep["slope"] > 0
    assert fit(x[:2], [0.1, 0.2], 96) is None and fit([1.0, 1.0, 2.0], [0.1, 0.2, 0.3], 96) is None


def test_what_is_as_asked_is_fitted_by_flops_and_by_parameters(tools, rows_of, tmp_path):
    """Of synthetic rows: by FLOPs through the best size of each, by parameters through those of the most FLOPs."""
    scaling, curve = tools["scaling"], lambda c, n: 1 / (1 + np.exp(-(2 * np.log10(c / 30) + np.log10(n / 1e6))))
    table = rows_of("scaling", tmp_path, scaling["COLUMNS"], 2, {"prompts": 100_000}, "a command")
    scores = [None] * (len(scaling["trial"].SCORES) - 1)
    for name, many in (("small", 10**5), ("middle", 10**6), ("large", 10**7)):
        for spent in (5.0, 10.0, 30.0, 100.0):
            share = None if spent < 10 else float(curve(spent, many))
            table.add([name, spent, many, 1, 1 / spent, *scores, share])
    scaling["shown"](table, tmp_path)
    stored = json.loads((tmp_path / "scaling.json").read_text())
    by_flops, by_size = (stored["fits"][f"all by {what}"] for what in ("FLOPs", "parameters"))
    assert by_flops["slope"] == pytest.approx(2, abs=0.02) and by_flops["points"] == 3
    assert by_size["slope"] == pytest.approx(1, abs=0.02) and by_size["points"] == 3
    assert by_size["low"] < by_size["slope"] < by_size["high"]
    assert "rises by 2 (95 %" in stored["note"] and "ten times the parameters, through 3 points" in stored["note"]
    assert (tmp_path / "scaling.svg").read_text().count(">the law</text>") == 3


def test_the_frontier_is_what_nothing_cheaper_beats(tools):
    points = [(1.0, 3.0), (2.0, 3.5), (2.0, 2.5), (4.0, 2.6), (8.0, 1.0)]
    assert tools["scaling"]["frontier"](points) == [(1.0, 3.0), (2.0, 2.5), (8.0, 1.0)]
