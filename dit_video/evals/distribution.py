"""Are the clips spread as they should be: a distance between the distributions of generated clips and of renders.

The polynomial-kernel maximum mean discrepancy (Binkowski et al. 2018, "Demystifying MMD GANs", section 4), on two kinds
of numbers: what the judge measures in a clip, and the features of a small frozen network of ours (`features`). Neither
is comparable with numbers that others publish under other names.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from dit_video.core.log import Progress
from dit_video.data.toyworld import scene as words
from dit_video.evals import references
from dit_video.evals.features import features
from dit_video.evals.measure import Reading
from dit_video.evals.prompts import suite
from dit_video.evals.quality import entry
from dit_video.evals.toyworld import Sampling, Subject, make, read

_SUBSETS = 100  # halves of the clips, for the interval
# The least deviation of a column. Of a state's it is that of a word that one clip in ten has.
_LEAST = {"states": 0.3, "features": 1e-3}
_WORDS = {"shape": words.SHAPES, "colour": words.COLOURS, "motion": (*words.MOTIONS, "unclear"),
          "direction": words.DIRECTIONS}  # fmt: skip

Sets = Mapping[str, tuple[np.ndarray, np.ndarray]]  # of _LEAST: rows of a model's clips, and of the renders


def state(reading: Reading) -> Float[np.ndarray, "D"]:
    """What is measured in a clip as numbers: of its surroundings one-hot words, of its objects the sum, so that their
    order does not matter. An unreadable clip is a point of its own."""
    if not reading.readable:
        return np.concatenate([[1.0], np.zeros(len(_around(None)) + len(_object(None)))])
    return np.concatenate([[0.0], _around(reading), np.sum([_object(one) for one in reading.objects], 0)])


def _around(reading: Reading | None) -> np.ndarray:
    tables = {"background": words.BACKGROUNDS, "light": words.LIGHTS, "camera": words.CAMERAS, "count": ("one", "two")}
    return np.array([float(getattr(reading, name, "") == value) for name, table in tables.items() for value in table])


def _object(one: Any) -> np.ndarray:
    known = [float(getattr(one, name, "") == value) for name, table in _WORDS.items() for value in table]
    if one is None:
        return np.array([*known, *[0.0] * 7])
    track, size = one.track[one.seen], one.radius[one.seen]
    way = track[-1] - track[0]
    rate = np.log(one.rate) if one.rate > 0 else 0.0
    return np.array([*known, *track[0], *way, 4 * float(np.median(size)), float(np.log(size[-1] / size[0])), rate / 2])


def mmd(x: Float[np.ndarray, "N D"], y: Float[np.ndarray, "M D"]) -> float:
    """Unbiased estimate of the squared maximum mean discrepancy with the kernel (x.y / D + 1)^3, in float64. It can be
    a little below zero. Raises ValueError for less than two rows."""
    n, m, d = len(x), len(y), x.shape[1]
    if min(n, m) < 2:
        raise ValueError(f"mmd: needs two rows of each, got {n} and {m}.")
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (a @ b.T / d + 1) ** 3

    xx, yy, xy = kernel(x, x), kernel(y, y), kernel(x, y)
    within = (xx.sum() - np.trace(xx)) / (n * (n - 1)) + (yy.sum() - np.trace(yy)) / (m * (m - 1))
    return float(within - 2 * xy.mean())


def distance(
    x: Float[np.ndarray, "N D"],
    reference: Float[np.ndarray, "M D"],
    least: float = _LEAST["features"],
    seed: int = 0,
) -> dict[str, float]:
    """`mmd` after both are scaled to the reference's mean and deviation, as an entry of a report; the interval is that
    of halves of both, so wider than the number's own. least: of a deviation: what never differs in the reference would
    else outweigh all the rest as soon as it differs once."""
    x, y = (_scaled(a, reference, least) for a in (x, reference))
    rng, half = np.random.default_rng(seed), max(2, min(len(x), len(y)) // 2)
    drawn = [mmd(*(a[rng.permutation(len(a))[:half]] for a in (x, y))) for _ in range(_SUBSETS)]
    return entry(mmd(x, y), *np.quantile(drawn, (0.025, 0.975)), len(x))


def _scaled(x: Float[np.ndarray, "N D"], reference: Float[np.ndarray, "M D"], least: float) -> np.ndarray:
    return (x - reference.mean(0)) / np.maximum(reference.std(0), least)


def difference(ours: Sets, theirs: Sets, seed: int = 0) -> dict[str, dict[str, float]]:
    """How much farther our clips are than theirs, which are of the same prompts, from the same renders; the interval is
    that of halves, the same ones of both models'."""
    out = {}
    for kind, (x, reference) in ours.items():
        a, b, y = (_scaled(rows, reference, _LEAST[kind]) for rows in (x, theirs[kind][0], reference))
        rng, half, drawn = np.random.default_rng(seed), max(2, min(len(a), len(y)) // 2), []
        for _ in range(_SUBSETS):
            i, j = (rng.permutation(len(rows))[:half] for rows in (a, y))
            drawn.append(mmd(a[i], y[j]) - mmd(b[i], y[j]))
        out[kind] = entry(mmd(a, y) - mmd(b, y), *np.quantile(drawn, (0.025, 0.975)), len(a))
    return out


def evaluate(
    subject: Subject, count: int, how: Sampling, progress: Progress
) -> tuple[dict[str, Any], Sequence[np.ndarray], Sets]:
    """The report, the clips, and the rows that were compared. A model makes the first `count` of the fixed prompts, the
    renderer the next `count`: their distance is the score. Reference rows: renders of the first prompts (what is left
    to chance), these frozen, and the clips under each other's prompts, which is the score: no prompt is looked at."""
    asked = suite(2 * count, "world", how.height, how.width)
    with progress.phase("render"):
        rendered = references.renders([one.scene for one in asked], how.num_frames, how.height, how.width)
    first, known = rendered[:count], rendered[count:]
    with progress.phase("generate"):
        clips = make(subject, asked[:count], how)
    sets = {"model": clips, "renders": first, "frozen": references.frozen(first), "known": known}
    states = {name: np.stack([state(one) for one in read(own, subject.fps, progress)]) for name, own in sets.items()}
    with progress.phase("features"):
        seen = {name: features(own) for name, own in sets.items()}
    each = {"states": states, "features": seen}
    rows = {name: {kind: distance(of[name], of["known"], _LEAST[kind]) for kind, of in each.items()}
            for name in ("model", "renders", "frozen")}  # fmt: skip
    reference = {
        said: {kind: one["value"] for kind, one in rows[name].items()}
        for said, name in (("renders", "renders"), ("shuffled", "model"), ("frozen", "frozen"))
    }
    report = {"suite": "distribution", "count": count, "scores": rows["model"], "splits": {}, "reference": reference}
    return report, clips, {kind: (of["model"], of["known"]) for kind, of in each.items()}
