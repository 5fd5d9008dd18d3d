"""Two denoisers: whose step it is."""

import numpy as np
import pytest

from dit_video.diffusion.experts import is_second
from dit_video.diffusion.schedule import Instant, Schedule


@pytest.mark.parametrize("kind, shift", [("unipc", 12.0), ("euler", 5.0)])
def test_the_second_begins_below_the_boundary(kind, shift):
    schedule = Schedule(40, shift, kind)
    seconds = [is_second(now, 0.875) for now, _ in schedule.pairs()]
    assert seconds == sorted(seconds)
    assert seconds == [bool(t < 0.875) for t in schedule.instants().model[:-1]]
    assert 0 < sum(seconds) < 40
    assert not any(is_second(now, None) for now, _ in schedule.pairs())


@pytest.mark.parametrize("boundary", [0.875, 0.9])
def test_the_boundary_itself_is_the_firsts(boundary):
    """The reference compares `t >= boundary_ratio * 1000` with whole t."""
    at = lambda t: Instant(np.float32(t / 1000), np.float32(t / 1000))  # noqa: E731
    assert not is_second(at(boundary * 1000), boundary)
    assert is_second(at(boundary * 1000 - 1), boundary)
