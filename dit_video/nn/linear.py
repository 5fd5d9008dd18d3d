"""A matrix product whose gradient is fast on a CPU too.

XLA hands the gradient of `x @ w` to a slow product of its own on CPU, because factors are read transposed: with respect
to `w` it ran at 19 GFLOP/s where the product itself ran at 96 (2560 x 128 x 512, one core). Here `w` and its gradient
are transposed *outside* of the products, as copies that the compiler may not fold into them. On other platforms it may.
Forward-mode differentiation works as everywhere.
"""

import jax
from flax import nnx
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

SAVED = "product"  # the name of results for rematerialisation policies
NORMAL = nnx.initializers.normal(0.02)
_XAVIER = nnx.initializers.xavier_uniform()


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


def matmul(x: Float[Array, "*rest D"], w: Float[Array, "D F"]) -> Float[Array, "*rest F"]:
    """x @ w."""
    return checkpoint_name(_matmul(x, w), SAVED)


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
