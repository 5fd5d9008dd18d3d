"""Time as numbers, and what depends on time given to tokens."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def sinusoid(t: Float[Array, "*rest"], dim: int, period: float = 1e4) -> Float[Array, "*rest dim"]:
    """Cosines, then sines, of `t * period^(-i/(dim/2))`, float32 (Vaswani et al. 2017, 3.5; cosine first as in Wan)."""
    half = dim // 2
    frequency = np.exp(-np.log(period) * np.arange(half, dtype=np.float64) / half).astype(np.float32)
    angle = t.astype(jnp.float32)[..., None] * frequency
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], -1)


def per_token(values: Float[Array, "B K D"], index: Int[Array, "b L"] | None) -> Float[Array, "B l D"]:
    """values[b, index[b, l]] for few values K.

    One value is left to broadcast (l = 1), two are a select that the compiler fuses into whatever reads it, more are a
    product with a one-hot matrix, whose gradient is a product too and not a scatter.
    """
    K = values.shape[1]
    if index is None or K == 1:
        return values[:, :1]
    if K == 2:
        return jnp.where((index == 0)[..., None], values[:, :1], values[:, 1:])
    chosen = jax.nn.one_hot(index, K, dtype=values.dtype)
    chosen = jnp.broadcast_to(chosen, (values.shape[0], *chosen.shape[1:]))
    return jnp.einsum("blk,bkd->bld", chosen, values, precision=jax.lax.Precision.HIGHEST)


def gelu_tanh(x: Float[Array, "*rest"]) -> Float[Array, "*rest"]:
    """GELU by its tanh approximation (Hendrycks & Gimpel 2016), as the Wan weights were trained with."""
    return jax.nn.gelu(x, approximate=True)
