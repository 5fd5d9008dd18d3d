"""Causal convolution: values against a plain sum, gradients of the written-out backward, pieces against whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dit_video.nn.conv import CausalConv3d, by_platform, direct, folded


def plain(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """The definition, tap by tap: zero before the first frame and around each frame."""
    b, t, h, w, _ = x.shape
    kt, kh, kw, _, o = kernel.shape
    xp = np.pad(x, ((0, 0), (kt - 1, 0), (kh // 2, kh // 2), (kw // 2, kw // 2), (0, 0)))
    y = np.zeros((b, t, h, w, o))
    for i in range(kt):
        for j in range(kh):
            for k in range(kw):
                y += xp[:, i : i + t, j : j + h, k : k + w] @ kernel[i, j, k]
    return y


def draw(frames: int, size=(3, 3, 3), seed=0):
    rng = np.random.default_rng(seed)
    x, kernel = rng.normal(size=(2, frames, 5, 4, 3)), rng.normal(size=(*size, 3, 2))
    return jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32)


@pytest.mark.parametrize("frames", [1, 2, 5])
@pytest.mark.parametrize("size", [(3, 3, 3), (3, 1, 1), (1, 3, 3)])
@pytest.mark.parametrize("conv", [folded, direct])
def test_values(conv, size, frames):
    x, kernel = draw(frames, size)
    np.testing.assert_allclose(conv(x, kernel), plain(np.asarray(x), np.asarray(kernel)), atol=2e-5)


def test_the_platforms_own():
    x, kernel = draw(2)
    lowered = jax.jit(by_platform).trace(x, kernel).lower
    assert "[b, 0, 1, 2, f]x" in lowered(lowering_platforms=("tpu",)).as_text()
    assert "[b, 0, 1, 2, f]x" not in lowered(lowering_platforms=("cpu",)).as_text()
    np.testing.assert_allclose(jax.jit(by_platform)(x, kernel), direct(x, kernel), atol=2e-5)


@pytest.mark.parametrize("frames", [1, 2, 5])
@pytest.mark.parametrize("size", [(3, 3, 3), (3, 1, 1)])
def test_gradients_are_those_of_the_direct_convolution(size, frames):
    x, kernel = draw(frames, size)
    weight = np.random.default_rng(1).normal(size=(2, frames, 5, 4, 2)).astype("f")
    ours, theirs = (jax.grad(lambda x, k, c=c: jnp.sum(weight * c(x, k)), (0, 1))(x, kernel) for c in (folded, direct))
    np.testing.assert_allclose(ours[0], theirs[0], atol=2e-5)
    np.testing.assert_allclose(ours[1], theirs[1], atol=1e-4)


@pytest.mark.parametrize("cut", [1, 2, 4])
def test_pieces_equal_the_whole(cut):
    conv = CausalConv3d(3, 2, rngs=nnx.Rngs(0))
    x, _ = draw(6)
    whole, last = conv(x)
    first, past = conv(x[:, :cut])
    second, tail = conv(x[:, cut:], past)
    np.testing.assert_allclose(np.concatenate([first, second], 1), whole, atol=2e-6)
    np.testing.assert_array_equal(tail, last)
    np.testing.assert_array_equal(last, x[:, -2:])


def test_the_past_of_a_short_clip_begins_with_zero():
    conv = CausalConv3d(3, 2, rngs=nnx.Rngs(0))
    x, _ = draw(1)
    past = np.asarray(conv(x)[1])
    assert past.shape[1] == 2 and not past[:, 0].any() and np.array_equal(past[:, 1:], x)


def test_a_pointwise_convolution_has_no_past():
    conv = CausalConv3d(3, 2, (1, 1, 1), rngs=nnx.Rngs(0))
    x, _ = draw(3)
    y, past = conv(x)
    assert past is None
    np.testing.assert_allclose(y, x @ np.asarray(conv.kernel.get_value())[0, 0, 0], atol=1e-6)
