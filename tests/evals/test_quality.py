"""Numbers of a clip whatever its prompt, on clips where they are known."""

from dataclasses import replace

import numpy as np
import pytest

from dit_video.data.toyworld import scene as words
from dit_video.evals import quality
from dit_video.evals.measure import Reading


@pytest.fixture(scope="module")
def reading(one_object):
    return Reading((), "", (one_object,), "black", "day", "static")


def test_flicker_is_zero_for_steady_change_and_not_for_noise(rng):
    ramp = np.broadcast_to(np.uint8(np.arange(9) * 4)[:, None, None, None], (9, 8, 8, 3))
    assert quality.flicker(ramp) == 0.0
    alternating = np.uint8(np.where(np.arange(9) % 2, 110, 100))[:, None, None, None] + np.zeros((9, 8, 8, 3), np.uint8)
    assert quality.flicker(alternating) == 20.0
    assert quality.boil(alternating) == 10.0
    moving = np.zeros((9, 8, 8, 3), np.uint8)
    moving[np.arange(9), 2, np.arange(9) % 8] = 255  # a point that moves leaves calm pixels calm
    assert quality.boil(moving) == 0.0 < quality.flicker(moving)
    assert quality.flicker(ramp[:2]) == quality.boil(ramp[:1]) == 0.0


def test_permanence_and_identity(one_object, reading):
    assert quality.permanent(reading) and quality.constant(reading)
    gap = replace(one_object, whole=np.arange(17) != 8)
    assert not quality.permanent(replace(reading, objects=(gap,)))
    assert not quality.constant(replace(reading, objects=(replace(one_object, shape_share=0.85),)))
    assert not quality.constant(replace(reading, objects=(replace(one_object, colour_share=0.85),)))
    assert not quality.permanent(replace(reading, faults=("splits",)))


@pytest.mark.parametrize(
    "change, moves",
    [
        ({}, False),
        ({"track": np.full((17, 2), 0.5) + np.linspace(0, 0.22, 17)[:, None] * [1, 0]}, True),
        ({"radius": 0.14 * np.linspace(1, 1.4, 17)}, True),
        ({"radius": 0.14 * np.linspace(1, 1.03, 17)}, False),
        ({"angle": np.linspace(0, 1, 17) % (np.pi / 2)}, True),
        ({"angle": 0.02 * np.sin(np.arange(17))}, False),
    ],
)
def test_moving(one_object, change, moves):
    assert quality.moving(replace(one_object, **change)) is moves


def test_speed_error_is_relative_and_symmetric(one_object):
    fast = replace(one_object, motion="moves", rate=2 * words.VELOCITY["slowly"])
    slow = replace(one_object, motion="moves", rate=0.5 * words.VELOCITY["slowly"])
    assert quality.speed_error(fast, "moves", "slowly") == pytest.approx(1.0)
    assert quality.speed_error(slow, "moves", "slowly") == pytest.approx(1.0)
    assert np.isnan(quality.speed_error(fast, "bounces", "slowly"))


def test_ratio_and_average_leave_out_what_is_unknown(rng):
    ours, theirs = np.array([2.0, np.nan, 4.0, 6.0]), np.array([1.0, 1.0, np.nan, 3.0])
    value = quality.ratio(ours, theirs)
    assert (value["value"], value["n"], value["ours"], value["renders"]) == (2.0, 2, 4.0, 2.0)
    assert quality.ratio([1.0], [0.0]) is None and quality.ratio([np.nan], [1.0]) is None
    assert quality.average([np.nan]) is None
    draws = rng.normal(size=400)
    entry = quality.average(draws)
    assert entry["high"] - entry["low"] == pytest.approx(2 * 1.96 * draws.std() / 20, rel=0.15)


def test_spread_is_within_groups():
    places = [np.array([0.2, 0.5]), np.array([0.4, 0.5]), np.array([0.9, 0.1]), None]
    assert quality.spread(places, "aabb") == pytest.approx(np.sqrt(0.02))
    assert np.isnan(quality.spread(places, "abcd")) and quality.spread_entry(places, "abcd") is None


def test_the_interval_of_a_spread_covers_it(rng):
    """Of four prompts with eight seeds each, spread 1 in both directions together."""
    groups = np.repeat(np.arange(4), 8)
    hits, widths = 0, []
    for _ in range(100):
        places = list(rng.normal(groups[:, None], np.sqrt(0.5), (32, 2)))
        found = quality.spread_entry(places, groups, unit=2.0)
        assert found["value"] == pytest.approx(quality.spread(places, groups) / 2, abs=1e-4)
        hits += found["low"] <= 0.5 <= found["high"]
        widths.append(found["high"] - found["low"])
    assert hits >= 85 and found["n"] == 32
    assert 0.1 < np.mean(widths) < 0.25
