"""The denoiser on eight fake devices: loss and gradients are those of one device, whatever the mesh."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dit_video.core.mesh import MeshShape, Rules, batch_sharding, make_mesh, shardings
from dit_video.core.types import Extra, Text, Time
from dit_video.models.dit import DiT, DiTConfig

CFG = DiTConfig(in_channels=4, out_channels=4, heads=4, head_dim=8, depth=2, ffn_dim=64, freq_dim=16, text_dim=8)
B, SIZE = 8, (3, 8, 4)


@pytest.fixture(scope="module")
def setting():
    rng = np.random.default_rng(0)

    def make(*shape):
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    index = jnp.zeros((B, *SIZE), int).at[:, 0].set(1)
    batch = {
        "x": make(B, *SIZE, 4),
        "target": make(B, *SIZE, 4),
        "time": Time(jnp.stack([jnp.linspace(0.1, 0.9, B), jnp.zeros(B)], 1), index),
        "text": Text(make(B, 16, 8), jnp.arange(1, B + 1)),
        "extra": Extra(make(B, 1, *SIZE[1:], 4), jnp.linspace(-4, 8, B)[:, None]),
    }
    state = nnx.state(DiT(CFG, rngs=nnx.Rngs(0)), nnx.Param)
    return state, jax.tree.map(lambda a: a + 0.1 * make(*a.shape), nnx.to_pure_dict(state)), batch


def step(cfg):
    graph, state = nnx.split(nnx.eval_shape(lambda: DiT(cfg, rngs=nnx.Rngs(0))))

    def loss(params, b):
        weights = jax.tree.map(lambda a: a, state)
        nnx.replace_by_pure_dict(weights, params)
        out = nnx.merge(graph, weights)(b["x"], b["time"], b["text"], b["extra"])
        return jnp.mean(jnp.square(out - b["target"]))

    return jax.jit(jax.value_and_grad(loss))


@pytest.fixture(scope="module")
def one_device(setting):
    _, params, batch = setting
    return jax.device_get(step(CFG)(params, batch))


@pytest.mark.parametrize(
    "mesh, change",
    [
        # every axis is split in those that are not slow
        pytest.param(MeshShape(data=8), {}, marks=pytest.mark.slow),
        pytest.param(MeshShape(data=1, fsdp=8), {}, marks=pytest.mark.slow),
        pytest.param(MeshShape(data=2, fsdp=2, tensor=2), {}, marks=pytest.mark.slow),
        (MeshShape(data=1, fsdp=2, context=2, tensor=2), {}),
        (MeshShape(data=1, context=2, tensor=4), {"remat": "dots"}),
        (MeshShape(data=2, fsdp=2, context=2), {"attention": "chunked", "remat": "block"}),
    ],
    ids=str,
)
def test_loss_and_gradients_are_those_of_one_device(setting, one_device, mesh, change):
    state, params, batch = setting
    mesh = make_mesh(mesh, jax.devices()[:8])
    params = jax.tree.map(jax.device_put, params, shardings(state, mesh, Rules()))
    with jax.set_mesh(mesh):
        got = step(replace(CFG, **change))(params, jax.device_put(batch, batch_sharding(mesh)))
    assert len(got[0].sharding.device_set) == 8
    widest = [a for a in jax.tree.leaves(params) if not a.sharding.is_fully_replicated]
    assert bool(widest) == (mesh.shape["data"] < 8)  # weights are really split
    for want, have in zip(jax.tree.leaves(one_device), jax.tree.leaves(jax.device_get(got)), strict=True):
        np.testing.assert_allclose(have, want, atol=1e-5 * max(1.0, np.abs(want).max()))
