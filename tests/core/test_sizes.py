"""The rules accept what divides and name both neighbours of what does not."""

import pytest

from dit_video.core.errors import BadInput
from dit_video.core.sizes import frames_rule, nearest_frames, size_rule


@pytest.mark.parametrize("frames", [1, 5, 17, 81])
def test_frames_that_fit(frames):
    assert frames_rule(frames) == frames


@pytest.mark.parametrize(("frames", "near"), [(50, "49 or 53"), (2, "1 or 5"), (16, "13 or 17")])
def test_frames_that_do_not(frames, near):
    with pytest.raises(BadInput, match=near):
        frames_rule(frames)
    assert " or ".join(map(str, nearest_frames(frames))) == near


@pytest.mark.parametrize("frames", [0, -3])
def test_no_frames(frames):
    with pytest.raises(BadInput, match="at least one frame"):
        frames_rule(frames)


def test_sizes():
    assert size_rule(64, 80, 16) == (64, 80)
    with pytest.raises(BadInput, match="height=500 must be a multiple of 16. Nearest: 496 or 512"):
        size_rule(500, 512, 16)
    with pytest.raises(BadInput, match="width=3 .* Nearest: 16"):
        size_rule(64, 3, 16)
