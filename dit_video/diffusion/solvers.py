"""Solvers of dx/dt = v(x, t) from noise to data. Each is a frozen object; what it remembers is in the carry.

A solver is given the velocity as a function, calls it as often as its method wants (Heun: twice), and returns the
next carry. It sees flow time as numbers inside a compiled step; nothing depends on how many steps there are. With
`m = x - t v`, the data that the velocity points to, an Euler step is `r x + (1 - r) m`, r = t_next / t: the
second-order methods add a multiple of differences of `m`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dit_video.core.errors import BadInput
from dit_video.core.types import Latent
from dit_video.diffusion.schedule import BELOW_ONE, Instant, Kind

Slope = Callable[[Latent, Instant, Any], tuple[Latent, Any]]  # (x, moment, memory) -> (dx/dt, memory)
Scalar = Float[Array, ""]


class Carry(NamedTuple):
    """All that passes from step to step."""

    x: Latent
    solver: Any  # what the solver remembers
    velocity: Any  # what the velocity remembers (windows, caches); () for none


class Solver(Protocol):
    """`init` says what is remembered, `step` goes from `now` to `then` and renews it."""

    @property
    def schedule(self) -> Kind: ...  # the schedule that belongs to it by default
    def init(self, x: Latent) -> Any: ...
    def step(self, carry: Carry, slope: Slope, now: Instant, then: Instant) -> Carry: ...


@dataclass(frozen=True)
class Euler:
    """First order; one evaluation a step."""

    schedule: Kind = "euler"

    def init(self, x: Latent) -> tuple[()]:
        return ()

    def step(self, carry: Carry, slope: Slope, now: Instant, then: Instant) -> Carry:
        v, memory = slope(carry.x, now, carry.velocity)
        return Carry(carry.x + (then.flow - now.flow) * v, (), memory)


@dataclass(frozen=True)
class Heun:
    """Second order; two evaluations a step: the mean of the slopes at both ends. A step that goes far below its time,
    as that before the last does, takes the slope in its middle: at its end it is what x is off the data over t, so that
    an error of the first half would come back h / 2t times. The last step is Euler's, because a network has not learned
    the slope at t = 0 (Karras et al. 2022, arXiv 2206.00364, algorithm 1); so it wants the schedule whose last step is
    small."""

    schedule: Kind = "euler"

    def init(self, x: Latent) -> tuple[()]:
        return ()

    def step(self, carry: Carry, slope: Slope, now: Instant, then: Instant) -> Carry:
        h, near = then.flow - now.flow, then.flow > now.flow / 3
        part = jnp.where(near, 1.0, 0.5)
        second = Instant(*(a + part * (b - a) for a, b in zip(now, then, strict=True)))
        v, memory = slope(carry.x, now, carry.velocity)
        v_second, memory = slope(carry.x + part * h * v, second, memory)
        v = jnp.where(near, (v + v_second) / 2, jnp.where(then.flow > 0, v_second, v))
        return Carry(carry.x + h * v, (), memory)


def log_snr(t: Scalar) -> Scalar:
    """Half the log signal-to-noise ratio, lambda = log((1 - t) / t): the time in which these methods are linear."""
    t = jnp.clip(t, 1e-12, 1 - BELOW_ONE)
    return jnp.log1p(-t) - jnp.log(t)


class Multistep(NamedTuple):
    """The last two evaluations: the data each pointed to and its time, and the point that the last step left."""

    data: Latent
    data_before: Latent
    x: Latent
    t: Scalar
    t_before: Scalar
    count: Int[Array, ""]


def _remember_nothing(x: Latent) -> Multistep:
    one = jnp.ones((), jnp.float32)
    return Multistep(jnp.zeros_like(x), jnp.zeros_like(x), x, one, one, jnp.zeros((), jnp.int32))


def _predict(x: Latent, data: Latent, old: Multistep, now: Instant, then: Instant) -> Latent:
    """The two-step predictor of DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, algorithm 2) in flow form, which is
    UniP-2 with B(h) = e^h - 1 as well. First and last step are Euler's."""
    r = then.flow / now.flow
    h, h_old = log_snr(then.flow) - log_snr(now.flow), log_snr(now.flow) - log_snr(old.t)
    second = (old.count > 0) & (then.flow > 0)
    c = jnp.where(second, 0.5 * h / jnp.where(second, h_old, 1.0), 0.0)
    return r * x + (1 - r) * (data + c * (data - old.data))


@dataclass(frozen=True)
class DPMSolver2M:
    """DPM-Solver++(2M): second order, one evaluation a step."""

    schedule: Kind = "unipc"

    def init(self, x: Latent) -> Multistep:
        return _remember_nothing(x)

    def step(self, carry: Carry, slope: Slope, now: Instant, then: Instant) -> Carry:
        x, old, memory = carry
        v, memory = slope(x, now, memory)
        data = x - now.flow * v
        new = Multistep(data, old.data, x, jnp.float32(now.flow), old.t, old.count + 1)
        return Carry(_predict(x, data, old, now, then), new, memory)


def _phi(h: Scalar) -> tuple[Scalar, Scalar]:
    """b_1, b_2 of UniPC's order conditions with B(h) = e^-h - 1; by series where subtraction would lose digits."""
    s = -h
    big = jnp.where(jnp.abs(s) < 0.3, -0.3, s)
    first, e = jnp.expm1(big) / big - 1, jnp.expm1(big)
    second = first / big - 0.5
    # (e^s - 1 - s) / s and (e^s - 1 - s - s^2/2) / s^2 for small s
    first_small = s * (1 / 2 + s * (1 / 6 + s * (1 / 24 + s * (1 / 120 + s * (1 / 720 + s / 5040)))))
    second_small = s * (1 / 6 + s * (1 / 24 + s * (1 / 120 + s * (1 / 720 + s * (1 / 5040 + s / 40320)))))
    e_small = jnp.expm1(jnp.where(s == 0, -1.0, s))
    small = jnp.abs(s) < 0.3
    return jnp.where(small, first_small / e_small, first / e), 2 * jnp.where(small, second_small / e_small, second / e)


@dataclass(frozen=True)
class UniPC:
    """UniPC of order 2 with B_2(h) (Zhao et al. 2023, arXiv 2302.04867): the evaluation at the new point first corrects
    the step that led there, then predicts the next. One evaluation a step; the default of the Wan pipelines, whose
    diffusers scheduler this follows number for number (solver_type bh2, lower_order_final)."""

    schedule: Kind = "unipc"

    def init(self, x: Latent) -> Multistep:
        return _remember_nothing(x)

    def step(self, carry: Carry, slope: Slope, now: Instant, then: Instant) -> Carry:
        x, old, memory = carry
        v, memory = slope(x, now, memory)
        data = x - now.flow * v
        x = jnp.where(old.count > 0, self._correct(data, old, now), x)
        new = Multistep(data, old.data, x, jnp.float32(now.flow), old.t, old.count + 1)
        return Carry(_predict(x, data, old, now, then), new, memory)

    def _correct(self, data: Latent, old: Multistep, now: Instant) -> Latent:
        """UniC: the step from the last point again, now that the data at its end is known."""
        r = now.flow / old.t
        h = jnp.where(old.count > 0, log_snr(now.flow) - log_snr(old.t), 1.0)
        two = old.count > 1
        ratio = jnp.where(two, (log_snr(old.t_before) - log_snr(old.t)) / h, -1.0)
        b1, b2 = _phi(h)
        rho_old = jnp.where(two, (b2 - b1) / (ratio - 1), 0.0)
        rho_new = jnp.where(two, b1 - rho_old, 0.5)
        bend = rho_old / ratio * (old.data_before - old.data) + rho_new * (data - old.data)
        return r * old.x + (1 - r) * (old.data + bend)


SOLVERS: dict[str, Solver] = {"unipc": UniPC(), "dpmpp_2m": DPMSolver2M(), "heun": Heun(), "euler": Euler()}


def solver_named(name: str) -> Solver:
    """The solver of a command-line name. Raises BadInput with the names there are."""
    if name not in SOLVERS:
        raise BadInput(f"solver={name!r} is unknown. Use one of {', '.join(SOLVERS)}.")
    return SOLVERS[name]
