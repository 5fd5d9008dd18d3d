"""Step caching: where a model's velocity hardly changes from one step to the next, the last one is taken again.

In the manner of MagCache (Ma et al. 2025, arXiv 2506.09045): how much it changes depends on the model and the time and
hardly on the prompt, so it is measured once a model. Which steps are left out is then known before a run: the
decision is a number that the compiled step is given. Here whole velocities are kept, not residuals of a network, so
that any denoiser can be cached, and a kept one is scaled by the change of length that was measured.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from dit_video.core.errors import BadInput, NonFinite
from dit_video.core.types import Latent, Time
from dit_video.diffusion.guidance import Velocity


class Reuse(NamedTuple):
    """What a step is told."""

    again: Bool[Array, ""]  # take the last velocity
    scale: Float[Array, ""]  # times this


class Cache(NamedTuple):
    """The memory of `cached`."""

    velocity: Latent
    inner: Any  # the memory of what is cached


def cached(velocity: Velocity, reuse: Reuse) -> Velocity:
    """The velocity, or the last one scaled: then `velocity` is not evaluated. Goes around guidance, so that both
    branches are left out. For solvers of one evaluation a step."""

    def held(x: Latent, t: Time, memory: Cache) -> tuple[Latent, Cache]:
        def fresh() -> Cache:
            return Cache(*velocity(x, t, memory.inner))

        def again() -> Cache:
            return Cache(memory.velocity * reuse.scale, memory.inner)

        memory = jax.lax.cond(reuse.again, again, fresh)
        return memory.velocity, memory

    return held


@dataclass(frozen=True)
class Curve:
    """How a model's velocity changes on its way, measured: one row a step, times falling, the rest cumulated."""

    t: tuple[float, ...]
    change: tuple[float, ...]  # sum of |v_i - s_i v_(i-1)| / |v_i|
    scale: tuple[float, ...]  # sum of log s_i, s_i = <v_i, v_(i-1)> / |v_(i-1)|^2

    def between(self, early: float, late: float) -> tuple[float, float]:
        """(relative change, scale) of the velocity from time `early` to the smaller time `late`."""
        rising = self.t[::-1]

        def at(column: tuple[float, ...], t: float) -> float:
            return float(np.interp(t, rising, column[::-1]))

        change = at(self.change, late) - at(self.change, early)
        return change, float(np.exp(at(self.scale, late) - at(self.scale, early)))


def measured(runs: Iterable[tuple[Float[np.ndarray, "n"], Sequence[np.ndarray]]]) -> Curve:
    """The curve of a model from runs of several prompts: the times of the steps, and the velocity at each (a run's
    velocities follow one path). Runs must have the same times. Raises NonFinite where a velocity is zero or is not
    finite: nothing can be told of the next."""
    runs = list(runs)
    if not runs or len(runs[0][0]) < 2:
        raise BadInput("measuring a cache wants a run of at least two steps.")
    times, changes, scales = runs[0][0], [], []
    for _, velocities in runs:
        pairs = list(pairwise(np.asarray(v, np.float64) for v in velocities))
        with np.errstate(divide="ignore", invalid="ignore"):
            s = [(b * a).sum() / (a * a).sum() for a, b in pairs]
            change = [np.linalg.norm(b - k * a) / np.linalg.norm(b) for (a, b), k in zip(pairs, s, strict=True)]
        if not np.isfinite([s, change]).all():
            raise NonFinite("measuring a cache: a step's velocity is zero, NaN or infinite. Use --cache off.")
        changes.append(change)
        scales.append(np.log(np.maximum(s, 1e-3)))
    columns = (np.append(0.0, np.cumsum(np.mean(a, 0))) for a in (changes, scales))
    return Curve(*(tuple(round(float(x), 5) for x in column) for column in (times, *columns)))


@dataclass(frozen=True)
class Caching:
    """How far caching may go: the relative change that a kept velocity may be off by, how many steps in a row are left
    out, and the part of the steps at the start, where the picture is laid out, that never are."""

    budget: float
    most: int
    keep: float = 0.2


CACHING: dict[str, Caching | None] = {"off": None, "safe": Caching(0.1, 1), "fast": Caching(0.3, 3)}


def caching_named(name: str) -> Caching | None:
    if name not in CACHING:
        raise BadInput(f"cache={name!r} is unknown. Use {', '.join(CACHING)}.")
    return CACHING[name]


def reuses(curve: Curve, times: Float[np.ndarray, "n"], how: Caching) -> list[Reuse]:
    """What each step of a run is told; `times` are those of its evaluations. The last step is always evaluated."""
    plan, last, scale = [], 0, 1.0
    for i, t in enumerate(times):
        change, total = curve.between(float(times[last]), float(t))
        kept = i >= how.keep * len(times) and i < len(times) - 1
        if kept and i - last <= how.most and change <= how.budget:
            # the velocity in memory was scaled at each step that was left out
            plan.append(Reuse(np.bool_(True), np.float32(total / scale)))
            scale = total
        else:
            plan.append(Reuse(np.bool_(False), np.float32(1.0)))
            last, scale = i, 1.0
    return plan


def empty(noise: Latent, inner: Any = ()) -> Cache:
    """The memory before the first step."""
    return Cache(jnp.zeros_like(noise), inner)
