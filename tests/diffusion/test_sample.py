"""The drivers: what they yield, and that broken numbers are told with their step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_video.core.errors import NonFinite
from dit_video.diffusion.sample import iterate, run, scan, start, step_function
from dit_video.diffusion.schedule import Schedule
from dit_video.diffusion.solvers import SOLVERS, Euler, UniPC

NOISE = jnp.ones((1, 1, 2, 2, 1))


def test_a_loop_can_look_and_stop():
    step = jax.jit(step_function(lambda x, t, m: (x, m), Euler()))
    seen = []
    for done, carry in iterate(step, start(NOISE, Euler()), Schedule(5, 1.0, "even")):
        seen.append((done, float(carry.x.mean())))
        if done == 3:
            break
    assert [s[0] for s in seen] == [1, 2, 3]
    np.testing.assert_allclose([s[1] for s in seen], [0.8, 0.64, 0.512], atol=1e-5)


def test_resuming_from_a_saved_carry_gives_the_same_end():
    step = jax.jit(step_function(lambda x, t, m: (jnp.sin(x), m), UniPC()))
    schedule = Schedule(6)
    whole = run(step, start(NOISE, UniPC()), schedule).x
    saved = next(carry for done, carry in iterate(step, start(NOISE, UniPC()), schedule) if done == 2)
    *_, (done, carry) = iterate(step, saved, schedule, first=2)
    assert done == 6
    np.testing.assert_array_equal(carry.x, whole)


@pytest.mark.parametrize("bad", [1, 3, 4])
def test_non_finite_latents_name_their_step(bad):
    moment = float(Schedule(4, 1.0, "even").instants().model[bad - 1])

    def velocity(x, t, memory):
        return jnp.where(jnp.abs(t.field(x.shape) - moment) < 1e-6, jnp.nan, x), memory

    step = jax.jit(step_function(velocity, Euler()))
    with pytest.raises(NonFinite, match=f"step {bad}/4"):
        run(step, start(NOISE, Euler()), Schedule(4, 1.0, "even"))


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
def test_a_network_that_puts_out_data_is_taken_by_its_word(solver):
    """Whatever a schedule makes of the time that it is told: who always says the same data is there after one step."""
    noise = jnp.asarray(np.random.default_rng(0).standard_normal((1, 1, 2, 2, 1)), jnp.float32)
    data = 0.3 * noise[..., ::-1] - 1
    schedule = Schedule(3, 7.0, solver.schedule)
    velocity = lambda x, t, memory: ((x - data) / t.field(x.shape), memory)  # noqa: E731
    exact, told = (scan(velocity, solver, noise, schedule.instants(), data=d).x for d in (True, False))
    np.testing.assert_allclose(exact, data, atol=2e-6)
    cut = (schedule.instants().flow != schedule.instants().model).any()
    assert (np.abs(told - data).max() > 1e-5) == cut
