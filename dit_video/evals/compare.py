"""Two models side by side: which is better, and whether that could be chance."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from dit_video.evals.quality import entry
from dit_video.evals.score import NAMES, Marks

_RESAMPLES = 2000
# Of the other model's report; its clips stay out.
_KEPT = ("model", "count", "scores", "quality", "splits", "values", "free", "first_frame", "reference", "curves",
         "diversity", "faults", "bytes", "judge")  # fmt: skip

# name -> what each clip adds above and below the line of a ratio, which is the score; nan where it adds nothing
Samples = Mapping[str, Float[np.ndarray, "N 2"]]


def of_marks(marks: Sequence[Marks]) -> Samples:
    """By attribute: right marks over marks."""
    none = (np.nan, np.nan)
    counts = {name: [(sum(ok for _, ok in m[name]), len(m[name])) if m.get(name) else none for m in marks]
              for name in NAMES}  # fmt: skip
    return {name: np.array(each, float).reshape(-1, 2) for name, each in counts.items()}


def of_numbers(numbers: Mapping[str, Sequence[float]]) -> Samples:
    """Numbers of clips, of which the mean is the score."""
    return {name: np.stack([np.asarray(own, float), np.ones(len(own))], 1) for name, own in numbers.items()}


def difference(ours: Samples, theirs: Samples, seed: int = 0) -> dict[str, dict[str, float]]:
    """By name, how much larger our score is than theirs, with a 95 % interval: both made clips of the same prompts, and
    pairs are resampled, n of them. Raises ValueError if they did not."""
    rng, out = np.random.default_rng(seed), {}
    for name in ours:
        if name not in theirs:
            continue
        both = np.concatenate([ours[name], theirs[name]], 1)
        both = both[np.isfinite(both).all(1)]
        if not len(both) or min(both[:, 1].sum(), both[:, 3].sum()) <= 0:
            continue
        draws = rng.integers(len(both), size=(_RESAMPLES, len(both)))
        low, high = np.quantile(_gain(both[draws].sum(1)), (0.025, 0.975))
        out[name] = entry(float(_gain(both.sum(0))), low, high, len(both))
    return out


def _gain(sums: Float[np.ndarray, "*n 4"]) -> Float[np.ndarray, "*n"]:
    below = np.maximum(sums[..., 1::2], 1e-12)  # a draw may have nothing below
    return sums[..., 0] / below[..., 0] - sums[..., 2] / below[..., 1]


def beside(report: dict[str, Any], other: Mapping[str, Any], gain: Mapping[str, Any]) -> None:
    """Puts the other model's report into the first one's, as `against`."""
    report["against"] = {name: other[name] for name in _KEPT if name in other} | {"difference": dict(gain)}
    if free := report["against"].get("free"):
        report["against"]["free"] = {name: value for name, value in free.items() if name != "clips"}
