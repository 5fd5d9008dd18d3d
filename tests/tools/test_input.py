"""The measurement of the input pipeline: its figures are what they say."""

import itertools
import time

import pytest

from dit_video.data.buckets import Bucket


@pytest.fixture(scope="module")
def script(load):
    return load("input.py")


class Slow:
    """Batches that take their time."""

    def __init__(self, seconds):
        self.seconds, self.count = seconds, itertools.count()

    def state(self):
        return {}

    def __next__(self):
        time.sleep(self.seconds)
        return next(self.count)


def test_the_rate_is_clips_a_second(script):
    assert script["rate"](Slow(0.05), clips=4, seconds=0.5) == pytest.approx(80, rel=0.4)


def test_a_loop_waits_for_what_comes_too_slowly_and_for_nothing_else(script):
    assert script["waiting"](Slow(0.0), step=0.05, steps=6) < 0.3
    assert script["waiting"](Slow(0.2), step=0.02, steps=6) > 0.5


def test_what_a_gpu_eats(script):
    tokens = 21 * 30 * 52
    assert script["eaten"](Bucket(81, 480, 832), 1.3e9) == pytest.approx(989e12 * 0.42 / (6 * 1.3e9 * tokens))
