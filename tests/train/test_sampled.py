"""How a trained model is sampled: as its clips were, and with a word where it is not."""

import logging
from dataclasses import replace

import pytest

from dit_video.data.buckets import Bucket
from dit_video.data.folder import Folder
from dit_video.data.loader import Toyworld
from dit_video.train.sampled import as_trained, say_rate, shown
from dit_video.weights.model import Defaults
from dit_video.weights.released import ANY

SQUARE, WIDE, STILL = Bucket(17, 64, 64), Bucket(33, 96, 128, 0.2), Bucket(1, 64, 64)
CROPS = [(5, 0.9), (9, 0.1)]
MINE = Folder("clips", fps=16.0)


def of(*buckets, data=MINE, crops=CROPS):
    return shown(data, buckets, crops, 4)


def test_what_began_at_random_is_sampled_as_its_clips_are():
    got = as_trained(None, of(Bucket(33, 96, 128), STILL))
    assert (got.height, got.width, got.sizes, got.fps) == (96, 128, ((96, 128), (64, 64)), 16.0)
    assert (got.num_frames, got.max_frames) == (17, 33)
    assert as_trained(None, of(Bucket(81, 96, 128), crops=[(21, 0.9), (1, 0.1)])).num_frames == 81
    assert as_trained(None, of(STILL)).num_frames == 1
    assert as_trained(None, of(SQUARE, data=Toyworld())).fps == 8.0


def test_what_a_model_knows_stays_where_its_tuning_agrees():
    start = Defaults(guidance=2.0)
    assert as_trained(start, of(SQUARE, STILL, data=Toyworld())) == start
    assert as_trained(start, of(SQUARE)) == replace(start, fps=16.0)
    assert as_trained(start, of(STILL)) == start, "of pictures alone it has no new rate, and moves still"
    other = as_trained(start, of(WIDE))
    assert (other.height, other.width, other.sizes, other.guidance) == (96, 128, ((96, 128),), 2.0)
    wan = ANY.defaults
    assert as_trained(wan, of(Bucket(81, 480, 832), Bucket(81, 832, 480), crops=[(21, 1.0)])) == wan
    short = as_trained(wan, of(Bucket(49, 832, 480), crops=[(13, 1.0)]))
    assert (short.height, short.width, short.sizes) == (832, 480, wan.sizes)
    assert (short.num_frames, short.max_frames) == (49, 81)


@pytest.mark.parametrize("fps, says", [(8.0, True), (16.0, False)])
def test_another_rate_is_said(fps, says, caplog):
    caplog.set_level(logging.INFO, "dit_video")
    say_rate(of(SQUARE, data=Folder(fps=fps)), 16.0, "models/wan", "Give --data.fps 16.")
    assert ("8 frames a second, and models/wan makes 16" in caplog.text and "2 times as fast" in caplog.text) == says
    say_rate(of(STILL), 24.0, "stills", "")
    assert "stills" not in caplog.text
