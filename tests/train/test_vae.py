"""The VAE's objective by hand-made cases, a few steps that must help, and the latents' statistics."""

from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from dit_video.core.errors import BadInput
from dit_video.core.mesh import MeshShape
from dit_video.data.buckets import Bucket
from dit_video.data.loader import Toyworld
from dit_video.models.vae import VAE, VAEConfig
from dit_video.train.experiment import Experiment
from dit_video.train.vae import (
    Cut,
    Reconstruct,
    VAEObjective,
    gradient_difference,
    halve,
    kl,
    latent_statistics,
    temporal_difference,
)
from dit_video.weights.runs import Run, read_vae, save_vae

TINY = VAEConfig(base=4, z=4, mult=(1, 2), res_blocks=1, temporal=(True,), patch=2)


def test_kl_of_a_standard_normal_is_zero_and_known_elsewhere():
    zero = jnp.zeros((1, 1, 2, 2, 4))
    assert kl(zero, zero) == 0
    np.testing.assert_allclose(kl(zero + 2, zero), 2.0)  # mean^2 / 2
    np.testing.assert_allclose(kl(zero, zero + np.log(4)), 0.5 * (4 - 1 - np.log(4)), rtol=1e-6)


def test_temporal_difference_sees_change_only():
    a = jnp.asarray(np.random.default_rng(0).normal(size=(1, 3, 4, 4, 3)), jnp.float32)
    assert temporal_difference(a, a + 0.5) < 1e-6  # a constant error does not flicker
    flicker = jnp.asarray([0.0, 1.0, 0.0])[None, :, None, None, None]
    np.testing.assert_allclose(temporal_difference(a, a + flicker), 1.0, rtol=1e-5)
    assert temporal_difference(a[:, :1], a[:, 1:2]) == 0  # a still


def test_gradient_difference_is_a_mean_over_scales():
    a = jnp.zeros((1, 1, 8, 8, 3))
    ramp = jnp.broadcast_to(jnp.arange(8.0)[:, None, None], a.shape)  # slope 1, then 2, then 4
    np.testing.assert_allclose(gradient_difference(a, ramp, 1), 1.0)
    np.testing.assert_allclose(gradient_difference(a, ramp, 3), (1 + 2 + 4) / 3, rtol=1e-6)
    assert gradient_difference(a, a + 3, 3) == 0


@pytest.fixture(scope="module")
def model():
    graph, params = nnx.split(VAE(TINY, rngs=nnx.Rngs(0)))
    return graph, nnx.to_pure_dict(params)


def video(frames=3, seed=0):
    """Blobs that move: something that can be learnt."""
    y, x = np.mgrid[:16, :16] / 16
    shift = np.arange(frames)[:, None, None] * 0.2
    one = np.sin(6 * (x[None] - shift) + 4 * y[None])[..., None] * np.array([1.0, 0.3, -0.8])
    return jnp.asarray(np.stack([one, -one]) * 0.8, jnp.float32)


def test_the_loss_is_the_weighted_sum_of_its_terms(model):
    graph, params = model
    objective = VAEObjective()
    total, terms = objective.loss(graph, params, video(), jax.random.key(0))
    by_hand = sum(getattr(objective, name) * terms[name] for name in ("l1", "l2", "temporal", "gradient", "kl"))
    np.testing.assert_allclose(total, by_hand, rtol=1e-6)
    np.testing.assert_allclose(terms["psnr"], -10 * np.log10(terms["l2"] / 4), rtol=1e-5)
    only = replace(objective, l1=0.0, temporal=0.0, gradient=0.0, kl=0.0, l2=1.0)
    np.testing.assert_allclose(only.loss(graph, params, video(), jax.random.key(0))[0], terms["l2"], rtol=1e-6)


def test_equivariance_compares_the_decoded_half_with_the_half_of_the_video(model):
    graph, params = model
    plain, more = (VAEObjective(equivariance=e).loss(graph, params, video(), jax.random.key(0)) for e in (0.0, 0.5))
    assert "equivariance" not in plain[1]
    np.testing.assert_allclose(more[0] - plain[0], 0.5 * more[1]["equivariance"], rtol=1e-4)
    vae = nnx.merge(graph, params)
    z = jax.random.normal(jax.random.key(1), (1, 1, 2, 2, vae.cfg.z))
    objective = VAEObjective(l1=0, l2=1, temporal=0, gradient=0, scales=1, kl=0, equivariance=1)
    wanted = jnp.mean(jnp.square(vae.decode(halve(z), clip=False) - halve(vae.decode(z, clip=False))))

    class Given:  # encodes anything to z, without spread
        encode = staticmethod(lambda _: (z, jnp.full_like(z, -60.0)))
        decode = staticmethod(vae.decode)

    terms = objective.terms(Given, vae.decode(z, clip=False), jax.random.key(0))[1]
    np.testing.assert_allclose(terms["equivariance"], wanted, rtol=1e-4)


def test_equivariance_of_latents_with_an_odd_side(model):
    """12 x 20 pixels are 3 x 5 latents: 2 x 4 of them are halved, and the pixels of these."""
    clip = jnp.tile(video(), (1, 1, 1, 2, 1))[:, :, :12, :20]
    errors = []

    class Listening(VAEObjective):
        def _errors(self, out, video):
            errors.append((out.shape, video.shape))
            return super()._errors(out, video)

    jax.eval_shape(lambda key: Listening(equivariance=1).loss(*model, clip, key)[0], jax.random.key(0))
    assert errors == [(clip.shape, clip.shape), ((2, 3, 4, 8, 3), (2, 3, 4, 8, 3))]


def test_halving_is_the_mean_of_four():
    x = jnp.arange(30.0).reshape(1, 1, 5, 6, 1)
    np.testing.assert_allclose(halve(x)[0, 0, :, :, 0], [[3.5, 5.5, 7.5], [15.5, 17.5, 19.5]])


def test_jitter_is_in_units_of_the_latents():
    mean = 100.0 * jax.random.normal(jax.random.key(0), (64, 1, 8, 8, 4)) * jnp.array([1.0, 2.0, 3.0, 4.0])
    decoded = []

    class Listening:
        encode = staticmethod(lambda _: (mean, jnp.full_like(mean, -60.0)))

        @staticmethod
        def decode(z, clip):
            decoded.append(z)
            return jnp.zeros((64, 1, 16, 16, 3))

    for jitter in (0.0, 0.25):
        VAEObjective(jitter=jitter).terms(Listening, jnp.zeros((64, 1, 16, 16, 3)), jax.random.key(1))
    np.testing.assert_array_equal(decoded[0], mean)
    noise = (decoded[1] - mean) / (100.0 * jnp.array([1.0, 2.0, 3.0, 4.0]))
    np.testing.assert_allclose(jnp.std(noise, (0, 1, 2, 3)), 0.25, rtol=0.3)  # 64 sizes are drawn
    sizes = jnp.std(noise, (1, 2, 3, 4))
    assert sizes.max() > 0.4 and sizes.min() < 0.05  # each clip has its own


def test_steps_help_and_every_weight_takes_part(model):
    graph, params = model
    objective, optimizer = VAEObjective(), optax.adam(3e-3)
    state, clips = optimizer.init(params), video()

    @jax.jit
    def step(params, state, key):
        (loss, _), grads = jax.value_and_grad(lambda p: objective.loss(graph, p, clips, key), has_aux=True)(params)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state, loss, grads

    losses = []
    for n in range(30):
        params, state, loss, grads = step(params, state, jax.random.key(n))
        losses.append(float(loss))
    assert losses[-1] < 0.7 * losses[0]
    assert all(np.any(g != 0) for g in jax.tree.leaves(grads))


def test_latent_statistics_are_those_of_all_positions():
    rng = np.random.default_rng(0)
    batches = [rng.normal([1, -2], [0.5, 3], size=(n, 2, 4, 4, 2)) for n in (3, 5)]  # uneven: not a mean of means
    mean, std = latent_statistics(lambda z: z, batches)
    flat = np.concatenate(batches).reshape(-1, 2)
    np.testing.assert_allclose(mean, flat.mean(0))
    np.testing.assert_allclose(std, flat.std(0))


SMALL = Experiment(
    objective=Reconstruct(vae=TINY, cuts=(Cut(3, 8, share=0.5), Cut(5, 0, clips=0.5, share=0.5)), statistics=8),
    data=Toyworld(),
    buckets=(Bucket(5, 16, 16),),
    batch=4,
    mesh=MeshShape(data=1, context=-1),
)


def test_batches_are_cut_and_can_be_found_again():
    stream = SMALL.objective.stream(SMALL, None, held_out=False)
    batches, states = [], []
    for _ in range(8):
        states.append(stream.state())
        batches.append(next(stream))
    assert {b.shape for b in batches} == {(4, 3, 8, 8, 3), (2, 5, 16, 16, 3)}
    assert all(np.abs(b).max() <= 1 and b.std() > 0.01 for b in batches)
    again = SMALL.objective.stream(SMALL, None, held_out=False)
    again.restore(states[3])
    np.testing.assert_array_equal(next(again), batches[3])


@pytest.mark.parametrize(
    "changes, clips",
    [({"mesh": MeshShape(data=4, context=2)}, 4), ({"accumulate": 2, "mesh": MeshShape(2, 2, 2)}, 8), ({}, 2)],
)
def test_a_part_of_a_batch_still_goes_over_the_mesh(changes, clips):
    e = replace(SMALL, batch=8, objective=replace(SMALL.objective, cuts=(Cut(3, 8, clips=0.25),)), **changes)
    assert e.check().fits(8)
    assert len(next(e.objective.stream(e, None, held_out=False))) == clips


def test_a_finished_run_leaves_a_vae_with_the_statistics_of_its_latents(tmp_path, model):
    objective, base = SMALL.objective.resolve(SMALL, Run(tmp_path))
    assert base is None
    objective.finish({"vae": model[1]}, SMALL, base, Run(tmp_path))
    config, params = read_vae(tmp_path / "vae")
    assert replace(config, latents_mean=(), latents_std=()) == TINY
    assert min(config.latents_std) > 0.01
    kernel = params["encoder"]["conv_in"]["kernel"]
    np.testing.assert_array_equal(kernel, model[1]["encoder"]["conv_in"]["kernel"])


def test_cuts_that_do_not_fit():
    large = replace(SMALL, objective=replace(SMALL.objective, cuts=(Cut(5, 32),)))
    with pytest.raises(BadInput, match="larger than the bucket"):
        large.objective.resolve(large, Run("nowhere"))
    with pytest.raises(BadInput, match="--init"):
        Reconstruct().resolve(SMALL, Run("nowhere"))
    small = replace(SMALL.objective, weights=VAEObjective(equivariance=0.5), cuts=(Cut(5, 4),))
    with pytest.raises(BadInput, match="halves the latents"):
        small.resolve(SMALL, Run("nowhere"))


def test_what_a_vae_starts_from(tmp_path, model):
    """How it is computed is the experiment's and the device's, not the start's."""
    with pytest.raises(BadInput, match="--vae there: a VAE starts from --init"):
        SMALL.objective.resolve(replace(SMALL, vae="there"), Run(tmp_path))
    save_vae(tmp_path / "vae", TINY, model[1])
    there = replace(SMALL, init=str(tmp_path))
    half = replace(TINY, dtype="bfloat16", conv="direct")
    assert replace(SMALL.objective, vae=half).resolve(there, Run(tmp_path))[0].vae == replace(half, conv="folded")
    with pytest.raises(BadInput, match="differs from the VAE of --init"):
        replace(SMALL.objective, vae=replace(TINY, base=8)).resolve(there, Run(tmp_path))


def test_a_run_that_goes_on_does_not_need_its_start_any_more(tmp_path, monkeypatch):
    run = Run(tmp_path / "run")
    run.create()
    run.save_experiment(SMALL)
    gone = replace(SMALL, init=str(tmp_path / "gone"), objective=replace(SMALL.objective, vae=None))
    with pytest.raises(BadInput, match="gone"):
        gone.objective.resolve(gone, run)
    monkeypatch.setattr(Run, "has_checkpoint", lambda self: True)
    objective, base = gone.objective.resolve(gone, run)
    assert objective.vae == TINY and base is None


def test_encoding_takes_the_convolution_of_the_device(monkeypatch):
    assert (TINY.on("cpu").conv, TINY.on("gpu").conv, TINY.on("tpu").conv) == ("folded", "direct", "direct")
    monkeypatch.setattr(jax, "devices", lambda: [SimpleNamespace(platform="gpu")])
    assert SMALL.objective.resolve(SMALL, Run("nowhere"))[0].vae.conv == "direct"
