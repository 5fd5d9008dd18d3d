"""Two models side by side: which is better, and whether that could be chance."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dit_video.evals.quality import entry
from dit_video.evals.score import NAMES, Marks

_RESAMPLES = 2000


def difference(ours: Sequence[Marks], theirs: Sequence[Marks], seed: int = 0) -> dict[str, dict[str, float]]:
    """By attribute, how much larger our share of right marks is than theirs, with a 95 % interval: both made clips of
    the same prompts, and pairs are resampled. Raises ValueError if they did not."""
    rng, out = np.random.default_rng(seed), {}
    for name in NAMES:
        pairs = [(a[name], b[name]) for a, b in zip(ours, theirs, strict=True) if name in a]
        if not pairs:
            continue
        total = np.array([len(a) for a, _ in pairs], float)
        gain = np.array([sum(ok for _, ok in a) - sum(ok for _, ok in b) for a, b in pairs], float)
        draws = rng.integers(len(pairs), size=(_RESAMPLES, len(pairs)))
        low, high = np.quantile(gain[draws].sum(1) / total[draws].sum(1), (0.025, 0.975))
        out[name] = entry(gain.sum() / total.sum(), low, high, int(total.sum()))
    return out


def beside(report: dict[str, Any], other: Mapping[str, Any], gain: Mapping[str, Any] | None = None) -> None:
    """Puts the other model's report into the first one's, as `against`."""
    kept = ("model", "scores", "quality", "splits", "reference", "curves", "diversity", "faults")
    report["against"] = {name: other[name] for name in kept if name in other} | {"difference": dict(gain or {})}
