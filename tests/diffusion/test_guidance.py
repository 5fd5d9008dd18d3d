"""Guidance: each formula by hand, one batch against two, and where it is switched off."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_video.core.errors import BadInput
from dit_video.core.types import Time
from dit_video.diffusion.guidance import (
    Guidance,
    cfg,
    cfg_zero_star,
    guided,
    in_one_batch,
    rescaled,
    within,
    zero_start,
)
from dit_video.diffusion.known import known
from dit_video.diffusion.sample import start, step_function
from dit_video.diffusion.schedule import Schedule
from dit_video.diffusion.solvers import SOLVERS

SHAPE = (2, 2, 2, 2, 3)


def arrays(n):
    rng = np.random.default_rng(1)
    return [jnp.asarray(rng.standard_normal(SHAPE), jnp.float32) for _ in range(n)]


def time(t=0.5):
    return Time(jnp.full((2, 1), t))


def constant(v):
    return lambda x, t, memory: (v + 0 * x, memory)


def in_turn(prompted, unprompted):
    """The pair of two evaluations, one after the other."""
    return lambda x, t, memory: ((prompted(x, t, ())[0], unprompted(x, t, ())[0]), memory)


def test_cfg_at_one_is_the_prompt_and_at_zero_is_none():
    v, u = arrays(2)
    np.testing.assert_allclose(cfg(v, u, 1.0), v, atol=1e-6)
    np.testing.assert_allclose(cfg(v, u, 0.0), u)
    np.testing.assert_allclose(cfg(v, u, 3.0), 3 * v - 2 * u, atol=1e-5)


def test_cfg_zero_star_by_hand():
    v, u = arrays(2)
    got = np.asarray(cfg_zero_star(v, u, 4.0))
    for i in range(2):
        a, b = np.asarray(v[i], np.float64), np.asarray(u[i], np.float64)
        s = (a * b).sum() / (b * b).sum()
        np.testing.assert_allclose(got[i], 4 * a - 3 * s * b, atol=1e-4)
    # a branch that is only too long is not pushed along: v = u / 2 stays v
    np.testing.assert_allclose(cfg_zero_star(u / 2, u, 7.0), u / 2, atol=1e-5)


def test_rescale_restores_the_spread():
    v, u = arrays(2)
    full = rescaled(cfg, 1.0)(v, u, 6.0)
    std = lambda a: np.asarray(a).reshape(2, -1).std(-1)  # noqa: E731
    np.testing.assert_allclose(std(full), std(v), rtol=1e-5)
    np.testing.assert_allclose(rescaled(cfg, 0.0)(v, u, 6.0), cfg(v, u, 6.0), atol=1e-6)
    half = rescaled(cfg, 0.5)(v, u, 6.0)
    np.testing.assert_allclose(half, (full + cfg(v, u, 6.0)) / 2, atol=1e-5)


def test_one_batch_equals_two_evaluations_also_with_known_positions():
    """The doubled network sees prompts first and negative prompts second, and each clip's own time."""
    bias = jnp.array([1.0, 2.0, -3.0, 5.0])[:, None, None, None, None]

    def network(bias):
        return lambda x, t, memory: (jnp.tanh(x + bias) * (1 + t.field(x.shape)), memory)

    x, clean = arrays(2)
    mask = jnp.zeros(SHAPE[:4], bool).at[:, 0, 0].set(True)
    two = in_turn(known(network(bias[:2]), clean, mask), known(network(bias[2:]), clean, mask))
    double = jnp.concatenate([clean, clean]), jnp.concatenate([mask, mask])
    for pair in (in_one_batch(known(network(bias), *double)), known(in_one_batch(network(bias)), clean, mask)):
        (v, u), _ = pair(x, time(), ())
        (v2, u2), _ = two(x, time(), ())
        np.testing.assert_allclose(v, v2, atol=1e-6)
        np.testing.assert_allclose(u, u2, atol=1e-6)
        assert (np.asarray(v)[:, 0, 0] == 0).all()
    assert np.abs(v - u).max() > 0.1


@pytest.mark.parametrize("t, inside", [(0.2, False), (0.21, True), (0.8, True), (0.81, False)])
def test_interval(t, inside):
    v, u = arrays(2)
    velocity = within(guided(in_turn(constant(v), constant(u)), 3.0), constant(v), 0.2, 0.8)
    got, _ = jax.jit(lambda x, values: velocity(x, Time(values), ()))(v, time(t).values)
    np.testing.assert_allclose(got, cfg(v, u, 3.0) if inside else v, atol=1e-5)


def test_zero_start():
    (v,) = arrays(1)
    assert not zero_start(constant(v), jnp.bool_(True))(v, time(0.9), ())[0].any()
    np.testing.assert_array_equal(zero_start(constant(v), jnp.bool_(False))(v, time(0.9), ())[0], v)


def test_guidance_puts_them_together():
    v, u = arrays(2)
    pair, alone = in_turn(constant(v), constant(u)), constant(v)
    at = lambda t, **how: np.asarray(Guidance(**how).velocity(pair, alone, 3.0, t)(v, time(t), ())[0])  # noqa: E731
    np.testing.assert_allclose(at(0.5), cfg(v, u, 3.0))
    np.testing.assert_allclose(at(0.5, rescale=0.7), rescaled(cfg, 0.7)(v, u, 3.0), rtol=1e-6)
    np.testing.assert_allclose(at(0.5, rescale=0.7, zero_star=True), rescaled(cfg_zero_star, 0.7)(v, u, 3.0), rtol=1e-6)
    np.testing.assert_allclose(at(0.5, interval=(0.6, 1.0), zero_star=True), v)
    for wrong in ({"interval": (0.5, 0.5)}, {"interval": (-0.1, 1.0)}, {"rescale": 1.5}):
        with pytest.raises(BadInput, match="guidance_interval=|guidance_rescale="):
            Guidance(**wrong)


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
@pytest.mark.parametrize("steps, shift", [(6, 3.0), (100, 12.0)])
def test_zero_star_stands_still_in_the_first_step_alone(solver, steps, shift):
    """Whatever the schedule makes of the time that a model is told."""
    v, x = arrays(2)
    carry, at = start(x, solver), []

    @jax.jit
    def step(carry, now, then):
        velocity = Guidance(zero_star=True).velocity(in_turn(constant(v), constant(v)), constant(v), 3.0, now.flow)
        return step_function(velocity, solver)(carry, now, then)[0]

    for now, then in Schedule(steps, shift, solver.schedule).pairs()[:3]:
        at.append(np.asarray(carry.x))
        carry = step(carry, now, then)
    np.testing.assert_allclose(at[1], x, atol=1e-5)
    assert np.abs(at[2] - x).max() > 1e-6
