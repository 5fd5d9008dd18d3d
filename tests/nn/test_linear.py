"""The matrix product of linear layers: its gradient, and what rounding its factors changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_video.nn.linear import linear_dot, matmul


def factors(rows, n_in, n_out, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    x, w, g = rng.normal(size=(2, rows, n_in)), rng.normal(size=(n_in, n_out)), rng.normal(size=(2, rows, n_out))
    return tuple(jnp.asarray(a, dtype) for a in (x, w, g))


def run(x, w, g):
    """The product, and its gradients at g."""
    out, back = jax.vjp(matmul, x, w)
    return out, *back(g)


def rounded(x):
    return np.asarray(x.astype(jnp.bfloat16), np.float64)


# 300 and 520: parts of columns that are not whole; wider and narrower results
@pytest.mark.parametrize("sizes", [(40, 32, 64), (40, 64, 32), (17, 300, 520), (17, 520, 300)])
@pytest.mark.parametrize("told", [False, True], ids=["float32", "rounded"])
def test_the_product_and_its_gradients(sizes, told):
    x, w, g = factors(*sizes)
    with jax.default_matmul_precision("bfloat16" if told else "float32"):
        out, dx, dw = jax.jit(run)(x, w, g)
    x, w, g = (rounded(a) if told else np.asarray(a, np.float64) for a in (x, w, g))
    for mine, wanted in ((out, x @ w), (dx, g @ w.T), (dw, np.einsum("bld,blf->df", x, g))):
        assert mine.dtype == jnp.float32
        np.testing.assert_allclose(mine, wanted, rtol=0, atol=2e-6 * np.abs(wanted).max())


def test_forward_mode_works():
    x, w, _ = factors(5, 8, 6)
    _, tangent = jax.jvp(matmul, (x, w), (x, w))
    np.testing.assert_allclose(tangent, 2 * matmul(x, w), rtol=1e-6)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_gradients_of_a_batch_are_those_of_its_parts(precision):
    x, w, _ = factors(5, 8, 6)
    loss = lambda x, w: (matmul(x, w) ** 2).sum()  # noqa: E731
    with jax.default_matmul_precision(precision):
        each = jax.jit(jax.vmap(jax.grad(loss, 1), (0, None)))(x, w)
        both = jax.jit(jax.grad(loss, 1))(x, w)
    np.testing.assert_allclose(each.sum(0), both, rtol=1e-5, atol=1e-4)


def test_other_products_are_refused():
    x, w, _ = factors(5, 8, 8)
    with pytest.raises(ValueError, match="not the product of a linear layer"):
        linear_dot(x, w, (((2,), (1,)), ((), ())))
