"""The score of readings against what was asked."""

from dataclasses import replace

import numpy as np
import pytest

from dit_video.evals.compare import difference, of_marks, of_numbers
from dit_video.evals.measure import Reading
from dit_video.evals.prompts import Asked
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
    assert report["values"]["colour"]["red"] == {"value": 1.0, "low": 1.0, "high": 1.0, "n": reds}
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
    assert by_value(marks)["colour"]["red"] == entry  # of one value alone: the same clips, resampled alike
    halves = [{"colour": [("red", i % 2 == 0), ("blue", True)]} for i in range(100)]
    red, blue = (by_value(halves)["colour"][value] for value in ("red", "blue"))
    assert (red["value"], red["n"]) == (0.5, 100) and red["high"] - red["low"] == pytest.approx(0.2, abs=0.05)
    assert (blue["low"], blue["high"]) == (1.0, 1.0)


def test_objects_are_matched_whatever_their_order(asked, readings):
    first, second = readings[0], readings[3]
    both = replace(first, objects=first.objects + second.objects)
    two = replace(asked[0], objects=asked[3].objects + asked[0].objects, around=asked[0].around | {"count": "two"})
    assert first.objects[0].colour != second.objects[0].colour
    marks = mark(both, replace(two, around={"count": "two"}))
    assert marks["all"] == marks["all_two"] == marks["binding"] == [("", True)]
    assert mark(first, two)["colour"][0] == (asked[3].objects[0]["colour"], False)
    assert mark(first, two)["colour"][1] == (asked[0].objects[0]["colour"], True)


def two_of(one_object, first, second):
    """A clip of two objects and what was asked for."""
    objects = tuple(replace(one_object, **words) for words in (first, second))
    return Reading((), "", objects, "black", "day", "static")


def test_binding_is_which_colour_moves_how(one_object):
    red, blue = {"colour": "red", "motion": "still"}, {"colour": "blue", "motion": "moves", "direction": "left"}
    one = Asked("", (red, blue), {"count": "two"}, "seen", "seen", None)
    right = two_of(one_object, blue, red)
    swapped = two_of(one_object, red | {"motion": "moves", "direction": "left"}, {"colour": "blue", "motion": "still"})
    assert mark(right, one)["binding"] == mark(right, one)["all_two"] == [("", True)]
    assert mark(swapped, one)["binding"] == mark(swapped, one)["all_two"] == [("", False)]
    assert "all_one" not in mark(right, one)
    assert "binding" not in mark(right, replace(one, objects=(red,)))


def test_what_should_move_and_does_not_is_not_dynamic(one_object):
    asked = Asked("", ({"colour": "red", "motion": "moves"},), {"count": "one"}, "seen", "seen", None)
    frozen = Reading((), "", (one_object,), "black", "day", "static")
    astray = replace(one_object, motion="unclear", track=np.random.default_rng(0).normal(0.5, 0.1, (17, 2)))
    assert mark(frozen, asked)["dynamic"] == [("moves", False)]
    assert mark(replace(frozen, objects=(astray,)), asked)["dynamic"] == [("moves", True)]
    assert "dynamic" not in mark(frozen, replace(asked, objects=({"colour": "red", "motion": "still"},)))


def test_difference_of_two_models_is_paired():
    """The same clips are hard for both: the interval of the difference is that of the clips where they differ."""
    ours = [{"colour": [("red", i % 2 == 0 or i < 20)]} for i in range(200)]
    theirs = [{"colour": [("red", i % 2 == 0)]} for i in range(200)]
    gain = difference(of_marks(ours), of_marks(theirs))["colour"]
    assert (gain["value"], gain["n"]) == (0.05, 200)
    assert 0.01 < gain["low"] < 0.05 < gain["high"] < 0.09
    assert difference(of_marks(ours), of_marks(ours))["colour"] == {"value": 0.0, "low": 0.0, "high": 0.0, "n": 200}
    with pytest.raises(ValueError):
        difference(of_marks(ours), of_marks(theirs[:5]))


def test_difference_of_numbers_and_of_ratios(rng):
    hard = rng.normal(30, 5, 200)  # what all models find hard is in no difference
    gain = difference(of_numbers({"psnr": hard + 0.5}), of_numbers({"psnr": hard, "ssim": hard}))
    assert gain == {"psnr": {"value": 0.5, "low": 0.5, "high": 0.5, "n": 200}}
    renders = np.full(200, 2.0)
    both = [{"cut": np.stack([np.where(np.arange(200) < 10, np.nan, times * hard), renders], 1)} for times in (2, 1)]
    ratio = difference(*both)["cut"]
    assert (ratio["value"], ratio["n"]) == (pytest.approx(hard[10:].mean() / 2, abs=1e-4), 190)
    assert ratio["low"] < ratio["value"] < ratio["high"]
