"""The path: its ends, its slope, the shift of its times, and a loss that knows what is known."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_video.core.errors import BadInput
from dit_video.core.types import Time
from dit_video.diffusion.flow import RectifiedFlow, flow_loss, training_time

SHAPE = (2, 3, 2, 2, 4)


def pair():
    rng = np.random.default_rng(0)
    return tuple(jnp.asarray(rng.standard_normal(SHAPE), jnp.float32) for _ in range(2))


def test_the_path_runs_from_data_to_noise_at_the_target_velocity():
    data, noise = pair()
    flow = RectifiedFlow()
    at = lambda t: flow.add_noise(data, noise, jnp.full((*SHAPE[:4], 1), t))  # noqa: E731
    np.testing.assert_array_equal(at(0.0), data)
    np.testing.assert_array_equal(at(1.0), noise)
    np.testing.assert_allclose((at(0.75) - at(0.25)) / 0.5, flow.velocity_target(data, noise), atol=1e-6)


def test_shift_keeps_the_ends_and_moves_the_middle():
    flow = RectifiedFlow(shift=3.0)
    np.testing.assert_allclose(flow.warp(np.array([0.0, 0.5, 1.0])), [0.0, 0.75, 1.0])
    np.testing.assert_allclose(RectifiedFlow(shift=1.0).warp(0.3), 0.3)


@pytest.mark.parametrize("kind, median", [("logit_normal", 0.75), ("uniform", 0.75)])
def test_drawn_times_have_the_right_median_and_are_shifted(kind, median):
    """The median of t is warp(1/2) for both; a mean of .8 moves it to warp(sigmoid(.8))."""
    t = RectifiedFlow(shift=3.0, time=kind).sample_time(jax.random.key(0), 20_000)
    assert float(jnp.median(t)) == pytest.approx(median, abs=0.01)
    assert float(t.min()) > 0
    assert float(t.max()) <= 1


def test_logit_normal_mean_and_std():
    t = RectifiedFlow(shift=1.0, mean=0.8, std=0.5).sample_time(jax.random.key(1), 50_000)
    logit = jnp.log(t / (1 - t))
    assert float(logit.mean()) == pytest.approx(0.8, abs=0.02)
    assert float(logit.std()) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("kind", ["logit_normal", "uniform"])
@pytest.mark.parametrize("part", [(0.875, 1.0), (0.0, 0.875), (0.2, 0.3)])
def test_times_of_a_part_stay_in_it_and_are_those_of_the_whole_there(kind, part):
    """As if what lies elsewhere were drawn again; and the whole is a part, too."""
    flow = RectifiedFlow(shift=5.0, time=kind, mean=0.3)
    t = replace(flow, part=part).sample_time(jax.random.key(0), 20_000)
    assert part[0] <= float(t.min()) and float(t.max()) <= part[1]
    whole = flow.sample_time(jax.random.key(1), 400_000)
    there = whole[(whole >= part[0]) & (whole <= part[1])]
    marks = jnp.linspace(0.05, 0.95, 19)
    np.testing.assert_allclose(jnp.quantile(t, marks), jnp.quantile(there, marks), atol=0.01)


def test_wrong_numbers_are_told():
    for wrong in ({"shift": 0.0}, {"std": -1.0}, {"time": "cosine"}, {"part": (0.5, 0.5)}, {"part": (0.5, 1.5)}):
        with pytest.raises(BadInput):
            RectifiedFlow(**wrong)


def test_training_time_is_zero_where_known():
    known = jnp.zeros(SHAPE[:4], bool).at[0, 0].set(True)
    field = training_time(jnp.array([0.3, 0.6]), known).field(SHAPE)
    np.testing.assert_allclose(field[0, :, 0, 0, 0], [0.0, 0.3, 0.3])
    np.testing.assert_allclose(field[1, :, 1, 1, 0], 0.6)


def test_loss_ignores_known_positions_and_adds_up_over_batches():
    predicted, target = pair()
    known = jnp.zeros(SHAPE[:4], bool).at[0, 0].set(True)
    time = training_time(jnp.array([0.3, 0.6]), known)
    loss = flow_loss(predicted, target, time)
    np.testing.assert_allclose(flow_loss(predicted.at[0, 0].add(100.0), target, time), loss)
    assert flow_loss(predicted.at[0, 1].add(100.0), target, time) > 2 * loss
    parts = [flow_loss(predicted[i : i + 1], target[i : i + 1], Time(time.values[i : i + 1], time.index[i : i + 1]))
             for i in range(2)]  # fmt: skip
    np.testing.assert_allclose(np.mean(parts), loss, rtol=1e-6)
    everything = flow_loss(predicted, target, Time(time.values[:, :1], None))
    np.testing.assert_allclose(everything, jnp.mean((predicted - target) ** 2), rtol=1e-6)


def test_below_least_a_velocity_weighs_as_the_data_that_it_makes():
    predicted, target = pair()
    time = Time(jnp.array([[0.1], [0.8]]), None)
    weighed = flow_loss(predicted, target, time, least=0.4)
    each = jnp.square(predicted - target).mean((1, 2, 3, 4))
    np.testing.assert_allclose(weighed, (each[0] * (0.1 / 0.4) ** 2 + each[1]) / 2, rtol=1e-5)
    with pytest.raises(BadInput, match="least=1"):
        RectifiedFlow(least=1.0)
