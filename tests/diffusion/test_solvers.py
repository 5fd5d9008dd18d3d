"""Solvers: order of convergence on a flow with a known answer, parity with the reference, known tokens."""

from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_video.core.errors import BadInput
from dit_video.diffusion.known import hold, known
from dit_video.diffusion.sample import iterate, run, scan, start, step_function
from dit_video.diffusion.schedule import Instant, Schedule
from dit_video.diffusion.solvers import SOLVERS, UniPC, solver_named

SHAPE = (2, 3, 2, 2, 1)
MEAN, SPREAD = 0.7, 0.4


def gaussian_flow(x, time, memory):
    """Data ~ N(MEAN, SPREAD^2): E[noise - data | x_t] in closed form."""
    t = time.field(x.shape)
    variance = (1 - t) ** 2 * SPREAD**2 + t**2
    return -MEAN + (t - (1 - t) * SPREAD**2) / variance * (x - (1 - t) * MEAN), memory


def answer(noise, t_start, t_end=0.0):
    """Where that flow carries `noise` from t_start to t_end: it keeps the number of standard deviations."""

    def spread(t):
        return np.sqrt((1 - t) ** 2 * SPREAD**2 + t**2)

    return (1 - t_end) * MEAN + spread(t_end) / spread(t_start) * (noise - (1 - t_start) * MEAN)


def noise():
    return jnp.asarray(np.random.default_rng(0).standard_normal(SHAPE), jnp.float32)


def error(solver, steps, t_start, t_end):
    """Largest error after even steps in flow time, in float64."""
    with jax.enable_x64(True):
        flow = jnp.linspace(t_start, t_end, steps + 1)
        x = jnp.asarray(np.asarray(noise()), jnp.float64)
        end = scan(gaussian_flow, solver, x, Instant(flow, flow)).x
        return float(jnp.abs(end - answer(np.asarray(x), t_start, t_end)).max())


@pytest.mark.parametrize("name, order", [("euler", 1), ("heun", 2), ("dpmpp_2m", 2), ("unipc", 3)])
@pytest.mark.parametrize("t_start", [0.9, 1 - 1e-6])
def test_order_of_convergence(name, order, t_start):
    """Doubling the steps divides the error by 2^order; UniPC's corrector adds one to the order of its predictor.
    (Down to t = 0 these methods end with an Euler step, as a network has not learned the slope there.)"""
    errors = [error(SOLVERS[name], steps, t_start, 0.1) for steps in (32, 64, 128)]
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    np.testing.assert_allclose(orders, order, atol=0.3, err_msg=f"{errors}")


@pytest.mark.parametrize("name, tolerance", [("euler", 0.12), ("heun", 3e-3), ("dpmpp_2m", 0.02), ("unipc", 0.02)])
def test_thirty_steps_on_the_default_schedule(name, tolerance):
    solver = SOLVERS[name]
    schedule = Schedule(30, 3.0, solver.schedule)
    end = run(jax.jit(step_function(gaussian_flow, solver)), start(noise(), solver), schedule).x
    np.testing.assert_allclose(end, answer(np.asarray(noise()), schedule.instants().flow[0]), atol=tolerance)


@pytest.mark.parametrize("name", SOLVERS)
def test_small_errors_of_the_data_stay_small(name):
    """Of a network that puts out data: over a small time they are large errors of the slope. Here of .1 near the end,
    which the last step takes as they are."""

    def rough(x, time, memory):
        t = time.field(x.shape)
        v, _ = gaussian_flow(x, time, memory)
        return v + jnp.where(t < 0.02, 0.1, 0.0) / jnp.maximum(t, 1e-3), memory

    solver = SOLVERS[name]
    schedule = Schedule(30, 3.0, solver.schedule)
    ends = [run(jax.jit(step_function(f, solver)), start(noise(), solver), schedule).x for f in (rough, gaussian_flow)]
    assert jnp.abs(ends[0] - ends[1]).max() < 0.15


@pytest.mark.parametrize("name", SOLVERS)
def test_known_tokens_stand_still(name):
    """Their values do not drift, the network sees them clean at time zero, and the others go where they would alone."""
    solver = SOLVERS[name]
    clean = jnp.full(SHAPE, 5.0)
    mask = jnp.zeros(SHAPE[:4], bool).at[:, 0].set(True)

    def seen(x, time, memory):
        t = time.field(x.shape)
        right = jnp.all(jnp.where(mask[..., None], (x == clean) & (t == 0), t > 0))
        v, _ = gaussian_flow(x, time, memory)
        return jnp.where(right, v, jnp.nan), memory

    schedule = Schedule(8, 3.0, "unipc")
    step = jax.jit(step_function(known(seen, clean, mask), solver))
    end = run(step, start(hold(noise(), clean, mask), solver), schedule).x
    free = run(jax.jit(step_function(gaussian_flow, solver)), start(noise(), solver), schedule).x
    np.testing.assert_allclose(end[:, 0], 5.0, atol=1e-5)
    np.testing.assert_allclose(end[:, 1:], free[:, 1:], atol=1e-5)


@pytest.mark.parametrize("name", SOLVERS)
def test_the_two_drivers_agree(name):
    solver, schedule = SOLVERS[name], Schedule(7, 5.0, "unipc")
    by_host = run(jax.jit(step_function(gaussian_flow, solver)), start(noise(), solver), schedule).x
    by_scan = jax.jit(lambda x: scan(gaussian_flow, solver, x, schedule.instants()).x)(noise())
    np.testing.assert_allclose(by_host, by_scan, atol=2e-6)


def test_one_program_serves_any_number_of_steps():
    step = jax.jit(step_function(gaussian_flow, UniPC()))
    for steps in (3, 5, 8):
        list(iterate(step, start(noise(), UniPC()), Schedule(steps, 3.0)))
    assert step._cache_size() == 1


class Counter(NamedTuple):
    calls: jax.Array


@pytest.mark.parametrize("name, calls", [("euler", 6), ("heun", 12), ("dpmpp_2m", 6), ("unipc", 6)])
def test_the_velocity_keeps_its_memory(name, calls):
    """Memory passes through every evaluation, of which Heun makes two a step."""

    def counting(x, time, memory):
        v, _ = gaussian_flow(x, time, ())
        return v, Counter(memory.calls + 1)

    solver = SOLVERS[name]
    carry = start(noise(), solver, Counter(jnp.zeros((), jnp.int32)))
    assert run(jax.jit(step_function(counting, solver)), carry, Schedule(6)).velocity.calls == calls


def test_names():
    assert solver_named("unipc") == UniPC()
    with pytest.raises(BadInput, match="euler"):
        solver_named("eular")


@cache
def compiled(name):
    """Once a solver: the number of steps and the shift are arguments."""
    wave = lambda x, time, memory: (jnp.sin(3 * x) + jnp.cos(5 * time.field(x.shape)) * x, memory)  # noqa: E731
    return jax.jit(step_function(wave, SOLVERS[name]))


@pytest.mark.parity
@pytest.mark.parametrize("steps", [1, 2, 3, 10, 50])
@pytest.mark.parametrize("shift", [1.0, 3.0, 8.0])
@pytest.mark.parametrize("name", ["unipc", "dpmpp_2m", "euler"])
def test_follows_the_reference_scheduler(name, steps, shift):
    """diffusers' schedulers and ours, step by step, with a velocity that depends on x and on the model's time."""
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": shift}
    reference = {
        "unipc": lambda: diffusers.UniPCMultistepScheduler(**flow),
        "dpmpp_2m": lambda: diffusers.DPMSolverMultistepScheduler(**flow, final_sigmas_type="zero"),
        "euler": lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=shift),
    }[name]()
    solver = SOLVERS[name]
    ours = iterate(compiled(name), start(noise(), solver), Schedule(steps, shift, solver.schedule))
    x = torch.from_numpy(np.array(noise()))
    reference.set_timesteps(steps)
    if name == "dpmpp_2m":  # its own sigmas are made from a table of 1000; both are given the same
        sigmas = Schedule(steps, shift, "unipc").instants()
        reference.sigmas, reference.timesteps = (
            torch.from_numpy(sigmas.flow),
            torch.from_numpy(sigmas.model[:-1] * 1000),
        )
    for (_, carry), t in zip(ours, reference.timesteps, strict=True):
        v = torch.sin(3 * x) + torch.cos(5 * t.float() / 1000) * x
        x = reference.step(v, t, x, return_dict=False)[0]
        np.testing.assert_allclose(carry.x, x.numpy(), atol=1e-5 * max(1.0, float(x.abs().max())))
