"""A matrix product that is fast on a CPU too, with its gradient.

XLA hands the gradient of `x @ w` to a slow product of its own on CPU, because factors are read transposed: with respect
to `w` it ran at 19 GFLOP/s where the product itself ran at 96 (2560 x 128 x 512, one core). Here `w` and its gradient
are transposed *outside* of the products, as copies that the compiler may not fold into them. On other platforms it may.
Forward-mode differentiation works as everywhere, but for what is rounded:

Where JAX was told `jax_default_matmul_precision="bfloat16"`, accelerators round the factors of float32 products; here a
CPU does too. One with matrix units (AMX) is five times as fast at such products, but only where the left factor lies
row by row: for the gradient of `w`, which sums over rows, a factor is turned first, by a product with the identity,
which is exact.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, BFloat16, Float

SAVED = "product"  # the name of results for rematerialisation policies
NORMAL = nnx.initializers.normal(0.02)
_XAVIER = nnx.initializers.xavier_uniform()
_TURNED = 256  # columns that are turned at once: turning costs as much as so many columns of the product


def _transposed(w: Float[Array, "D F"]) -> Float[Array, "F D"]:
    return lax.platform_dependent(w, cpu=lambda w: lax.optimization_barrier(w.T), default=lambda w: w.T)


def _product(x, w, axis: int):
    return lax.dot_general(x, w, (((x.ndim - 1,), (axis,)), ((), ())))


@jax.custom_jvp
def _matmul(x: Float[Array, "*rest D"], w: Float[Array, "D F"]) -> Float[Array, "*rest F"]:
    return _product(x, w, 0)


@_matmul.defjvp
def _matmul_jvp(primals, tangents):
    (x, w), (dx, dw) = primals, tangents
    # Transposed by autodiff these are g w^T, from a copy of w^T, and x^T g as the transpose of a finished g^T x.
    return _matmul(x, w), _product(dx, _transposed(w), 1) + _product(x, _transposed(dw), 1)


def _rounded_product(x: Array, w: Array, of_x: tuple[int, ...], of_w: tuple[int, ...]) -> Float[Array, "..."]:
    """Sums over these axes, float32, of factors that are rounded to bfloat16."""
    x, w = x.astype(jnp.bfloat16), w.astype(jnp.bfloat16)
    return lax.dot_general(x, w, ((of_x, of_w), ((), ())), preferred_element_type=jnp.float32)


@jax.custom_vjp
def _rounded(x: Float[Array, "*rest D"], w: Float[Array, "D F"]) -> Float[Array, "*rest F"]:
    return _rounded_product(x, w, (x.ndim - 1,), (0,))


def _rounded_back(factors, g):
    x, w = factors
    rows = tuple(range(x.ndim - 1))  # not made one axis: batch and tokens may be split over a mesh, each by itself
    dw = lax.platform_dependent(x, g, cpu=_over_rows, default=lambda x, g: _rounded_product(x, g, rows, rows))
    return _rounded_product(g, w, (g.ndim - 1,), (1,)), dw


_rounded.defvjp(lambda x, w: (_rounded(x, w), (x, w)), _rounded_back)


def _over_rows(x: Float[Array, "*rest D"], g: Float[Array, "*rest F"]) -> Float[Array, "D F"]:
    """x^T g, of which the narrower is turned."""
    x, g = x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1])
    if x.shape[1] <= g.shape[1]:
        return _rounded_product(_turned(x), g, (1,), (0,))
    return lax.optimization_barrier(_rounded_product(_turned(g), x, (1,), (0,))).T


def _turned(x: Float[Array, "n D"]) -> BFloat16[Array, "D n"]:
    """The transpose, through the matrix units. The barriers are there lest the compiler sees what it is."""
    one = jnp.eye(min(_TURNED, x.shape[1]), dtype=jnp.bfloat16)
    x, one = lax.optimization_barrier((x.astype(jnp.bfloat16), one))
    parts = (x[:, i : i + _TURNED] for i in range(0, x.shape[1], _TURNED))
    parts = [_rounded_product(one[: p.shape[1], : p.shape[1]], p, (1,), (1,)).astype(x.dtype) for p in parts]
    return lax.optimization_barrier(jnp.concatenate(parts))


def matmul(x: Float[Array, "*rest D"], w: Float[Array, "D F"]) -> Float[Array, "*rest F"]:
    """x @ w."""
    told = jax.config.jax_default_matmul_precision == "bfloat16" and x.dtype == w.dtype == jnp.float32
    return checkpoint_name((_rounded if told else _matmul)(x, w), SAVED)


def linear_dot(x, w, dimension_numbers, precision=None, **_):
    """`matmul` with the signature that `nnx.Linear(dot_general=...)` calls. Raises `ValueError` on other products."""
    if dimension_numbers != (((x.ndim - 1,), (0,)), ((), ())):
        raise ValueError(f"not the product of a linear layer: {dimension_numbers}")
    return matmul(x, w)


def linear_layer(n_in: int, n_out: int, axes: tuple, *, init=_XAVIER, dtype, rngs) -> nnx.Linear:
    """x @ kernel + bias; `axes` are the logical axes of the kernel, of which the bias takes the last unless it is the
    width of activations, which stays whole."""
    bias = {"axes": (axes[1] if axes[1] != "width" else None,)}
    return nnx.Linear(
        n_in, n_out, kernel_init=init, dtype=dtype, rngs=rngs, dot_general=linear_dot,
        kernel_metadata={"axes": axes}, bias_metadata=bias,
    )  # fmt: skip
