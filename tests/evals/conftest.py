"""Clips of known scenes, rendered and read once."""

import numpy as np
import pytest

from dit_video.data.toyworld import scene as words
from dit_video.evals.measure import Object, measure
from dit_video.evals.prompts import suite
from dit_video.evals.references import renders


@pytest.fixture(scope="module", autouse=True)
def _optimized(optimized):
    """Every file here renders clips."""


def rendered(scenes, frames=17, height=64, width=64):
    """Exact renders, uint8 (N, T, H, W, 3)."""
    return renders(scenes, frames, height, width)


@pytest.fixture(scope="session")
def asked():
    """Three of every kind of motion and direction."""
    return suite(42, "plain")


@pytest.fixture(scope="session")
def clips(asked, with_optimizations):
    with with_optimizations():
        return rendered([one.scene for one in asked])


@pytest.fixture(scope="session")
def readings(clips):
    return [measure(clip) for clip in clips]


@pytest.fixture(scope="session")
def one_object():
    """A red square that stands still, as the judge would see it."""
    full = np.ones(17)
    return Object(
        "red", "square", "medium", "still", "", "", "", "", 0.0, np.full((17, 2), 0.5), 0.06 * full, 0.14 * full,
        0.0 * full, full > 0, full > 0, np.tile(words.RGB["red"], (17, 1)), 1.0, 1.0, 0.01, 0.2, 0.001,
    )  # fmt: skip
