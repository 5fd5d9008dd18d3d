"""Clips of known scenes, rendered and read once."""

import pytest

from dit_video.evals.measure import measure
from dit_video.evals.prompts import suite
from dit_video.evals.references import renders


def rendered(scenes, frames=17, height=64, width=64):
    """Exact renders, uint8 (N, T, H, W, 3)."""
    return renders(scenes, frames, height, width)


@pytest.fixture(scope="session")
def asked():
    """Three of every kind of motion and direction."""
    return suite(42, "plain")


@pytest.fixture(scope="session")
def clips(asked):
    return rendered([one.scene for one in asked])


@pytest.fixture(scope="session")
def readings(clips):
    return [measure(clip) for clip in clips]
