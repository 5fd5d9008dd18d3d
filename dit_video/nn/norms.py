"""Norms, in float32 whatever the dtype of the activations."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float


def layer_norm(x: Float[Array, "*rest D"], eps: float) -> Float[Array, "*rest D"]:
    """Zero mean and unit variance along the last axis, without weights; float32 out (Ba et al. 2016)."""
    x = x.astype(jnp.float32)
    centred = x - jnp.mean(x, -1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), -1, keepdims=True) + eps)


def rms_norm(x: Float[Array, "*rest D"], scale: Float[Array, "D"], eps: float) -> Float[Array, "*rest D"]:
    """Unit root mean square along the last axis, times `scale`; the dtype of `x` out (Zhang & Sennrich 2019)."""
    f = x.astype(jnp.float32)
    return (f * jax.lax.rsqrt(jnp.mean(jnp.square(f), -1, keepdims=True) + eps) * scale).astype(x.dtype)


class LayerNorm(nnx.Module):
    """`layer_norm` with weights; float32 out."""

    def __init__(self, width: int, eps: float):
        self.scale = nnx.Param(jnp.ones(width), axes=(None,))
        self.bias = nnx.Param(jnp.zeros(width), axes=(None,))
        self.eps = eps

    def __call__(self, x: Float[Array, "*rest D"]) -> Float[Array, "*rest D"]:
        return layer_norm(x, self.eps) * self.scale[...] + self.bias[...]


class HeadsNorm(nnx.Module):
    """The weight of an `rms_norm` over all heads together."""

    def __init__(self, width: int):
        self.scale = nnx.Param(jnp.ones(width), axes=("heads",))
