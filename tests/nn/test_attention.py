"""Attention: both back ends against a plain softmax, their gradients, the memory of the chunked one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_video.core.errors import BadInput
from dit_video.nn.attention import BACKENDS, attention


def inputs(B=2, L=300, S=37, n=3, K=8, seed=0):
    rng = np.random.default_rng(seed)

    def make(*shape):
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    return make(B, L, n, K), make(B, S, n, K), make(B, S, n, K), make(B, S)


def by_hand(q, k, v, bias):
    logits = np.einsum("blnk,bsnk->bnls", np.float64(q) * q.shape[-1] ** -0.5, np.float64(k))
    e = np.exp(logits + np.float64(bias)[:, None, None])
    return np.einsum("bnls,bsnk->blnk", e / e.sum(-1, keepdims=True), np.float64(v))


@pytest.mark.parametrize("backend", sorted(BACKENDS))
@pytest.mark.parametrize("L", [5, 256, 300])
def test_values(backend, L):
    q, k, v, bias = inputs(L=L)
    np.testing.assert_allclose(attention(q, k, v, bias=bias, backend=backend), by_hand(q, k, v, bias), atol=2e-6)
    np.testing.assert_allclose(
        attention(q, k, v, backend=backend, scale=8**-0.5), by_hand(q, k, v, 0 * bias), atol=2e-6
    )


def test_gradients_agree():
    args = inputs()
    weight = jnp.asarray(np.random.default_rng(1).standard_normal(args[0].shape), jnp.float32)

    def loss(args, backend):
        q, k, v, bias = args
        return jnp.sum(weight * attention(q, k, v, bias=bias, backend=backend))

    want, got = (jax.jit(jax.grad(lambda a, b=b: loss(a, b)))(args) for b in ("xla", "chunked"))
    for a, b in zip(want, got, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_chunked_memory_is_linear():
    """Temporary bytes of forward and backward, as the compiler plans them; nothing is run."""

    def temporary(L, backend):
        x = jax.ShapeDtypeStruct((1, L, 2, 32), jnp.float32)

        def loss(q, k, v):
            return jnp.sum(attention(q, k, v, backend=backend) ** 2)

        step = jax.jit(jax.value_and_grad(loss, (0, 1, 2))).lower(x, x, x).compile()
        return step.memory_analysis().temp_size_in_bytes

    assert temporary(4096, "chunked") < temporary(4096, "xla") / 5
    assert temporary(8192, "chunked") < 2.5 * temporary(4096, "chunked")
    assert temporary(8192, "xla") > 3.5 * temporary(4096, "xla")


def test_unknown_back_end_lists_what_exists():
    q, k, v, _ = inputs(L=2)
    with pytest.raises(BadInput, match=r"'flash'.*chunked, xla"):
        attention(q, k, v, backend="flash")
