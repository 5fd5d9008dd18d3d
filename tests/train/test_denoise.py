"""The denoiser's objective: what it stands on, its batches, and a run of the real thing in miniature."""

import dataclasses
import json
import logging

import jax
import numpy as np
import pytest

from dit_video.core.errors import BadInput
from dit_video.data.buckets import Bucket
from dit_video.data.folder import Folder
from dit_video.data.loader import Toyworld
from dit_video.data.pool import Pool
from dit_video.models.vae import VAEConfig
from dit_video.train.conditions import Conditions
from dit_video.train.denoise import Crop, Denoise
from dit_video.train.experiment import Experiment
from dit_video.train.loop import train
from dit_video.train.optim import Optimizer
from dit_video.train.vae import Reconstruct
from dit_video.weights.folder import save_model
from dit_video.weights.model import Defaults
from dit_video.weights.runs import Run, load_run, save_vae

POOL = Pool(clips=16, reuse=2.0, pictures=2, chunk=8)


def experiment(tiny, path, **changes):
    """A run against the VAE of `tiny` in `path`, with a tokenizer of its own."""
    objective = Denoise(dit=tiny.dit, text=dataclasses.replace(tiny.text, vocab=256), pool=POOL, tokens=32,
                        crops=(Crop(2, 0.7), Crop(1, 0.3)), tokenizer_captions=200, defaults=tiny.defaults)  # fmt: skip
    if not (path / "vae").is_dir():
        save_vae(path / "vae", tiny.vae, tiny.params["vae"])
    base = Experiment(
        objective=objective, data=Toyworld(), buckets=(Bucket(9, 32, 32),), optimizer=Optimizer(lr=1e-3, warmup=2),
        steps=4, batch=8, checkpoint_every=2, eval_every=4, eval_batches=1, log_every=2, sample_every=0, vae=str(path),
    )  # fmt: skip
    return dataclasses.replace(base, **changes)


@pytest.fixture(scope="module")
def resolved(tiny, tmp_path_factory):
    path = tmp_path_factory.mktemp("denoise")
    e = experiment(tiny, path)
    run = Run(path / "run")
    run.create()
    objective, base = e.objective.resolve(e, run)
    return dataclasses.replace(e, objective=objective), base, run


def test_a_new_run_keeps_a_copy_of_what_it_stands_on(resolved, tiny, monkeypatch):
    """From its first checkpoint on; until then another --vae is another one."""
    e, base, run = resolved
    _, params, tokenizer = run.load_base()
    assert tokenizer.model == base.tokenizer.model
    jax.tree.map(np.testing.assert_array_equal, params, tiny.params["vae"])
    elsewhere = dataclasses.replace(e, vae="/nowhere")
    with pytest.raises(BadInput, match="/nowhere"):
        elsewhere.objective.resolve(elsewhere, run)
    monkeypatch.setattr(Run, "has_checkpoint", lambda self: True)
    assert elsewhere.objective.resolve(elsewhere, run)[1].tokenizer.model == base.tokenizer.model


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"dit": None}, "no --init MODEL"),
        ({"text_dim": 7}, "text_dim=7"),
        ({"in_channels": 8}, "the VAE has 4"),
        ({"vocab": 5}, "a tokenizer of 5 pieces"),
        ({"crops": (Crop(2, 0.0),)}, "crops"),
        ({"buckets": (Bucket(9, 32, 32), Bucket(9, 32, 40))}, r"width=40 of 9x32x40 .* Nearest: 32 or 48"),
    ],
)
def test_sizes_that_do_not_fit(resolved, changes, message):
    e, _, run = resolved
    objective = e.objective
    for name, value in changes.items():
        if name == "buckets":
            e = dataclasses.replace(e, buckets=value)
        elif name == "vocab":
            objective = dataclasses.replace(objective, text=dataclasses.replace(objective.text, vocab=value))
        elif name in ("text_dim", "in_channels"):
            objective = dataclasses.replace(objective, dit=dataclasses.replace(objective.dit, **{name: value}))
        else:
            objective = dataclasses.replace(objective, **{name: value})
    with pytest.raises(BadInput, match=message):
        objective.resolve(e, run)


def test_weights_that_would_mean_another_thing_are_refused(tiny, tmp_path):
    e = experiment(tiny, tmp_path, init=str(save_model(tiny, tmp_path / "model")))
    run = Run(tmp_path / "run")
    run.create()
    assert e.objective.resolve(e, run)[1].start is not None
    changed = dataclasses.replace(e.objective, dit=dataclasses.replace(tiny.dit, predicts="data", rope_theta=50.0))
    with pytest.raises(BadInput, match="another predicts and rope_theta than .*--objective.dit.predicts velocity"):
        changed.resolve(e, run)


def test_batches_are_the_vaes_latents_of_the_clips_and_resume_alike(resolved, tiny):
    e, base, _ = resolved
    objective = dataclasses.replace(
        e.objective, conditions=Conditions(1, 0, 0, 0, 0, 0, drop_caption=0), crops=(Crop(3),)
    )
    e = dataclasses.replace(e, objective=objective)
    stream = objective.stream(e, base, held_out=False)
    batch = next(stream)
    assert batch.latents.shape == (8, 3, 4, 4, 4)
    assert not batch.known.any()
    reader = e.data.open(e.buckets)
    clips = [reader.load(d) for d in range(16)]
    ids = base.tokenizer.encode([c.caption for c in clips], max_length=32)
    vae = tiny.module("vae")
    video = reader.frames(jax.tree.map(lambda *x: np.stack(x), *(c.arrays for c in clips)), 0)
    latents = np.asarray(vae.normalize(vae.encode(video)[0]))
    for row, n, z in zip(batch.ids, batch.length, batch.latents, strict=True):
        (clip,) = [i for i in range(16) if (ids.ids[i, :n] == row[:n]).all() and ids.length[i] == n]
        np.testing.assert_allclose(z, latents[clip], atol=1e-4)
    state = json.loads(json.dumps(stream.state()))
    expected = [next(stream) for _ in range(4)]  # into the next pool
    again = objective.stream(e, base, held_out=False)
    again.restore(state)
    for batch in expected:
        jax.tree.map(np.testing.assert_array_equal, next(again), batch)


def test_a_pool_is_encoded_with_the_convolution_of_the_device(resolved, monkeypatch):
    e, base, _ = resolved
    asked = []
    monkeypatch.setattr(VAEConfig, "on", lambda self, platform: asked.append(platform) or self)
    e.objective.stream(e, base, held_out=False)
    assert asked == ["cpu"]


def test_captions_are_dropped_to_the_encoding_of_nothing(resolved):
    e, base, _ = resolved
    objective = dataclasses.replace(e.objective, conditions=Conditions(drop_caption=1.0))
    e = dataclasses.replace(e, objective=objective)
    batch = next(objective.stream(e, base, held_out=False))
    nothing = base.tokenizer.encode([""])
    assert (batch.length == 1).all()
    assert (batch.ids[:, 0] == nothing.ids[0, 0]).all()
    held = next(objective.stream(e, base, held_out=True))
    assert (held.length > 1).all(), "the held-out loss shows every caption"


@pytest.mark.slow
def test_a_run_in_miniature_from_start_to_model(tiny, tmp_path):
    e = experiment(tiny, tmp_path)
    seen = []
    summary = train(e, tmp_path / "run", sample=lambda model, *rest: seen.append(model))
    assert summary["steps"] == 4
    model = load_run(tmp_path / "run")
    assert model.defaults == tiny.defaults
    deeper = dataclasses.replace(e.objective, dit=dataclasses.replace(tiny.dit, depth=3))
    with pytest.raises(BadInput, match="Step 4 was saved with depth=2; the experiment says 3"):
        train(dataclasses.replace(e, objective=deeper), tmp_path / "run")
    save_model(model, tmp_path / "model")
    tuned = Denoise(pool=POOL, tokens=32, crops=(Crop(2),))
    more = dataclasses.replace(e, objective=tuned, init=str(tmp_path / "model"), vae=None, steps=2)
    assert train(more, tmp_path / "tuned")["steps"] == 2
    start = load_run(tmp_path / "tuned", ema="none", step=2)
    change = np.abs(start.params["dit"]["blocks"]["up"]["kernel"] - model.params["dit"]["blocks"]["up"]["kernel"])
    assert 0 < change.max() < 0.01, "it started from the weights that it was given"


def test_init_brings_sizes_weights_vae_and_tokenizer(tiny, tmp_path):
    save_model(tiny, tmp_path / "model")
    objective = Denoise(pool=POOL, tokens=32)
    e = experiment(tiny, tmp_path, objective=objective, init=str(tmp_path / "model"), vae=None)
    run = Run(tmp_path / "run")
    run.create()
    filled, base = objective.resolve(e, run)
    assert (filled.dit, filled.text) == (tiny.dit, tiny.text)
    start = filled.initial(base)
    jax.tree.map(np.testing.assert_array_equal, start, {n: tiny.params[n] for n in ("dit", "text")})
    assert base.tokenizer.model == tiny.tokenizer.model


def test_a_start_brings_how_it_is_sampled(tiny, tmp_path, caplog):
    """Not the curve for the cache, which was measured with its weights, nor the shift, for training has its own; a run
    that goes on has what it stored."""
    caplog.set_level(logging.INFO, "dit_video")
    curve = ((0.1, 0.2, 0.3),)
    start = dataclasses.replace(tiny, defaults=dataclasses.replace(tiny.defaults, cache=curve, shift=8.0))
    objective = Denoise(pool=POOL, tokens=32)
    e = experiment(tiny, tmp_path, objective=objective, init=str(save_model(start, tmp_path / "model")), vae=None)
    run = Run(tmp_path / "run")
    run.create()
    filled, base = objective.resolve(e, run)
    assert filled.defaults == tiny.defaults and filled.model(start.params, base).defaults == tiny.defaults
    given = dataclasses.replace(objective, defaults=Defaults(guidance=7.0))
    assert given.resolve(e, run)[0].defaults == Defaults(guidance=7.0)
    assert "has 64x64 (height x width), and the buckets are 32x32" in caplog.text
    wide = dataclasses.replace(e, data=Folder("clips", fps=16.0), buckets=(Bucket(9, 48, 64),))
    found = objective.resolve(wide, run)[0].defaults
    assert (found.fps, found.height, found.width, found.sizes) == (16.0, 48, 64, ((48, 64),))

    stored = Defaults(guidance=1.5)  # as runs of earlier versions have it, whatever they began with
    run.save_experiment(dataclasses.replace(e, objective=dataclasses.replace(filled, defaults=stored)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "has_checkpoint", lambda self: True)
        assert objective.resolve(e, run)[0].defaults == stored


def test_a_vae_whose_latents_are_not_measured_yet_is_refused(tiny, tmp_path):
    """A run that was stopped: its weights are there, mean and std are not."""
    vae = dataclasses.replace(tiny.vae, latents_mean=(), latents_std=())
    e = experiment(tiny, tmp_path, vae=str(tmp_path / "begun"))
    begun, run = Run(tmp_path / "begun"), Run(tmp_path / "run")
    for one in (begun, run):
        one.create()
    begun.save_experiment(dataclasses.replace(e, objective=Reconstruct(vae=vae), vae=None))
    state = {"params": {"vae": tiny.params["vae"]}, "ema": (({"vae": tiny.params["vae"]}),) * 2}
    begun.checkpoints().save(3, state, {}, wait=True)
    with pytest.raises(BadInput, match="has not come to its end.*Run its own line again"):
        e.objective.resolve(e, run)


def test_a_start_has_its_tokenizer(tiny, tmp_path):
    tiny.tokenizer.save(tmp_path / "same")
    where = {"init": str(save_model(tiny, tmp_path / "model")), "vae": None}
    run = Run(tmp_path / "run")
    run.create()
    same, other = (Denoise(pool=POOL, tokenizer=name) for name in (str(tmp_path / "same"), "board"))
    same.resolve(experiment(tiny, tmp_path, objective=same, **where), run)
    with pytest.raises(BadInput, match=r"tokenizer=board is another than that of .*--objective\.tokenizer none"):
        other.resolve(experiment(tiny, tmp_path, objective=other, **where), run)
