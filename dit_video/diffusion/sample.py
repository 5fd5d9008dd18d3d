"""Sampling: one step, and two ways to drive it: a loop on the host, or `lax.scan`. Both give the same numbers."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from dit_video.core.errors import NonFinite
from dit_video.core.types import Latent, Time
from dit_video.diffusion.guidance import Velocity
from dit_video.diffusion.schedule import Instant, Schedule
from dit_video.diffusion.solvers import Carry, Slope, Solver

Step = Callable[[Carry, Instant, Instant], tuple[Carry, Bool[Array, ""]]]


def start(noise: Latent, solver: Solver, memory: Any = ()) -> Carry:
    """The carry before the first step."""
    return Carry(noise, solver.init(noise), memory)


def at_moment(velocity: Velocity, data: bool = False) -> Slope:
    """A velocity as solvers call it. All clips are at the same moment.

    data: the network put out data, and its velocity was made of that with the time that it was told, which some
    schedules cut. Solvers make data of it again with the flow's time: so it becomes the velocity of that time.
    """

    def slope(x: Latent, instant: Instant, memory: Any) -> tuple[Latent, Any]:
        values = jnp.broadcast_to(jnp.asarray(instant.model, jnp.float32), (x.shape[0], 1))
        v, memory = velocity(x, Time(values, None), memory)
        return (v * (instant.model / instant.flow) if data else v), memory

    return slope


def advance(carry: Carry, now: Instant, then: Instant, velocity: Velocity, solver: Solver, data: bool = False) -> Carry:
    """One step of the solver; `data` as in `at_moment`."""
    return solver.step(carry, at_moment(velocity, data), now, then)


def step_function(velocity: Velocity, solver: Solver, data: bool = False) -> Step:
    """`advance` that also says whether the latents are finite. Jit it; the moments are arguments."""

    def step(carry: Carry, now: Instant, then: Instant) -> tuple[Carry, Bool[Array, ""]]:
        carry = advance(carry, now, then, velocity, solver, data)
        return carry, jnp.isfinite(carry.x).all()

    return step


def iterate(step: Step, carry: Carry, schedule: Schedule, first: int = 0) -> Iterator[tuple[int, Carry]]:
    """Yields (steps done, carry) after each step: show it, save it, or stop.

    Looks at a step's finite flag after the next one is under way, so an accelerator need not wait for the host.
    Raises NonFinite with the number of the step.
    """
    pairs = schedule.pairs()
    flag, done = None, first
    for now, then in pairs[first:]:
        carry, finite = step(carry, now, then)
        check_finite(flag, done, len(pairs))
        flag, done = finite, done + 1
        yield done, carry
    check_finite(flag, done, len(pairs))


def check_finite(finite: Bool[Array, ""] | None, step: int, steps: int) -> None:
    """Raises NonFinite with the number of the step."""
    if finite is not None and not bool(finite):
        raise NonFinite(
            f"Non-finite latents at step {step}/{steps}. Try --dtype float32; if it is in use, the weights are broken."
        )


def run(step: Step, carry: Carry, schedule: Schedule) -> Carry:
    """All steps by a loop on the host."""
    last = carry
    for _, last in iterate(step, carry, schedule):  # noqa: B007
        pass
    return last


def scan(
    velocity: Velocity, solver: Solver, noise: Latent, instants: Instant, memory: Any = (), data: bool = False
) -> Carry:
    """All steps as one `lax.scan`: one program that can be exported. `instants` as `Schedule.instants()` gives it;
    `data` as in `at_moment`."""

    def body(carry: Carry, moments: tuple[Instant, Instant]) -> tuple[Carry, None]:
        return advance(carry, *moments, velocity, solver, data), None

    instants = Instant(*(jnp.asarray(a) for a in instants))
    moments = (jax.tree.map(lambda a: a[:-1], instants), jax.tree.map(lambda a: a[1:], instants))
    return jax.lax.scan(body, start(noise, solver, memory), moments)[0]
