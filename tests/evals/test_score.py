"""The score of readings against what was asked."""

from dataclasses import replace

import numpy as np
import pytest

from dit_video.evals.measure import Reading
from dit_video.evals.quality import spread
from dit_video.evals.reconstruction import psnr
from dit_video.evals.score import by_value, mark, rates, score


def test_shuffled_prompts_are_at_chance(asked, readings):
    report = score(readings, asked)
    chance = {"colour": 1 / 8, "shape": 1 / 5, "motion": 0.5**2 + 6 * (1 / 14) ** 2}
    for name, value in chance.items():
        assert report["scores"][name]["value"] >= 0.99
        assert report["reference"]["shuffled"][name] == pytest.approx(value, abs=0.06)
    assert report["reference"]["shuffled"]["direction"] < 0.2
    assert report["reference"]["shuffled"]["main"] < 0.03


def test_unreadable_is_wrong_in_everything(asked):
    blank = Reading(("nothing",), "no object", (), "black", "day", "static")
    marks = mark(blank, asked[0])
    assert not any(right for each in marks.values() for _, right in each)


def test_report_has_the_parts_of_the_interface(asked, readings):
    report = score(readings, asked)
    assert report["count"] == 42
    assert set(report["scores"]["colour"]) == {"value", "low", "high", "n"}
    assert set(report["splits"]["template"]) == {"seen", "unseen"}
    assert report["splits"]["template"]["unseen"]["colour"]["n"] == 14
    reds = sum(one.objects[0]["colour"] == "red" for one in asked)
    assert report["values"]["colour"]["red"] == {"value": 1.0, "n": reds}
    assert report["confusions"]["colour"]["red"] == {"red": reds}
    assert report["faults"] == {}
    assert [clip["wrong"] for clip in report["clips"]] == [[]] * 42
    with pytest.raises(ValueError, match="41 readings"):
        score(readings[:41], asked)


def test_interval_covers_what_it_says():
    marks = [{"colour": [("red", i % 4 != 0)], "all": [("", True)]} for i in range(100)]
    entry = rates(marks)["colour"]
    assert entry["value"] == 0.75
    # 1.96 * sqrt(0.75 * 0.25 / 100)
    assert entry["high"] - entry["low"] == pytest.approx(2 * 0.085, abs=0.03)
    assert by_value(marks)["colour"]["red"] == {"value": 0.75, "n": 100}


def test_objects_are_matched_whatever_their_order(asked, readings):
    first, second = readings[0], readings[3]
    both = replace(first, objects=first.objects + second.objects)
    two = replace(asked[0], objects=asked[3].objects + asked[0].objects, around=asked[0].around | {"count": "two"})
    assert mark(both, two)["all"] == [("", True)] or first.background != second.background
    assert all(right for _, right in mark(both, two)["colour"])
    assert mark(first, two)["colour"][0] == (asked[3].objects[0]["colour"], False)
    assert mark(first, two)["colour"][1] == (asked[0].objects[0]["colour"], True)


def test_spread_is_within_groups():
    places = [np.array([0.2, 0.5]), np.array([0.4, 0.5]), np.array([0.9, 0.1]), None]
    assert spread(places, "aabb") == pytest.approx(np.sqrt(0.02))
    assert np.isnan(spread(places, "abcd"))


def test_psnr():
    a = np.zeros((4, 4, 3), np.uint8)
    assert psnr(a, a) == 99
    assert psnr(a, a + np.uint8(16)) == pytest.approx(20 * np.log10(255 / 16))
