"""Optimizers: schedules, and which parameter takes which, by name."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from dit_video.core.errors import BadInput
from dit_video.train.optim import Optimizer, decayed, matrices, muon_axes
from dit_video.weights.checkpoints import flatten
from dit_video.weights.model import abstract


def rates(steps=100, **settings):
    factor = Optimizer(**settings).schedule(steps)
    return np.array([float(factor(i)) for i in range(steps)])


def test_warm_up_hold_and_decay():
    r = rates(warmup=10, decay="linear", decay_part=0.5)
    np.testing.assert_allclose(r[:10], np.arange(1, 11) / 10, atol=1e-6)
    np.testing.assert_allclose(r[10:50], 1.0)
    np.testing.assert_allclose(r[50:], 1 - np.arange(50) / 50, atol=1e-6)
    assert r[-1] > 0, "the last step still moves"


def test_cosine_none_and_short_runs():
    r = rates(warmup=0, decay="cosine", decay_part=1.0)
    np.testing.assert_allclose(r, 0.5 * (1 + np.cos(np.pi * np.arange(100) / 100)), atol=1e-6)
    assert rates(warmup=5, decay="none")[-1] == 1.0
    assert np.all(rates(steps=3, warmup=100) > 0)
    with pytest.raises(BadInput, match="decay_part"):
        rates(decay_part=1.5)


@pytest.fixture(scope="module")
def params():
    """Shapes of all parameters of the small model."""
    import runpy
    from pathlib import Path

    configs = runpy.run_path(str(Path(__file__).parents[1] / "miniature.py"))["CONFIGS"]
    return {name: nnx.to_pure_dict(nnx.state(abstract(cfg), nnx.Param)) for name, cfg in configs.items()}


def test_muon_takes_hidden_matrices_and_nothing_else(params):
    axes = matrices(params, lambda path, x: muon_axes(path, x) is not None)
    muon = {name for name, taken in flatten(axes).items() if taken}
    expected = {f"dit/blocks/{part}/{name}/kernel" for part in ("attn", "cross") for name in ("q", "k", "v", "out")}
    expected |= {"dit/blocks/up/kernel", "dit/blocks/down/kernel"}
    expected |= {f"text/blocks/attn/{name}/kernel" for name in "qkvo"}
    expected |= {f"text/blocks/ffn/{name}/kernel" for name in ("gate", "up", "down")}
    assert {name for name in muon if not name.startswith("vae/")} == expected
    assert all(name.endswith("/kernel") for name in muon)
    assert any("conv_in" in name for name in muon)


def test_weight_decay_goes_by_name(params):
    taken = {name for name, yes in flatten(matrices(params, decayed)).items() if yes}
    everything = set(flatten(params))
    assert all(
        name.rsplit("/", 1)[1] in ("bias", "scale", "table", "gamma", "embedding") for name in everything - taken
    )
    assert "dit/blocks/up/bias" in everything - taken, "a stacked bias has two axes, but is no matrix"


def stacked(seed=0):
    rng = np.random.default_rng(seed)
    make = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)  # noqa: E731
    return {"blocks": {"up": {"kernel": make(3, 16, 24), "bias": make(3, 24)}}, "head": {"kernel": make(16, 4)}}


def test_muon_orthogonalises_each_layer_and_spares_the_rest():
    settings = Optimizer(kind="muon", lr=0.1, adam_lr=0.01, warmup=0, decay="none", weight_decay=0.0, clip=1e9)
    optimizer = settings.build(10)
    params, grads = stacked(), stacked(1)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    for layer in updates["blocks"]["up"]["kernel"]:
        singular = np.linalg.svd(np.asarray(layer), compute_uv=False)
        # 0.2 sqrt(max(in, out)) times singular values near one (Newton-Schulz leaves 0.7 to 1.2).
        np.testing.assert_allclose(singular / (0.1 * 0.2 * np.sqrt(24)), 1.0, atol=0.35)
    for update in (updates["blocks"]["up"]["bias"], updates["head"]["kernel"]):
        size = np.abs(update)  # AdamW's first step: every number moves alike, by the rate (half more with Nesterov)
        np.testing.assert_allclose(size, size.ravel()[0], rtol=1e-3)
        assert 0.0099 < size.ravel()[0] < 0.016


@pytest.mark.parametrize(
    "wrong", [{"kind": "adam"}, {"decay": "constant"}, {"clip": 0.0}, {"clip": -1.0}, {"lr": 0.0}, {"warmup": -1}]
)
def test_what_is_no_optimizer_is_refused(wrong):
    with pytest.raises(BadInput, match=f"optimizer.{next(iter(wrong))}="):
        Optimizer(**wrong)


def test_a_rate_of_zero_is_none():
    optimizer, params = Optimizer(kind="muon", adam_lr=0.0, warmup=0).build(10), stacked()
    updates, _ = optimizer.update(stacked(1), optimizer.init(params), params)
    assert not np.any(updates["head"]["kernel"]) and np.any(updates["blocks"]["up"]["kernel"])


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_decay_shrinks_kernels_only(kind):
    settings = Optimizer(kind=kind, lr=0.1, warmup=0, decay="none", weight_decay=0.5)
    optimizer, params = settings.build(10), stacked()
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    kernel = params["blocks"]["up"]["kernel"]
    np.testing.assert_allclose(updates["blocks"]["up"]["kernel"], -0.05 * kernel, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(updates["blocks"]["up"]["bias"], 0, atol=1e-7)


def test_the_gradient_is_clipped_by_its_global_norm():
    optimizer = Optimizer(
        kind="adamw", lr=1.0, clip=0.5, b1=0.0, b2=0.0, eps=1.0, warmup=0, decay="none", weight_decay=0
    )
    params, grads = stacked(), jax.tree.map(lambda x: 10 * x, stacked(1))
    updates, _ = optimizer.build(10).update(grads, optimizer.build(10).init(params), params)
    scale = 0.5 / optax.tree.norm(grads)
    expected = jax.tree.map(lambda g: -(g * scale) / (jnp.abs(g * scale) + 1.0), grads)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), updates, expected)
