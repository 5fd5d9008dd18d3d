"""Guidance: two velocities in, one out. A *pair* gives the velocities with and without the prompt.

    velocity = guided(in_one_batch(network), scale=5.0)

The scale is a number inside the compiled step, not a constant of it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from dit_video.core.errors import BadInput
from dit_video.core.types import Latent, Time
from dit_video.diffusion.schedule import BELOW_ONE

Velocity = Callable[[Latent, Time, Any], tuple[Latent, Any]]  # (x, t, memory) -> (dx/dt, memory)
Pair = Callable[[Latent, Time, Any], tuple[tuple[Latent, Latent], Any]]  # with the prompt, without it
Combine = Callable[[Latent, Latent, Any], Latent]  # (with, without, scale) -> velocity


def in_one_batch(both: Velocity) -> Pair:
    """One evaluation of twice the batch: `both` has prompts in its first half and negative prompts in its second."""

    def pair(x, t, memory):
        index = None if t.index is None else jnp.concatenate([t.index, t.index])
        twice = Time(jnp.concatenate([t.values, t.values]), index)
        v, memory = both(jnp.concatenate([x, x]), twice, memory)
        return (v[: x.shape[0]], v[x.shape[0] :]), memory  # len() wants a number, an export has symbols

    return pair


def cfg(v: Latent, u: Latent, scale) -> Latent:
    """Classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598, eq. 6): u + scale (v - u)."""
    return u + scale * (v - u)


def _per_clip(function, *arrays: Latent) -> Float[Array, "B 1 1 1 1"]:
    return jnp.expand_dims(function(*(a.astype(jnp.float32).reshape(len(a), -1) for a in arrays)), (1, 2, 3, 4))


def cfg_zero_star(v: Latent, u: Latent, scale) -> Latent:
    """CFG-Zero* (Fan et al. 2025, arXiv 2503.18886, eq. 7): the unprompted velocity first scaled to fit the prompted
    one, s = <v, u> / |u|^2 a clip. Standing still in the first moments is `zero_start`."""
    s = _per_clip(lambda v, u: jnp.sum(v * u, -1) / (jnp.sum(u * u, -1) + 1e-8), v, u)
    return s * u + scale * (v - s * u)


def rescaled(combine: Combine, amount: float) -> Combine:
    """Pulls the guided velocity's standard deviation back towards the prompted one's, a clip, by `amount` in 0..1
    (Lin et al. 2023, arXiv 2305.08891, eq. 15-16). Guards against over-exposure at high scales."""

    def rescale(v, u, scale):
        guided_v = combine(v, u, scale)
        ratio = _per_clip(lambda v, g: jnp.std(v, -1) / (jnp.std(g, -1) + 1e-8), v, guided_v)
        return amount * guided_v * ratio + (1 - amount) * guided_v

    return rescale


def guided(pair: Pair, scale, combine: Combine = cfg) -> Velocity:
    """One velocity of a pair."""

    def velocity(x, t, memory):
        (v, u), memory = pair(x, t, memory)
        return combine(v, u, scale), memory

    return velocity


def within(inside: Velocity, outside: Velocity, low: float, high: float) -> Velocity:
    """`inside` while low < t <= high, `outside` otherwise: guidance in an interval (Kynkaanniemi et al. 2024, arXiv
    2404.07724), where outside it only the prompted velocity is evaluated. Both must keep the same memory."""

    def velocity(x, t, memory):
        now = jnp.max(t.values)  # all clips of a sampling run share their time; known positions have zero
        return jax.lax.cond((now > low) & (now <= high), inside, outside, x, t, memory)

    return velocity


def zero_start(velocity: Velocity, first: Bool[Array, ""]) -> Velocity:
    """Stands still in the `first` step: the zero-init of CFG-Zero*, for models that are untrained at pure noise."""

    def still(x, t, memory):
        v, memory = velocity(x, t, memory)
        return jnp.where(first, 0.0, v), memory

    return still


@dataclass(frozen=True)
class Guidance:
    """What is done with a pair, beside its scale.

    `interval`: guidance is for times low < t <= high, elsewhere the prompt is followed alone. `rescale`: `rescaled`'s.
    `zero_star`: CFG-Zero* with its first step of no velocity. Raises `BadInput` on numbers that cannot be right.
    """

    interval: tuple[float, float] = (0.0, 1.0)
    rescale: float = 0.0
    zero_star: bool = False

    def __post_init__(self) -> None:
        low, high = self.interval
        if not 0 <= low < high <= 1:
            raise BadInput(f"guidance_interval={low} {high}: two times that rise, from 0 (data) to 1 (noise).")
        if not 0 <= self.rescale <= 1:
            raise BadInput(f"guidance_rescale={self.rescale}: from 0 (off) to 1.")

    def velocity(self, pair: Pair, alone: Velocity, scale, now) -> Velocity:
        """Of a pair, and of what evaluates its prompted half alone, in the step from flow time `now`. (The time that
        a model is told tells no first step: some schedules cut it.)"""
        combine = cfg_zero_star if self.zero_star else cfg
        found = guided(pair, scale, rescaled(combine, self.rescale) if self.rescale else combine)
        if self.interval != (0.0, 1.0):
            found = within(found, alone, *self.interval)
        return zero_start(found, jnp.asarray(now) >= 1 - 2 * BELOW_ONE) if self.zero_star else found
