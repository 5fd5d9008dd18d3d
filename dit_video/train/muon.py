"""Muon (Jordan et al. 2024): momentum whose every matrix is orthogonalised.

Momentum and state are optax's; the orthogonalisation is here, because as in the reference implementation it multiplies
in bfloat16 (optax's: in the gradient's dtype). It asks for no more: what it leaves is orthogonal to a third only, see
`orthogonal`. With matrix units matrices that are square or wide take a half to a third of the time, on a CPU too; tall
ones, whose transpose XLA reads as it lies, as long as in float32 there.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float
from optax.contrib import MuonDimensionNumbers

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of x, x^3 and x^5: the steepest start


def scale_by_muon(
    axes: Callable[[optax.Params], optax.Params], beta: float, eps: float, steps: int
) -> tuple[optax.GradientTransformation, optax.GradientTransformation]:
    """Nesterov momentum, orthogonalised, scaled to the root mean square of AdamW's steps (arXiv 2502.16982).

    axes: which axes of each parameter are in and out, a tree of `MuonDimensionNumbers`; of three axes the first counts
    matrices, of more all but the last are in. Two to be chained.
    """
    momentum = optax.contrib.scale_by_muon(beta=beta, eps=eps, ns_steps=0, weight_dimension_numbers=axes)

    def each(update: jax.Array, _: jax.Array | None) -> jax.Array:
        stack = update if update.ndim == 3 else update.reshape(1, -1, update.shape[-1])
        out = jax.vmap(lambda x: orthogonal(x, steps, eps))(stack)
        return (0.2 * max(stack.shape[1:]) ** 0.5 * out).reshape(update.shape)

    return momentum, optax.stateless_with_tree_map(each)


def orthogonal(x: Float[Array, "m n"], steps: int = 5, eps: float = 1e-8) -> Float[Array, "m n"]:
    """Singular values between .7 and 1.2, the vectors kept: Newton-Schulz iterations of the fifth order. (Singular
    values below a hundredth of the matrix's norm are left below that.) Products have factors in bfloat16 and sums in
    the matrix's dtype."""
    if x.shape[0] > x.shape[1]:
        return orthogonal(x.T, steps, eps).T
    a, b, c = COEFFICIENTS
    x = x / (jnp.linalg.norm(x) + eps)
    for _ in range(steps):
        square = _product(x, x, 1)
        x = a * x + _product(b * square + c * _product(square, square, 0), x, 0)
    return x


def _product(x: Float[Array, "m k"], y: Float[Array, "..."], axis: int) -> Float[Array, "..."]:
    """Over the last axis of x and this one of y."""
    factors = x.astype(jnp.bfloat16), y.astype(jnp.bfloat16)
    return lax.dot_general(*factors, (((1,), (axis,)), ((), ())), preferred_element_type=x.dtype)


def muon_axes(path: tuple[str, ...], x: jax.Array) -> MuonDimensionNumbers | None:
    """Which axes of a hidden matrix are in and out. A kernel in stacked `blocks` is a matrix a layer (the first axis);
    a convolution's is one from all of (space, time, channels in) to channels out. None leaves the parameter to AdamW:
    embeddings, heads, what takes in time and text, biases, norms, tables."""
    if path[-1] == "kernel" and x.ndim == 3 and "blocks" in path:
        return MuonDimensionNumbers(reduction_axis=1, output_axis=2)
    if path[-1] == "kernel" and x.ndim in (4, 5):
        return MuonDimensionNumbers(reduction_axis=tuple(range(x.ndim - 1)), output_axis=x.ndim - 1)
    return None
