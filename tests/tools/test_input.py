"""The measurement of the input pipeline: its figures are what they say."""

import itertools
import json
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


def test_the_step_is_the_fastest_that_is_planned(script, tmp_path):
    columns = ["experiment", "fits", "step or clip, s"]
    rows = [["a", True, 4.0], ["b", True, 3.0], ["c_generate", True, 1.0], ["d", False, 2.0], ["e", True, None]]
    (tmp_path / "plan.json").write_text(json.dumps({"columns": columns, "rows": rows}))
    assert script["fastest_step"](tmp_path / "plan.json") == 3.0
    assert 0.1 < script["fastest_step"]() < 60  # that of this checkout


def test_a_clip_of_the_larger_denoiser_costs_what_its_weights_do(script, tmp_path):
    """Six FLOPs a weight and token, and something for attention and the text."""
    from dit_video.core.config import load_experiment

    bucket = Bucket(17, 64, 64)
    source = script["shards"](tmp_path / "shards", bucket, 4)
    flops = script["flops_a_clip"]("toyworld_gpu_1", tmp_path / "gpu", source, bucket)
    dit = load_experiment("toyworld_gpu_1").objective.dit
    # a block: four products of self-attention, two of cross-attention, two of the feed-forward network
    weights = dit.depth * (6 * dit.width**2 + 2 * dit.width * dit.ffn_dim)
    assert 1 < flops / (6 * weights * 5 * 16) < 2
