"""Two denoisers in one run: one for the times near noise, the other for those near data (Wan 2.2 A14B)."""

import jax
import jax.numpy as jnp

from dit_video.diffusion.guidance import Velocity


def by_time(high: Velocity, low: Velocity, boundary: float) -> Velocity:
    """`high` at model times from `boundary` up, `low` below it; only one of them is evaluated.

    Guidance goes inside, because each has its own scale: `by_time(guided(a, 4.0), guided(b, 3.0), 0.875)`. Both must
    keep the same memory. Both sets of weights have to be there; who cannot hold them asks the schedule which steps are
    whose and goes by that. Reference: `boundary_ratio` of `WanPipeline`.
    """

    def velocity(x, t, memory):
        now = jnp.max(t.values)  # all clips of a sampling run share their time; known positions have zero
        return jax.lax.cond(now >= boundary, high, low, x, t, memory)

    return velocity
