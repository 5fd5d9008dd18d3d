"""A denoiser made twice as wide does what it did, and its halves learn apart."""

import runpy

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dit_video.core.types import Text, Time
from dit_video.models.dit import DiT, DiTConfig

CFG = DiTConfig(heads=2, head_dim=12, depth=2, ffn_dim=40, text_dim=24, freq_dim=24, in_channels=4, out_channels=4)


def inputs():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 2, 4, 4, 4)), jnp.float32)
    known = jnp.zeros((2, 2, 4, 4), jnp.int32).at[:, 0].set(1)
    time = Time(jnp.asarray([[0.7, 0.0], [0.2, 0.0]]), known)
    return x, time, Text(jnp.asarray(rng.normal(size=(2, 5, 24)), jnp.float32), jnp.asarray([3, 5]))


def test_a_wider_denoiser_is_the_same_function_with_other_gradients(checkout):
    tool = runpy.run_path(str(checkout / "tools" / "widen.py"))
    graph, state = nnx.split(DiT(CFG, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(1)  # every table, norm and bias away from its start
    params = jax.tree.map(lambda a: np.float32(a + 0.2 * rng.normal(size=a.shape)), nnx.to_pure_dict(state))
    cfg = tool["wider"](CFG)
    wide_graph, wide_state = nnx.split(nnx.eval_shape(lambda: DiT(cfg, rngs=nnx.Rngs(0))))
    wide = tool["widen"](params, nnx.to_pure_dict(wide_state), rng)

    x, time, text = inputs()
    before = nnx.merge(graph, params)(x, time, text)
    after, pull = jax.vjp(lambda p: nnx.merge(wide_graph, p)(x, time, text), wide)
    np.testing.assert_allclose(after, before, rtol=1e-3, atol=1e-4)
    kernel = wide["blocks"]["up"]["kernel"]
    assert kernel.shape == (2, 48, 80)
    assert np.abs(kernel[:, :24] - kernel[:, 24:]).max() > 0.01, "pairs are read with weights of their own"
    slope = pull(jnp.ones_like(after))[0]["blocks"]["up"]["kernel"]
    twins = np.abs(slope[..., :40] - slope[..., 40:]).max()
    assert twins > 0.01 * np.abs(slope).max(), "pairs would stay equal for ever"
