"""Caching on velocities whose change is known: nothing is left out unless told, and what is kept is scaled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_video.core.errors import BadInput, NonFinite
from dit_video.diffusion.cache import CACHING, Caching, Curve, Reuse, cached, caching_named, empty, measured, reuses
from dit_video.diffusion.sample import start
from dit_video.diffusion.schedule import Schedule
from dit_video.diffusion.solvers import SOLVERS

SHAPE = (1, 3, 2, 2, 2)
TIMES = Schedule(32, 3.0).instants().flow[:-1]


def noise():
    return jnp.asarray(np.random.default_rng(0).standard_normal(SHAPE), jnp.float32)


def shrinking(x, time, memory):
    """Its length changes with time, its direction does not."""
    return (1 + time.field(x.shape)) * jnp.ones_like(x), memory + 1


def run(velocity, solver, plan, x):
    """The steps of a schedule, each told what the plan says."""
    from dit_video.diffusion.sample import advance

    @jax.jit
    def step(carry, now, then, reuse):
        return advance(carry, now, then, cached(velocity, reuse), SOLVERS[solver])

    carry = start(x, SOLVERS[solver], empty(x, jnp.zeros((), jnp.int32)))
    for (now, then), reuse in zip(Schedule(32, 3.0).pairs(), plan, strict=True):
        carry = step(carry, now, then, reuse)
    return carry


def exact_curve():
    """Of `shrinking`: no change but of length."""
    t = np.linspace(1, 0, 65)
    return Curve(tuple(t), (0.0,) * 65, tuple(np.log((1 + t) / 2)))


@pytest.mark.parametrize("solver", ["unipc", "euler"])
def test_a_velocity_that_only_changes_its_length_is_kept_without_loss(solver):
    never = [Reuse(np.bool_(False), np.float32(1))] * 32
    plan = reuses(exact_curve(), TIMES, Caching(0.1, 3))
    full, short = run(shrinking, solver, never, noise()), run(shrinking, solver, plan, noise())
    assert int(full.velocity.inner) == 32
    assert int(short.velocity.inner) == 32 - sum(bool(r.again) for r in plan) < 20
    np.testing.assert_allclose(short.x, full.x, atol=5e-3)
    # without the measured scale it would be off
    blind = [Reuse(r.again, np.float32(1)) for r in plan]
    assert np.abs(run(shrinking, solver, blind, noise()).x - full.x).max() > 0.02


def test_the_plan_keeps_start_and_end_and_the_budget():
    t = np.linspace(1, 0, 65)
    curve = Curve(tuple(t), tuple(np.linspace(0, 3.2, 65)), (0.0,) * 65)
    for how in (Caching(0.35, 1), Caching(0.35, 3), Caching(10.0, 2)):
        plan = [bool(r.again) for r in reuses(curve, TIMES, how)]
        assert not any(plan[: int(0.2 * 32)])
        assert not plan[-1]
        runs = "".join("x" if again else " " for again in plan).split()
        assert max(map(len, runs)) <= how.most
        last = 0
        for i, again in enumerate(plan):
            if again:
                assert curve.between(TIMES[last], TIMES[i])[0] <= how.budget
            else:
                last = i
    assert not any(r.again for r in reuses(curve, TIMES, Caching(1e-6, 3)))
    # at most one step in a row, wide budget: every second step after the start, 1.6 times as fast
    plan = [bool(r.again) for r in reuses(curve, TIMES, Caching(10.0, 1))]
    assert 32 / (32 - sum(plan)) > 1.5


def test_a_curve_is_measured_from_velocities():
    """A direction that turns by a known angle a step, and a length that halves."""
    angle, times = 0.1, np.linspace(1, 0.1, 8)
    path = [0.5**i * np.array([np.cos(i * angle), np.sin(i * angle)]) for i in range(8)]
    curve = measured([(times, path), (times, path)])
    change, scale = curve.between(1.0, float(times[1]))
    assert change == pytest.approx(np.sin(angle), abs=1e-4)
    assert scale == pytest.approx(0.5 * np.cos(angle), abs=1e-4)
    assert curve.between(1.0, 0.1)[0] == pytest.approx(7 * np.sin(angle), abs=1e-3)
    with pytest.raises(BadInput, match="two steps"):
        measured([])
    for still in (0.0, np.nan):  # a step that stands still, as CFG-Zero*'s first
        with pytest.raises(NonFinite, match="--cache off"):
            measured([(times, [still * path[0], *path[1:]])])


def test_names():
    assert caching_named("off") is None
    assert caching_named("safe").budget < caching_named("fast").budget
    with pytest.raises(BadInput, match=", ".join(CACHING)):
        caching_named("most")
