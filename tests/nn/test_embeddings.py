"""Sinusoids of time, the gather from few times to tokens, norms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_video.nn.embeddings import per_token, sinusoid
from dit_video.nn.norms import layer_norm, rms_norm


def test_sinusoid_is_cosine_first():
    got = np.asarray(sinusoid(jnp.asarray([0.0, 857.0]), 8))
    angle = 857.0 * 1e4 ** -(np.arange(4) / 4)
    np.testing.assert_array_equal(got[0], [1, 1, 1, 1, 0, 0, 0, 0])
    np.testing.assert_allclose(got[1], np.concatenate([np.cos(angle), np.sin(angle)]), atol=1e-4)


@pytest.mark.parametrize("K", [1, 2, 5])
def test_per_token_is_a_gather_with_its_gradient(K):
    rng = np.random.default_rng(K)
    values = jnp.asarray(rng.standard_normal((3, K, 4)), jnp.float32)
    index = jnp.asarray(rng.integers(0, K, (3, 7)))
    weight = jnp.asarray(rng.standard_normal((3, 7, 4)), jnp.float32)

    def gather(v):
        return jnp.take_along_axis(v, index[..., None], 1)

    def gradient(f):
        return jax.grad(lambda v: jnp.sum(weight * f(v)))(values)

    np.testing.assert_array_equal(jnp.broadcast_to(per_token(values, index), (3, 7, 4)), gather(values))
    np.testing.assert_allclose(gradient(lambda v: per_token(v, index)), gradient(gather), atol=1e-6)


def test_per_token_without_index_and_with_a_shared_one():
    values = jnp.arange(12.0).reshape(2, 3, 2)
    np.testing.assert_array_equal(per_token(values, None), values[:, :1])
    shared = jnp.asarray([[2, 0]])
    np.testing.assert_array_equal(per_token(values, shared), values[:, [2, 0]])
    np.testing.assert_array_equal(per_token(values[:, :2], shared[:, 1:]), values[:, :1])


def test_norms_are_float32_inside():
    x = np.random.default_rng(0).standard_normal((4, 64)) * 3 + 100
    got = layer_norm(jnp.asarray(x, jnp.float32), 1e-6)
    want = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(got, want, atol=1e-4)
    assert layer_norm(jnp.asarray(x, jnp.bfloat16), 1e-6).dtype == jnp.float32
    scale = np.linspace(0.5, 2, 64)
    got = rms_norm(jnp.asarray(x, jnp.float32), jnp.asarray(scale, jnp.float32), 1e-6)
    np.testing.assert_allclose(got, x / np.sqrt((x**2).mean(-1, keepdims=True)) * scale, rtol=1e-5)
    assert rms_norm(jnp.asarray(x, jnp.bfloat16), jnp.asarray(scale, jnp.float32), 1e-6).dtype == jnp.bfloat16
