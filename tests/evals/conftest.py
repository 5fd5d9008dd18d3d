"""Clips of known scenes, rendered and read once."""

import numpy as np
import pytest

from dit_video.data.toyworld.render import pack, render_batch, to_uint8
from dit_video.evals.measure import measure
from dit_video.evals.prompts import suite


def rendered(scenes, frames=17, height=64, width=64):
    """Exact renders, uint8 (N, T, H, W, 3)."""
    return to_uint8(render_batch(pack(scenes), frames, height, width))


@pytest.fixture(scope="session")
def asked():
    return suite(96)


@pytest.fixture(scope="session")
def clips(asked):
    return np.concatenate([rendered([one.scene for one in asked[i : i + 32]]) for i in (0, 32, 64)])


@pytest.fixture(scope="session")
def readings(clips):
    return [measure(clip) for clip in clips]
