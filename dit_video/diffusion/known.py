"""Known positions: what is given is data at time zero and stands still, whatever the solver or the guidance."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from dit_video.core.types import Latent, Time
from dit_video.diffusion.guidance import Pair, Velocity


def known(velocity: Velocity | Pair, clean: Latent, mask: Bool[Array, "B T H W"]) -> Velocity | Pair:
    """Under the mask the network sees `clean` at time zero, and the velocity (each of a pair) is zero.

    The time gets one more value, zero, and its index names it under the mask. Overwritten before each evaluation, as
    in Wan 2.2's image to video; `hold` does it once more after the run.
    """

    def held(x, t, memory):
        values = jnp.concatenate([t.values, jnp.zeros_like(t.values[:, :1])], axis=1)
        index = jnp.zeros(mask.shape, jnp.int32) if t.index is None else t.index
        time = Time(values, jnp.where(mask, t.values.shape[1], index))
        v, memory = velocity(hold(x, clean, mask), time, memory)
        return jax.tree.map(lambda a: jnp.where(mask[..., None], 0.0, a), v), memory

    return held


def hold(x: Latent, clean: Latent, mask: Bool[Array, "B T H W"]) -> Latent:
    """`x` with the known positions as given."""
    return jnp.where(mask[..., None], clean, x)
