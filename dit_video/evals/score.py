"""Readings against what was asked: how often each attribute is as asked, and how sure that number is."""

from collections import Counter
from collections.abc import Sequence
from itertools import permutations
from typing import Any

import numpy as np

from dit_video.data.toyworld import scene as words
from dit_video.evals import quality
from dit_video.evals.measure import FAULTS, Object, Reading
from dit_video.evals.prompts import Asked

OF_OBJECT = ("colour", "shape", "size", "motion", "direction", "speed", "turn")
AROUND = ("count", "background", "light", "camera")
ATTRIBUTES = (*OF_OBJECT, *AROUND)
MAIN = ("colour", "shape", "motion", "direction")  # what a plain prompt is about
WHOLE = ("main", "all", "all_one", "all_two", "binding", "readable", "permanence", "identity", "dynamic")
NAMES = (*ATTRIBUTES, *WHOLE)
SIDES = ("template", "phrases", "combination")
_RESAMPLES = 2000
_FLOOR = 4000  # clips with foreign prompts, of which the floor is the mean

Marks = dict[str, list[tuple[str, bool]]]  # attribute -> (value asked, whether it is there), one for each object


def mark(reading: Reading, asked: Asked) -> Marks:
    """One clip. An unreadable one is wrong in everything. Of several objects each is compared with the one that it
    agrees with best.

    `main` and `all` are right if all of their attributes are; `all_one` and `all_two` are `all` by the number of
    objects asked for. `binding`, of two objects: the one of each colour moves as the one of that colour should.
    `permanence`, `identity`: as `quality.permanent`, `quality.constant`. `dynamic`, of what should move: it does.
    """
    around = {name: getattr(reading, name) for name in AROUND}
    if asked.around.get("background") == "plain" and reading.background in words.PLAIN:
        around["background"] = "plain"
    marks: Marks = {name: [(value, reading.readable and around[name] == value)] for name, value in asked.around.items()}
    for wanted, seen in zip(asked.objects, partners(reading, asked), strict=True):
        for name, value in wanted.items():
            marks.setdefault(name, []).append((value, reading.readable and getattr(seen, name, None) == value))
        if wanted.get("motion", "still") != "still":
            right = reading.readable and seen is not None and quality.moving(seen)
            marks.setdefault("dynamic", []).append((wanted["motion"], right))
    marks["main"] = [("", all(right for name in MAIN for _, right in marks.get(name, [])))]
    marks["all"] = [("", all(right for name in ATTRIBUTES for _, right in marks.get(name, [])))]
    marks[f"all_{asked.number}"] = marks["all"]
    if len(asked.objects) > 1 and all("colour" in one and "motion" in one for one in asked.objects):
        marks["binding"] = [("", reading.readable and _bound(reading, asked))]
    marks["readable"] = [("", reading.readable)]
    marks["permanence"] = [("", quality.permanent(reading))]
    marks["identity"] = [("", quality.constant(reading))]
    return marks


def partners(reading: Reading, asked: Asked) -> list[Object | None]:
    """The object that is compared with each of those asked for."""
    places: list[Object | None] = [*reading.objects, *[None] * len(asked.objects)]

    def agreement(order: Sequence[Object | None]) -> int:
        pairs = zip(asked.objects, order, strict=True)
        return sum(getattr(seen, name) == value for wanted, seen in pairs if seen for name, value in wanted.items())

    return list(max(permutations(places, len(asked.objects)), key=agreement))


def _bound(reading: Reading, asked: Asked) -> bool:
    by_colour = {one.colour: one for one in reading.objects}
    return all(
        getattr(by_colour.get(wanted["colour"]), name, None) == wanted[name]
        for wanted in asked.objects
        for name in ("motion", "direction")
        if name in wanted
    )


def rates(marks: Sequence[Marks], seed: int = 0) -> dict[str, dict[str, float]]:
    """Share of right marks by attribute, with a 95 % interval: clips are resampled, not marks, as two objects of one
    clip are not independent."""
    rng = np.random.default_rng(seed)
    out = {}
    for name in NAMES:
        each = [[right for _, right in m[name]] for m in marks if m.get(name)]
        if each:
            out[name] = _share(each, rng)
    return out


def by_value(marks: Sequence[Marks], seed: int = 0) -> dict[str, dict[str, dict[str, float]]]:
    """Share of right marks by attribute and by the value that was asked for, with intervals as of `rates`."""
    rng = np.random.default_rng(seed)
    clips: dict[str, dict[str, list[list[bool]]]] = {}
    for name in ATTRIBUTES:
        for m in marks:
            own: dict[str, list[bool]] = {}
            for value, right in m.get(name, []):
                own.setdefault(value, []).append(right)
            for value, each in own.items():
                clips.setdefault(name, {}).setdefault(value, []).append(each)
    return {name: {value: _share(values[value], rng) for value in sorted(values)} for name, values in clips.items()}


def _share(clips: Sequence[Sequence[bool]], rng: np.random.Generator) -> dict[str, float]:
    """Of the marks of some clips, as an entry of a report."""
    right, total = (np.array([of(each) for each in clips], float) for of in (sum, len))
    draws = rng.integers(len(clips), size=(_RESAMPLES, len(clips)))
    low, high = np.quantile(right[draws].sum(1) / total[draws].sum(1), (0.025, 0.975))
    return quality.entry(right.sum() / total.sum(), low, high, int(total.sum()))


def floor(readings: Sequence[Reading], asked: Sequence[Asked], seed: int = 0) -> dict[str, float]:
    """Scores of the same clips against each other's prompts: what somebody gets who does not read the prompt."""
    rng, count = np.random.default_rng(seed), len(asked)
    marks = []
    for _ in range(min(20, -(-_FLOOR // count)) if count > 1 else 0):
        order = rng.permutation(count)  # a cycle through all clips: none keeps its own prompt
        for i, j in zip(order, np.roll(order, 1), strict=True):
            marks.append(mark(readings[i], asked[j]))
    return means(marks)


def means(marks: Sequence[Marks]) -> dict[str, float]:
    """Share of right marks by attribute, without intervals: a row of reference."""
    out = {}
    for name in NAMES:
        each = [right for m in marks for _, right in m.get(name, [])]
        if each:
            out[name] = round(float(np.mean(each)), 4)
    return out


def confusions(readings: Sequence[Reading], asked: Sequence[Asked]) -> dict[str, dict[str, dict[str, int]]]:
    """What was seen where each value was asked for: attribute -> asked -> seen -> how often; "unreadable" too."""
    table: dict[str, dict[str, Counter[str]]] = {}

    def count(name: str, value: str, seen: str) -> None:
        seen = (seen or "none") if reading.readable else "unreadable"
        table.setdefault(name, {}).setdefault(value, Counter())[seen] += 1

    for reading, one in zip(readings, asked, strict=True):
        for name, value in one.around.items():
            count(name, value, getattr(reading, name))
        for wanted, seen in zip(one.objects, partners(reading, one), strict=True):
            for name, value in wanted.items():
                count(name, value, getattr(seen, name, ""))
    return {name: {value: dict(own.most_common()) for value, own in each.items()} for name, each in table.items()}


def score(readings: Sequence[Reading], asked: Sequence[Asked]) -> dict[str, Any]:
    """The report of a list of prompts: `count`, `scores` (attribute -> value, low, high, n), `splits` (what training
    saw and did not), `values` (attribute -> value asked -> the same), `confusions`, `faults` (of clips that cannot be
    read: how many), `reference` with `shuffled`, and `clips` (what was asked and seen in each)."""
    if len(readings) != len(asked):
        raise ValueError(f"score: {len(readings)} readings of {len(asked)} prompts.")
    marks = [mark(reading, one) for reading, one in zip(readings, asked, strict=True)]
    splits: dict[str, Any] = {}
    groups = [{split: getattr(one, split) for split in SIDES} | {"objects": one.number} for one in asked]
    for split in (*SIDES, "objects"):
        for side in ("seen", "unseen", "one", "two"):
            own = [m for m, group in zip(marks, groups, strict=True) if group[split] == side]
            if own:
                splits.setdefault(split, {})[side] = rates(own)
    faults = Counter(fault for reading in readings for fault in set(reading.faults))
    return {
        "count": len(asked),
        "scores": rates(marks),
        "splits": splits,
        "values": by_value(marks),
        "confusions": confusions(readings, asked),
        "faults": {fault: faults[fault] for fault in FAULTS if faults[fault]},
        "reference": {"shuffled": floor(readings, asked)},
        "clips": [_clip(*each) for each in zip(readings, asked, marks, strict=True)],
    }


def _clip(reading: Reading, asked: Asked, marks: Marks) -> dict[str, Any]:
    objects = [
        {name: getattr(one, name) for name in OF_OBJECT}
        | {"outline_error": round(one.outline_error, 4), "path_error": round(min(one.path_error, 99.0), 3)}
        for one in reading.objects
    ]
    return {
        "prompt": asked.prompt, **{side: getattr(asked, side) for side in SIDES},
        "asked": {"objects": list(asked.objects)} | asked.around,
        "seen": {"objects": objects, "count": reading.count, "background": reading.background, "light": reading.light,
                 "camera": reading.camera},
        "readable": reading.readable, "faults": list(reading.faults), "reason": reading.reason,
        "wrong": [name for name in ATTRIBUTES if not all(right for _, right in marks.get(name, []))],
    }  # fmt: skip
