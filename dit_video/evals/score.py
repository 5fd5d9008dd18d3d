"""Readings against what was asked: how often each attribute is as asked, and how sure that number is."""

from collections.abc import Hashable, Sequence
from itertools import permutations
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from dit_video.data.toyworld import scene as words
from dit_video.evals.measure import Object, Reading
from dit_video.evals.prompts import Asked

OF_OBJECT = ("colour", "shape", "size", "motion", "direction", "speed", "turn")
AROUND = ("count", "background", "light", "camera")
MAIN = ("colour", "shape", "motion", "direction")  # what a plain prompt is about
NAMES = (*OF_OBJECT, *AROUND, "main", "all", "readable")
_RESAMPLES = 2000
_FLOORS = 20  # shuffles of which the floor is the mean

Marks = dict[str, list[tuple[str, bool]]]  # attribute -> (value asked, whether it is there), one for each object


def mark(reading: Reading, asked: Asked) -> Marks:
    """One clip. An unreadable one is wrong in everything. Of several objects each is compared with the one that it
    agrees with best; `main` and `all` are right if all of their attributes are."""
    around = {name: getattr(reading, name) for name in AROUND}
    if asked.around.get("background") == "plain" and reading.background in words.PLAIN:
        around["background"] = "plain"
    marks: Marks = {name: [(value, reading.readable and around[name] == value)] for name, value in asked.around.items()}
    for wanted, seen in zip(asked.objects, _partners(reading, asked), strict=True):
        for name, value in wanted.items():
            right = reading.readable and seen is not None and getattr(seen, name) == value
            marks.setdefault(name, []).append((value, right))
    marks["main"] = [("", all(right for name in MAIN for _, right in marks.get(name, [])))]
    marks["all"] = [("", all(right for each in marks.values() for _, right in each))]
    marks["readable"] = [("", reading.readable)]
    return marks


def _partners(reading: Reading, asked: Asked) -> list[Object | None]:
    """The object that is compared with each of those asked for."""
    places: list[Object | None] = [*reading.objects, *[None] * len(asked.objects)]

    def agreement(order: Sequence[Object | None]) -> int:
        pairs = zip(asked.objects, order, strict=True)
        return sum(getattr(seen, name) == value for wanted, seen in pairs if seen for name, value in wanted.items())

    return list(max(permutations(places, len(asked.objects)), key=agreement))


def rates(marks: Sequence[Marks], seed: int = 0) -> dict[str, dict[str, float]]:
    """Share of right marks by attribute, with a 95 % interval: clips are resampled, not marks, as two objects of one
    clip are not independent."""
    rng = np.random.default_rng(seed)
    out = {}
    for name in NAMES:
        each = [m[name] for m in marks if m.get(name)]
        if not each:
            continue
        right = np.array([sum(ok for _, ok in marks) for marks in each], float)
        total = np.array([len(marks) for marks in each], float)
        draws = rng.integers(len(each), size=(_RESAMPLES, len(each)))
        low, high = np.quantile(right[draws].sum(1) / total[draws].sum(1), (0.025, 0.975))
        out[name] = _entry(right.sum() / total.sum(), low, high, int(total.sum()))
    return out


def _entry(value: float, low: float, high: float, n: int) -> dict[str, float]:
    return {"value": round(float(value), 4), "low": round(float(low), 4), "high": round(float(high), 4), "n": n}


def by_value(marks: Sequence[Marks]) -> dict[str, dict[str, dict[str, float]]]:
    """Share of right marks by attribute and by the value that was asked for."""
    counts: dict[str, dict[str, list[bool]]] = {}
    for name in (*OF_OBJECT, *AROUND):
        for value, right in (pair for m in marks for pair in m.get(name, [])):
            counts.setdefault(name, {}).setdefault(value, []).append(right)
    return {
        name: {value: {"value": round(float(np.mean(own)), 4), "n": len(own)} for value, own in sorted(values.items())}
        for name, values in counts.items()
    }


def floor(readings: Sequence[Reading], asked: Sequence[Asked], seed: int = 0) -> dict[str, float]:
    """Scores of the same clips against each other's prompts: what somebody gets who does not read the prompt."""
    rng, count = np.random.default_rng(seed), len(asked)
    marks = []
    for _ in range(_FLOORS if count > 1 else 0):
        order = rng.permutation(count)  # a cycle through all clips: none keeps its own prompt
        for i, j in zip(order, np.roll(order, 1), strict=True):
            marks.append(mark(readings[i], asked[j]))
    return _means(marks)


def _means(marks: Sequence[Marks]) -> dict[str, float]:
    out = {}
    for name in NAMES:
        each = [right for m in marks for _, right in m.get(name, [])]
        if each:
            out[name] = round(float(np.mean(each)), 4)
    return out


def score(
    readings: Sequence[Reading], asked: Sequence[Asked], ceiling: Sequence[Reading] | None = None
) -> dict[str, Any]:
    """The report: `count`, `scores` (attribute -> value, low, high, n), `splits` (by template and combination, seen and
    unseen), `values` (attribute -> value asked -> value, n), `reference` (shuffled prompts; with `ceiling`, readings of
    renders of the same prompts, also renders), and `clips` (what was asked and seen in each)."""
    if len(readings) != len(asked):
        raise ValueError(f"score: {len(readings)} readings of {len(asked)} prompts.")
    marks = [mark(reading, one) for reading, one in zip(readings, asked, strict=True)]
    splits: dict[str, Any] = {}
    for split in ("template", "combination"):
        for side in ("seen", "unseen"):
            own = [m for m, one in zip(marks, asked, strict=True) if getattr(one, split) == side]
            if own:
                splits.setdefault(split, {})[side] = rates(own)
    reference = {"shuffled": floor(readings, asked)}
    if ceiling is not None:
        reference["renders"] = _means([mark(reading, one) for reading, one in zip(ceiling, asked, strict=True)])
    return {
        "count": len(asked),
        "scores": rates(marks),
        "splits": splits,
        "values": by_value(marks),
        "reference": reference,
        "clips": [_clip(*each) for each in zip(readings, asked, marks, strict=True)],
    }


def _clip(reading: Reading, asked: Asked, marks: Marks) -> dict[str, Any]:
    objects = [
        {name: getattr(one, name) for name in OF_OBJECT}
        | {"outline_error": round(one.outline_error, 4), "path_error": round(min(one.path_error, 99.0), 3)}
        for one in reading.objects
    ]
    return {
        "prompt": asked.prompt, "template": asked.template, "combination": asked.combination,
        "asked": {"objects": list(asked.objects)} | asked.around,
        "seen": {"objects": objects, "count": reading.count, "background": reading.background, "light": reading.light,
                 "camera": reading.camera},
        "readable": reading.readable, "reason": reading.reason,
        "wrong": [name for name in (*OF_OBJECT, *AROUND) if not all(right for _, right in marks.get(name, []))],
    }  # fmt: skip


def first_place(reading: Reading) -> Float[np.ndarray, "2"] | None:
    """Where the first object is in the first frame, in units of min(height, width); None if it is not seen."""
    return reading.objects[0].track[0] if reading.objects and reading.objects[0].seen[0] else None


def spread(places: Sequence[Float[np.ndarray, "2"] | None], groups: Sequence[Hashable]) -> float:
    """How much places vary among the clips of one group (one prompt, say): root mean square distance from the group's
    middle. nan if no group has two places that are known."""
    each: dict[Hashable, list[np.ndarray]] = {}
    for place, group in zip(places, groups, strict=True):
        if place is not None:
            each.setdefault(group, []).append(np.asarray(place))
    squares = sum(float(((np.array(own) - np.mean(own, 0)) ** 2).sum()) for own in each.values())
    freedom = sum(len(own) - 1 for own in each.values())
    return float(np.sqrt(squares / freedom)) if freedom else float("nan")


def psnr(a: UInt8[np.ndarray, "*n 3"], b: UInt8[np.ndarray, "*n 3"]) -> float:
    """Peak signal to noise of two pictures, in dB; 99 if they are equal."""
    error = float(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2))
    return min(99.0, 10 * np.log10(255**2 / error)) if error else 99.0
