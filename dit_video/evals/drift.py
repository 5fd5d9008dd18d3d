"""Long clips: what is read in them, window by window, so that what is lost on the way shows.

A window is as long as the clips that a model is usually asked for. Renders of the same prompts stand beside, as motion
changes by itself: what grows stops growing.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from dit_video.core.errors import BadInput
from dit_video.core.log import Progress
from dit_video.evals import quality, references
from dit_video.evals.compare import Samples, of_numbers
from dit_video.evals.measure import Reading, measure
from dit_video.evals.prompts import Asked, suite
from dit_video.evals.score import Marks, mark, partners
from dit_video.evals.toyworld import Frames, Sampling, Subject, make, read

WINDOW, HOP = 17, 16  # frames
SHARES = ("readable", "count", "colour", "shape", "motion", "background", "light", "dynamic")
_LASTING = ("still", "moves", "bounces", "circles", "spins")  # motions that go on for ever
_CALM = 0.1  # levels of 255 between two frames: less is no change


def evaluate(
    subject: Subject, count: int, how: Sampling, progress: Progress
) -> tuple[dict[str, Any], Sequence[np.ndarray], Samples]:
    """The report, the clips and what each adds to its scores, of plain prompts whose motion lasts. `curves`: for the
    model and for renders, each of SHARES and three numbers over windows: how far the object's colour and area are from
    those of the first one (in daylight; logarithm), and how much a pixel changes from frame to frame. `scores`: what is
    lost from the first window to the last; `cut`, the largest change between two frames over the median one, and
    `track`, how far an object is from one closed form of motion over the whole clip, both as a ratio to that of
    renders. `reference`: what renders lose, and what the clips lose under each other's prompts.

    Raises BadInput for clips of less than two windows.
    """
    if how.num_frames < HOP + WINDOW:
        raise BadInput(f"num_frames={how.num_frames} is no long clip: drift needs {HOP + WINDOW} or more.")
    asked = [one for one in suite(2 * count, "plain", how.height, how.width) if one.objects[0]["motion"] in _LASTING]
    asked = asked[:count]
    with progress.phase("render"):
        rendered = references.renders([one.scene for one in asked], how.num_frames, how.height, how.width)
    with progress.phase("generate"):
        clips = make(subject, asked, how)
    starts = list(range(0, how.num_frames - WINDOW + 1, HOP))
    curves, lost, whole, reference = {}, {}, {}, {}
    for who, own in (("model", clips), ("renders", rendered)):
        windows = [read([clip[start : start + WINDOW] for clip in own], subject.fps, progress) for start in starts]
        table = _table(windows, asked)
        curves[who] = {name: [_mean(row) for row in values] for name, values in table.items()}
        curves[who] |= _numbers(windows, asked) | {"change": [_change(own, start) for start in starts]}
        lost[who] = {f"{name}_lost": values[0] - values[-1] for name, values in table.items()}
        whole[who] = {"cut": np.array([cut(clip) for clip in own]),
                      "track": np.array([quality.jitter(measure(clip, subject.fps)) for clip in own])}  # fmt: skip
        if who == "model":
            foreign = _table(windows, [*asked[1:], *asked[:1]])
            reference["shuffled"] = {f"{name}_lost": _mean(row[0] - row[-1]) for name, row in foreign.items()}
        else:
            reference["renders"] = {name: _mean(own) for name, own in lost[who].items()} | {"cut": 1.0, "track": 1.0}
    scores = {name: quality.average(own) for name, own in lost["model"].items()}
    scores |= {name: quality.ratio(own, whole["renders"][name]) for name, own in whole["model"].items()}
    samples = dict(of_numbers(lost["model"]))
    samples |= {name: np.stack([own, whole["renders"][name]], 1) for name, own in whole["model"].items()}
    report = {
        "suite": "drift", "count": len(asked), "seconds_of_windows": [start / subject.fps for start in starts],
        "shares": list(SHARES), "curves": curves, "scores": {k: v for k, v in scores.items() if v is not None},
        "splits": {}, "reference": {name: reference[name] for name in ("renders", "shuffled")},
    }  # fmt: skip
    return report, clips, samples


def _table(windows: Sequence[Sequence[Reading]], asked: Sequence[Asked]) -> dict[str, Float[np.ndarray, "W N"]]:
    """Of each of SHARES the part that is right in each window of each clip."""
    marks = [[mark(*pair) for pair in zip(readings, asked, strict=True)] for readings in windows]
    return {name: np.array([[_share(m, name) for m in each] for each in marks]) for name in SHARES}


def _share(marks: Marks, name: str) -> float:
    each = [right for _, right in marks.get(name, [])]
    return float(np.mean(each)) if each else float("nan")


def _mean(values: np.ndarray) -> float | None:
    known = values[np.isfinite(values)]
    return round(float(known.mean()), 4) if len(known) else None


def _numbers(windows: Sequence[Sequence[Reading]], asked: Sequence[Asked]) -> dict[str, list[float | None]]:
    """Mean distance of an object's colour and area from those of the first window, where it is the same object."""
    colour, area = [], []
    for readings in windows:
        tones, areas = [], []
        for now, first, one in zip(readings, windows[0], asked, strict=True):
            seen, before = partners(now, one)[0], partners(first, one)[0]
            if now.readable and first.readable and seen and before and seen.colour == before.colour:
                tones.append(np.linalg.norm(np.nanmean(seen.tone, 0) - np.nanmean(before.tone, 0)))
                areas.append(abs(np.log(np.median(seen.area[seen.seen]) / np.median(before.area[before.seen]))))
        colour.append(_mean(np.array(tones)))
        area.append(_mean(np.array(areas)))
    return {"colour_drift": colour, "area_drift": area}


def _change(clips: Sequence[Frames], start: int) -> float:
    """Mean absolute difference between two frames of a window, in levels of 255."""
    each = [np.abs(np.diff(clip[start : start + WINDOW].astype(np.int16), axis=0)).mean() for clip in clips]
    return round(float(np.mean(each)), 4)


def cut(clip: Frames) -> float:
    """The largest of `changes`: 1 to 2 in steady motion, far more at a seam."""
    return float(changes(clip).max())


def changes(clip: Frames) -> Float[np.ndarray, "T-1"]:
    """Mean difference between each two frames over the median one."""
    each = np.abs(np.diff(clip.astype(np.int16), axis=0)).mean((1, 2, 3))
    return each / max(np.median(each), _CALM)
