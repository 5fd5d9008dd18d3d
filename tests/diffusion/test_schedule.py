"""Schedules: the reference's sigmas and times, and errors."""

from itertools import pairwise

import numpy as np
import pytest

from dit_video.core.errors import BadInput
from dit_video.diffusion.schedule import Schedule


def test_values_by_hand():
    """Four steps with shift 3: sigma = 3 u / (1 + 2 u) for u = 1, .75025, .5005, .25075; times cut to integers."""
    flow, model = Schedule(4, 3.0, "unipc").instants()
    np.testing.assert_allclose(flow, [0.999999, 0.90012, 0.75037, 0.50100, 0.0], atol=5e-6)
    np.testing.assert_allclose(model * 1000, [999, 900, 750, 500, 0], atol=1e-4)
    np.testing.assert_allclose(Schedule(2, 3.0, "even").instants().model, [0.999999, 0.75, 0.0], atol=1e-6)
    assert Schedule(1, 3.0, "euler").instants().flow.tolist() == [1.0, 0.0]


def test_pairs_are_neighbours():
    schedule = Schedule(5, 2.0)
    pairs = schedule.pairs()
    assert len(pairs) == 5
    assert all(a[1] == b[0] for a, b in pairwise(pairs))
    assert pairs[-1][1].flow == 0


@pytest.mark.parametrize("kind", ["unipc", "euler", "even"])
@pytest.mark.parametrize("steps", [1, 7, 1000])
def test_times_fall_from_one_to_zero(kind, steps):
    flow, model = Schedule(steps, 3.0, kind).instants()
    assert len(flow) == steps + 1
    assert flow[0] > 0.998
    assert flow[-1] == model[-1] == 0
    assert (np.diff(flow) < 0).all()
    assert np.abs(flow - model).max() < 0.001 + 1e-6


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"steps": 4, "shift": 0.0}])
def test_wrong_numbers_are_told(wrong):
    with pytest.raises(BadInput):
        Schedule(**wrong)


def test_an_unknown_kind_is_told():
    with pytest.raises(BadInput, match="even"):
        Schedule(4, 3.0, "cosine").instants()


@pytest.mark.parity
@pytest.mark.parametrize("steps", [1, 2, 4, 16, 25, 50, 999])
@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0, 12.0])
def test_the_reference_has_the_same_times(steps, shift):
    diffusers = pytest.importorskip("diffusers")
    unipc = diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)
    unipc.set_timesteps(steps)
    ours = Schedule(steps, shift, "unipc").instants()
    np.testing.assert_array_equal(ours.flow, unipc.sigmas.numpy())
    np.testing.assert_array_equal(np.round(ours.model[:-1] * 1000, 3), unipc.timesteps.numpy())
    euler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    euler.set_timesteps(steps)
    ours = Schedule(steps, shift, "euler").instants()
    np.testing.assert_allclose(ours.flow, euler.sigmas.numpy(), atol=1e-6)
    np.testing.assert_allclose(ours.model[:-1] * 1000, euler.timesteps.numpy(), atol=1e-3)
