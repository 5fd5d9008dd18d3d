"""Long clips: nothing is lost in renders; what is lost in worse ones shows in the window where it is lost."""

import numpy as np
import pytest

from dit_video.core.errors import BadInput
from dit_video.core.log import Progress
from dit_video.evals import drift
from dit_video.evals.compare import difference
from dit_video.evals.toyworld import Sampling
from tests.evals.conftest import rendered


class Maker:
    """Renders what is asked, then does something to it."""

    name, hash, fps = "maker", "0" * 12, 8.0

    def __init__(self, spoil=lambda clip: clip):
        self.spoil = spoil

    def make(self, prompts, how, images=None):
        known = {one.prompt: one.scene for one in drift.suite(4, "plain")}
        clips = rendered([known[prompt] for prompt in prompts], how.num_frames, how.height, how.width)
        return [self.spoil(clip) for clip in clips]


def report_of(maker, frames=33, count=2):
    return evaluated(maker, frames, count)[0]


def evaluated(maker, frames=33, count=2):
    return drift.evaluate(maker, count, Sampling(64, 64, frames), Progress(show=False))


def test_renders_lose_nothing():
    report = report_of(Maker())
    assert report["seconds_of_windows"] == [0.0, 2.0]
    assert report["curves"]["model"] == report["curves"]["renders"]
    for name in ("readable", "colour", "shape", "background"):
        assert report["curves"]["model"][name] == [1.0, 1.0]
    assert report["scores"]["shape_lost"]["value"] == 0
    assert report["scores"]["cut"]["value"] == report["scores"]["track"]["value"] == 1
    assert max(report["curves"]["model"]["colour_drift"]) < 0.01
    assert set(report["reference"]) == {"renders", "shuffled"}
    assert set(report["reference"]["renders"]) == set(report["scores"])
    assert report["reference"]["renders"]["shape_lost"] == 0 and report["reference"]["renders"]["cut"] == 1


def test_a_late_fault_shows_late():
    def fade(clip):
        """To half the light in the second window; an unknown light by its end."""
        share = np.concatenate([np.ones(16), np.linspace(1, 0.25, 17)])[:, None, None, None]
        return np.uint8(clip * share)

    report, _, ours = evaluated(Maker(fade))
    _, _, theirs = evaluated(Maker())
    gain = difference(ours, theirs)
    assert gain["readable_lost"]["value"] == report["scores"]["readable_lost"]["value"]
    assert gain["cut"]["value"] == pytest.approx(report["scores"]["cut"]["value"] - 1, abs=1e-3)
    assert report["curves"]["model"]["readable"][0] == 1.0
    assert report["scores"]["readable_lost"]["value"] > 0.5
    assert report["curves"]["renders"]["readable"] == [1.0, 1.0]


def test_a_seam_shows_as_a_cut():
    report = report_of(Maker(lambda clip: np.concatenate([clip[:17], 255 - clip[17:]])))
    assert report["scores"]["cut"]["value"] > 10


def test_short_clips_are_refused():
    with pytest.raises(BadInput, match="33 or more"):
        report_of(Maker(), frames=17)
