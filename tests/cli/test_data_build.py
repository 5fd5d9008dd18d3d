"""`dit-video data build`: what it says and refuses, and that training reads what it made, with the real encoder."""

import argparse
import dataclasses
import json
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from dit_video.cli.main import main
from dit_video.core.errors import BadInput
from dit_video.data.buckets import Bucket
from dit_video.data.latents import Latents
from dit_video.data.loader import Toyworld
from dit_video.data.video import write_video
from dit_video.train.conditions import Conditions
from dit_video.train.denoise import Crop, Denoise
from dit_video.train.experiment import Experiment
from dit_video.train.loop import train
from dit_video.train.optim import Optimizer
from dit_video.weights.encoder import encoder_digest
from dit_video.weights.folder import save_model
from dit_video.weights.runs import Run

SMALL = ["--buckets", "9x32x32", "--items", "8", "--chunk", "8", "--pictures", "2"]
BUCKETS = (Bucket(9, 32, 32),)


@pytest.fixture(scope="module")
def built(tiny, tmp_path_factory):
    """A model of random weights, and 12 clips of toyworld encoded with its VAE."""
    root = tmp_path_factory.mktemp("build")
    save_model(tiny, root / "model")
    line = ["data", "build", "toyworld", str(root / "out"), "--model", str(root / "model"), "--count", "12"]
    assert main([*line, "--held_out", "0.5", *SMALL]) == 0
    return root


def experiment(root, **changes):
    objective = Denoise(tokens=32, crops=(Crop(3),), conditions=Conditions(1, 0, 0, 0, 0, 0, drop_caption=0))
    base = Experiment(
        objective=objective, data=Latents(str(root / "out"), noise=0.0), buckets=BUCKETS, init=str(root / "model"),
        optimizer=Optimizer(lr=1e-3, warmup=2), batch=4, steps=2, eval_batches=1, log_every=1, sample_every=0,
    )  # fmt: skip
    return dataclasses.replace(base, **changes)


def stream(root, held_out=False, **changes):
    e = experiment(root, **changes)
    run = Run(root / "run")
    run.create()
    objective, base = e.objective.resolve(e, run)
    return objective.stream(e, base, held_out), base


def test_training_reads_the_vaes_latents_of_the_clips(built, tiny):
    batches, base = stream(built)
    batch = next(batches)
    reader = Toyworld(plain=0.75, two=0.2).open(BUCKETS)
    clips = [reader.load(d) for d in range(12)]
    vae = tiny.module("vae")
    video = reader.frames(jax.tree.map(lambda *x: np.stack(x), *(c.arrays for c in clips)), 0)
    latents = np.asarray(vae.normalize(vae.encode(video)[0]))
    ids = base.tokenizer.encode([c.caption for c in clips], max_length=32)
    for row, n, z in zip(batch.ids, batch.length, batch.latents, strict=True):
        (clip,) = [i for i in range(12) if (ids.ids[i, :n] == row[:n]).all() and ids.length[i] == n]
        np.testing.assert_allclose(z, latents[clip], atol=4e-3)  # stored in float16
    held, _ = stream(built, held_out=True)
    assert next(held).latents.shape == (4, 3, 4, 4, 4)


def test_noise_is_that_of_the_encoders_posterior(built, tiny):
    one = Latents(str(built / "out")).open(BUCKETS)
    mean = Latents(str(built / "out"), noise=0.0).open(BUCKETS)
    reader = Toyworld(plain=0.75, two=0.2).open(BUCKETS)
    clips = [reader.load(d) for d in range(12)]
    vae = tiny.module("vae")
    video = reader.frames(jax.tree.map(lambda *x: np.stack(x), *(c.arrays for c in clips)), 0)
    std = float(np.sqrt(np.mean(np.exp(np.asarray(vae.encode(video)[1])))))
    noise = [
        one.load(d + 12 * k).arrays["latents"] - mean.load(d).arrays["latents"] for d in range(12) for k in range(4)
    ]
    assert np.sqrt(np.mean(np.square(noise))) == pytest.approx(std, rel=0.05)


def test_another_vae_is_refused_before_the_first_step(built, tiny):
    other = jax.tree.map(lambda x: x * 1.01, tiny.params["vae"])
    save_model(dataclasses.replace(tiny, params=tiny.params | {"vae": other}), built / "other")
    e, run = experiment(built, vae=str(built / "other")), Run(built / "another")
    run.create()
    objective, base = e.objective.resolve(e, run)
    with pytest.raises(BadInput, match=f"{encoder_digest(tiny.vae, tiny.params['vae'])}.*--vae .*model"):
        objective.stream(e, base, held_out=False)


def test_the_digest_is_the_encoders_alone(tiny):
    params = tiny.params["vae"]
    digest = encoder_digest(tiny.vae, params)
    decoder = jax.tree.map(lambda x: x + 1, params["decoder"])
    measured = dataclasses.replace(tiny.vae, latents_mean=(1.0,) * 4, latents_std=(2.0,) * 4, dtype="bfloat16")
    assert encoder_digest(measured, params | {"decoder": decoder}) == digest
    assert (
        encoder_digest(tiny.vae, params | {"quant_conv": jax.tree.map(lambda x: x + 1, params["quant_conv"])}) != digest
    )
    assert encoder_digest(dataclasses.replace(tiny.vae, patch=1), params) != digest


def test_a_folder_of_clips(built, tmp_path, capsys):
    clips = tmp_path / "clips"
    clips.mkdir()
    for i in range(3):
        write_video(clips / f"{i}.mp4", np.full((11, 32, 32, 3), 60 * i, np.uint8), 8)
        (clips / f"{i}.txt").write_text(f"clip {i}")
    (clips / "broken.mp4").write_bytes(b"")
    (clips / "broken.txt").write_text("broken")
    line = ["data", "build", f"{clips}/", f"file://{tmp_path}/out", "--model", str(built / "model"), "--workers", "0"]
    assert main([*line, "--held_out", "0", *SMALL, "--json", "--quiet"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["clips"] == {"train": 3, "held_out": 0} and list(said["broken"]) == ["broken.mp4"]
    assert Latents(f"{tmp_path}/out").open(BUCKETS).total == 3
    write_video(clips / "broken.mp4", np.full((11, 32, 32, 3), 200, np.uint8), 8)
    assert main([*line, "--held_out", "0", *SMALL, "--json", "--quiet", "--retry_broken"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["clips"] == {"train": 4, "held_out": 0} and not said["broken"]
    assert main([*line, "--held_out", "0", *SMALL, "--fps", "4"]) == 2
    assert "was begun with another source" in capsys.readouterr().err


@pytest.mark.parametrize(
    "line, why",
    [
        (["toyworld"], "give --count"),
        (["toyworld", "--count", "4", "--buckets", "9x32"], "frames x height x width"),
        (["toyworld", "--count", "4", "--buckets", "8x32x32"], "4k+1"),
        (["toyworld", "--count", "4", "--held_out", "1"], "held_out=1"),
        (["toyworld", "--count", "4", "--chunk", "0"], "chunk=0"),
        (["toyworld", "--count", "4", "--plain", "2"], "plain=2.0 is a share"),
        (["toyworld", "--count", "4", "--often", "blob=2"], "often: blob=2.0: give a shape or a motion"),
        (["toyworld", "--count", "4", "--often", "star"], "often=star: wants 2 values"),
        (["nowhere", "--often", "star=2"], "--often: for toyworld; nowhere has"),
        (["nowhere"], "no such folder"),
        (["nowhere.py"], "no experiment"),
        (["nowhere://clips"], "Give a path"),
        (["nowhere", "--workers", "-1"], "workers=-1"),
    ],
)
def test_bad_input(tmp_path, capsys, line, why):
    assert main(["data", "build", line[0], str(tmp_path / "out"), *line[1:]]) in (2, 3)
    assert why in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("given, rate", [([], 8.0), (["--model", "M"], 12.0), (["--model", "M", "--fps", "9"], 9.0)])
def test_a_folder_is_cut_at_the_rate_of_the_model(given, rate, tiny, tmp_path, monkeypatch):
    from dit_video.cli import data

    seen = []
    monkeypatch.setattr("dit_video.data.build.folder", lambda source, *rest: seen.append(source))
    model = save_model(dataclasses.replace(tiny, defaults=dataclasses.replace(tiny.defaults, fps=12.0)), tmp_path / "M")
    line = ["build", "clips", str(tmp_path), *(str(model) if word == "M" else word for word in given)]
    parser = argparse.ArgumentParser()
    data.add_parser(parser.add_subparsers(dest="verb"))
    data._material(parser.parse_args(["data", *line]), None)
    assert seen[0].fps == rate


def test_what_is_drawn_more_often(tmp_path, monkeypatch):
    """Fields of toyworld as flags: how the weights on board were taught what they learnt last."""
    from dit_video.cli import data

    seen = []
    monkeypatch.setattr("dit_video.data.build.toyworld", lambda source, *rest: seen.append(source))
    line = ["build", "toyworld", str(tmp_path), "--count", "4", "--seed", "7", "--plain", "0.9"]
    parser = argparse.ArgumentParser()
    data.add_parser(parser.add_subparsers(dest="verb"))
    data._material(parser.parse_args(["data", *line, "--often", "star=1.5,spins=2"]), None)
    (source,) = seen
    assert (source.seed, source.plain, source.two) == (7, 0.9, 0.2)
    assert source.often == (("star", 1.5), ("spins", 2.0))


def test_data_of_other_buckets_are_refused_by_train(built, tmp_path, capsys):
    line = ["train", "finetune_folder", "--init", str(built / "model"), "--data", str(built / "out")]
    assert main([*line, "--batch", "4", "--workdir", str(tmp_path / "run")]) == 2
    assert "holds clips of 9x32x32" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_on_what_was_built(built):
    each = experiment(built, batch=8)  # over eight devices
    assert train(each, built / "trained")["steps"] == 2


@pytest.mark.slow
def test_one_file_is_enough_to_train_on(built, tmp_path, capsys):
    clips = tmp_path / "clips"
    clips.mkdir()
    write_video(clips / "a.mp4", np.full((11, 32, 32, 3), 60, np.uint8), 8)
    (clips / "a.txt").write_text("a clip")
    line = ["data", "build", str(clips), str(tmp_path / "out"), "--model", str(built / "model"), "--workers", "0"]
    assert main([*line, *SMALL]) == 0
    alone = experiment(built, batch=8, data=Latents(str(tmp_path / "out")))
    assert train(alone, tmp_path / "run")["held_out"] is None
    said = capsys.readouterr().err
    assert "no held-out loss: " in said and "has no held-out clips" in said


def shards(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.suffix != ".json" or p.name.startswith("train")}


@pytest.mark.slow
def test_a_build_that_is_killed_goes_on_to_the_same_shards(built, tmp_path):
    line = [sys.executable, "-m", "dit_video.cli.main", "data", "build", "toyworld", "--model", str(built / "model")]
    line += ["--count", "64", "--held_out", "0", *SMALL, "--quiet"]
    subprocess.run([*line, str(tmp_path / "straight")], check=True, timeout=600)
    process = subprocess.Popen([*line, str(tmp_path / "killed")])
    deadline = time.monotonic() + 500
    while not list((tmp_path / "killed").glob("train-*.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "manifest.json").exists(), "it was killed on the way"
    subprocess.run([*line, str(tmp_path / "killed")], check=True, timeout=600)
    assert shards(tmp_path / "killed") == shards(tmp_path / "straight")


@pytest.mark.slow
def test_the_order_in_which_files_arrive_does_not_matter(built, tmp_path):
    """Chunks hold other clips together, and the encoder gives each clip the same numbers."""
    clips, rng = tmp_path / "clips", np.random.default_rng(0)
    clips.mkdir()
    for i in range(12):
        noise = rng.integers(0, 255, (9, 4, 4, 3)).repeat(8, 1).repeat(8, 2).astype(np.uint8)
        write_video(clips / f"{i}.mp4", noise, 8)
        (clips / f"{i}.txt").write_text(f"clip {i}")
    for workers in ("0", "3"):
        line = ["data", "build", str(clips), str(tmp_path / workers), "--model", str(built / "model"), "--scene", "0"]
        assert main([*line, "--held_out", "0", "--workers", workers, "--buckets", "9x32x32", "--chunk", "8"]) == 0
    one, many = (Latents(str(tmp_path / w), noise=0.0).open(BUCKETS) for w in ("0", "3"))
    for draw in range(12):
        assert one.load(draw).caption == many.load(draw).caption
        np.testing.assert_allclose(one.load(draw).arrays["latents"], many.load(draw).arrays["latents"], atol=1e-3)
