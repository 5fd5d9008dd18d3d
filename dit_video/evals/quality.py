"""What is good or bad in a clip whatever its prompt says: does it keep what is in it, does it move, smoothly, at what
speed, does it flicker. Most are compared with exact renders of the same prompts, as these are not zero: things move."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8

from dit_video.data.toyworld import scene as words
from dit_video.evals.measure import Object, Reading
from dit_video.evals.outline import SYMMETRY

RATES = {  # what a speed means, in the unit of `Object.rate`
    "moves": words.VELOCITY,
    "bounces": words.HOP_PERIOD,
    "circles": words.ORBIT_PERIOD,
    "grows": words.GROWTH_TAU,
    "shrinks": words.GROWTH_TAU,
    "spins": words.SPIN,
}
_CONSTANT = 0.9  # share of the frames in which shape and colour are the clip's
_WAY, _GROWTH, _TURN = 0.05, 0.1, 0.3  # units of m, log of the radius, radians: less is standing still
_RESAMPLES = 2000


def permanent(reading: Reading) -> bool:
    """Nothing vanishes, splits or morphs: every object is there in one piece in every frame."""
    return reading.readable and all(bool(one.whole.all()) for one in reading.objects)


def constant(reading: Reading) -> bool:
    """Every object keeps its shape and its colour, in at least nine frames of ten."""
    return reading.readable and all(min(one.shape_share, one.colour_share) >= _CONSTANT for one in reading.objects)


def moving(one: Object) -> bool:
    """Whether it does anything at all: goes, grows, shrinks or turns."""
    seen = one.seen
    if seen.sum() < 3:
        return False
    track, size = one.track[seen], np.log(one.radius[seen])
    way = float(np.linalg.norm(track - np.median(track, 0), axis=-1).max())
    growth = float(np.quantile(size, 0.95) - np.quantile(size, 0.05))
    turns = SYMMETRY.get(one.shape, 0)
    turn = float(np.abs(np.angle(np.exp(1j * turns * np.diff(one.angle[seen]))).sum()) / turns) if turns else 0.0
    return way > _WAY or growth > _GROWTH or turn > _TURN


def speed_error(one: Object, motion: str, speed: str) -> float:
    """How far its rate is from that of the word, relative to it; nan if it does not move so."""
    if one.motion != motion or motion not in RATES:
        return float("nan")
    return float(np.exp(abs(np.log(max(one.rate, 1e-6) / RATES[motion][speed]))) - 1)


def jitter(reading: Reading) -> float:
    """Root mean square distance of an object's places from the smooth motion that fits them, in units of
    min(height, width), mean over objects; nan if there is none."""
    each = [one.jitter for one in reading.objects if np.isfinite(one.jitter)]
    return float(np.mean(each)) if reading.readable and each else float("nan")


def flicker(frames: UInt8[np.ndarray, "T H W 3"]) -> float:
    """Mean absolute second difference of a pixel in time, in levels of 255; 0 in less than three frames."""
    x = np.asarray(frames).astype(np.int16)
    return float(np.abs(x[2:] - 2 * x[1:-1] + x[:-2]).mean()) if len(x) > 2 else 0.0


def boil(frames: UInt8[np.ndarray, "T H W 3"]) -> float:
    """Mean absolute difference between two frames of a calm pixel (a fifth of all change less), in levels of 255.
    Before a static camera that pixel is background, and its change is none that there should be."""
    x = np.asarray(frames).astype(np.int16)
    return float(np.quantile(np.abs(np.diff(x, axis=0)).mean((0, -1)), 0.2)) if len(x) > 1 else 0.0


def average(values: Sequence[float], seed: int = 0) -> dict[str, float] | None:
    """Mean with a 95 % bootstrap interval; nan is left out; None if nothing is left."""
    known = np.array([value for value in values if np.isfinite(value)])
    if not len(known):
        return None
    draws = np.random.default_rng(seed).integers(len(known), size=(_RESAMPLES, len(known)))
    return entry(known.mean(), *np.quantile(known[draws].mean(1), (0.025, 0.975)), len(known))


def ratio(ours: Sequence[float], theirs: Sequence[float], seed: int = 0) -> dict[str, float] | None:
    """Mean of ours over mean of theirs, pairs resampled; None if no pair is known or theirs are zero."""
    pairs = np.array([pair for pair in zip(ours, theirs, strict=True) if np.isfinite(pair).all()]).reshape(-1, 2)
    if not len(pairs) or not pairs[:, 1].mean() > 0:
        return None
    a, b = pairs.T
    draws = np.random.default_rng(seed).integers(len(pairs), size=(_RESAMPLES, len(pairs)))
    drawn = a[draws].mean(1) / np.maximum(b[draws].mean(1), 1e-12)
    both: dict[str, float] = {"ours": round(float(a.mean()), 5), "renders": round(float(b.mean()), 5)}
    return entry(a.mean() / b.mean(), *np.quantile(drawn, (0.025, 0.975)), len(pairs)) | both


def entry(value: float, low: float, high: float, n: int) -> dict[str, float]:
    """A number of a report with its interval."""
    return {"value": round(float(value), 4), "low": round(float(low), 4), "high": round(float(high), 4), "n": n}


def spread(places: Sequence[Float[np.ndarray, "2"] | None], groups: Sequence[object]) -> float:
    """How much places vary among the clips of one group (one prompt, say): root mean square distance from the group's
    middle. nan if no group has two places that are known."""
    squares, freedom = _deviations(places, groups)
    return float(np.sqrt(squares.sum() / freedom)) if freedom else float("nan")


def spread_entry(
    places: Sequence[Float[np.ndarray, "2"] | None], groups: Sequence[object], unit: float = 1.0, seed: int = 0
) -> dict[str, float] | None:
    """`spread` over unit, with a 95 % interval: clips are resampled, each at its distance from its group's middle. None
    if no group has two places that are known."""
    squares, freedom = _deviations(places, groups)
    if not freedom:
        return None
    draws = np.random.default_rng(seed).integers(len(squares), size=(_RESAMPLES, len(squares)))
    value, *drawn = np.sqrt(np.array([squares.sum(), *squares[draws].sum(1)]) / freedom) / unit
    return entry(value, *np.quantile(drawn, (0.025, 0.975)), len(squares))


def _deviations(
    places: Sequence[Float[np.ndarray, "2"] | None], groups: Sequence[object]
) -> tuple[Float[np.ndarray, "N"], int]:
    """Squared distances of places from their group's middle, in groups of two and more, and the degrees of freedom."""
    each: dict[object, list[np.ndarray]] = {}
    for place, group in zip(places, groups, strict=True):
        if place is not None:
            each.setdefault(group, []).append(np.asarray(place))
    some = [np.array(own) for own in each.values() if len(own) > 1]
    squares = [((own - own.mean(0)) ** 2).sum(-1) for own in some]
    return np.concatenate([*squares, np.zeros(0)]), sum(len(own) - 1 for own in some)


def first_place(reading: Reading) -> Float[np.ndarray, "2"] | None:
    """Where the first object is in the first frame, in units of min(height, width); None if it is not seen."""
    return reading.objects[0].track[0] if reading.objects and reading.objects[0].seen[0] else None
