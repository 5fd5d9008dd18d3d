"""How an object moves, from where it is seen in each frame: the closed form of every motion is fitted, the best is it.

Lengths are in units of m = min(height, width), times in seconds, angles in radians.
"""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float

from dit_video.data.toyworld import scene as words

# How exactly a clip must follow a closed form, as one standard deviation of its place, log radius and angle.
_PLACE, _SIZE, _ANGLE = 0.02, 0.06, 0.14
_LIMIT = 2.5  # rms of all that in standard deviations; a path that is worse than this by every closed form is none
_CAP = 16.0  # squared deviation of one frame, at most: a few bad frames do not spoil a path
_BETTER = 0.65  # and a motion must leave at most this much of what standing still leaves
_STILL = 1.15  # standing still is believed unless a motion is this much better
# Where speeds and periods are sought first; then more finely around the best.
_SPEEDS = np.geomspace(0.045, 0.95, 34)
_HOPS, _ORBITS = np.geomspace(0.32, 2.6, 44), np.geomspace(0.7, 5.0, 48)
_FINE, _PHASES = np.geomspace(0.92, 1.08, 17), 24


@dataclass(frozen=True)
class Sighting:
    """One object over time. `seen`: the frames in which it can be measured; elsewhere the numbers mean nothing.

    x, y from the left and upper edge, radius as the scene's. `turns`: how often the shape repeats in a full turn, 0 if
    it is round. `reach`: how far it goes left, right, up, down. `room`: width and height of the frame.
    """

    times: Float[np.ndarray, "T"]
    x: Float[np.ndarray, "T"]
    y: Float[np.ndarray, "T"]
    radius: Float[np.ndarray, "T"]
    angle: Float[np.ndarray, "T"]
    seen: Bool[np.ndarray, "T"]
    turns: int
    reach: tuple[float, float, float, float]
    room: tuple[float, float]


@dataclass(frozen=True)
class Motion:
    """What was found; `kind` is "unclear" if no closed form fits. `error`: of the fit, in standard deviations.
    `jitter`: root mean square distance of the places from the closed form, nan if there is none."""

    kind: str
    direction: str = ""
    speed: str = ""
    turn: str = ""
    edge: str = ""
    rate: float = 0.0  # in the unit of the words' own table: m/s, seconds of a period, of a time constant, rad/s
    error: float = np.inf
    jitter: float = np.nan


def nearest(value: float, table: dict[str, float]) -> str:
    """The word whose value has the nearest logarithm."""
    return min(table, key=lambda word: abs(np.log(max(value, 1e-6) / table[word])))


def _mean(a: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return (a * weight).sum(-1, keepdims=True) / weight.sum()


def _cost(miss: np.ndarray, weight: np.ndarray, sigma: float) -> np.ndarray:
    """Sum over frames (the last axis) of squared deviations, none of them above the cap."""
    return (np.minimum((miss / sigma) ** 2, _CAP) * weight).sum(-1)


def _stays(a: np.ndarray, weight: np.ndarray, sigma: float) -> np.ndarray:
    """Cost of a number that should be constant; `a` may have axes before time."""
    return _cost(a - np.median(a[..., weight > 0], -1, keepdims=True), weight, sigma)


def _fold(start: np.ndarray, travel: np.ndarray, before: float, after: float, side: float, wrap: bool):
    """As `toyworld.motion`: places, and the sign with which they follow `start`."""
    if wrap:
        return (start + travel + after) % (side + before + after) - after, np.ones_like(travel)
    room = max(side - before - after, 1e-6)
    phase = (np.clip(start, before, before + room) + travel - before) % (2 * room)
    return before + room - np.abs(phase - room), np.where(phase < room, 1.0, -1.0)


def _along(s: Sighting, weight: np.ndarray, axis: int, speeds: np.ndarray, wrap: bool) -> np.ndarray:
    """Cost of one coordinate at each of the signed speeds."""
    place, before, after, side = (s.x, s.y)[axis], s.reach[2 * axis], s.reach[2 * axis + 1], s.room[axis]
    travel = speeds[:, None] * s.times
    first = int(np.argmax(s.seen))
    start = place[first] - travel[:, [first]]
    for _ in range(3):
        where, sign = _fold(start, travel, before, after, side, wrap)
        start = start + _mean(sign * np.clip(place - where, -0.25, 0.25), weight)
    where, _ = _fold(start, travel, before, after, side, wrap)
    # what starts at a wall and goes into it at once is what goes the other way
    ahead = (where[:, min(3, len(place) - 1)] - where[:, 0]) * np.sign(speeds) > 0
    return np.where(ahead | wrap, _cost(place - where, weight, _PLACE), np.inf)


def _line(s: Sighting, weight: np.ndarray, among: np.ndarray = _SPEEDS) -> tuple[float, Motion]:
    """Straight on, off the walls or through them, in any direction at any of the speeds."""
    best = (np.inf, Motion("moves"))
    here = [_stays(place, weight, _PLACE) for place in (s.x, s.y)]
    signs, slants = np.array([1, -1])[:, None, None], np.array([1, 0.5**0.5])[:, None]
    for edge in words.EDGES:
        speeds = among if edge == "bounce" else among[among > 0.25]
        if not len(speeds):
            continue
        each = (signs * slants * speeds).ravel()
        costs = [_along(s, weight, axis, each, edge == "wrap").reshape(2, 2, -1) for axis in (0, 1)]
        for direction, unit in words.UNIT.items():
            slant = int("-" in direction)
            if edge == "wrap" and slant:
                continue
            cost = sum(costs[axis][int(unit[axis] < 0), slant] if unit[axis] else here[axis] for axis in (0, 1))
            i = int(cost.argmin())
            if cost[i] < best[0] * (1 - 1e-3):
                rate = float(speeds[i])
                best = float(cost[i]), Motion("moves", direction, nearest(rate, words.VELOCITY), "", edge, rate)
    return best


def _regress(target: np.ndarray, basis: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weighted least squares of a place (T,) on bases (..., T, k): costs (...), coefficients (..., k)."""
    root = np.sqrt(weight)[:, None]
    a, b = basis * root, target * root[:, 0]
    across = a.swapaxes(-1, -2)
    solution = np.linalg.solve(across @ a + 1e-9 * np.eye(basis.shape[-1]), across @ b[:, None])[..., 0]
    return _cost((basis @ solution[..., None])[..., 0] - target, weight, _PLACE), solution


def _hops(
    s: Sighting, weight: np.ndarray, periods: np.ndarray = _HOPS, phase_count: int = _PHASES
) -> tuple[float, Motion]:
    """Parabolas on the floor, straight up and down."""
    phases = np.arange(phase_count) / phase_count
    u = (s.times / periods[:, None, None] + phases[:, None]) % 1.0
    height = 4 * u * (1 - u)
    cost, solution = _regress(s.y, np.stack([np.ones_like(height), -height], -1), weight)
    cost = np.where(np.abs(np.log(np.maximum(solution[..., 1], 1e-6) / words.HOP_HEIGHT)) < 0.6, cost, np.inf)
    cost = cost + _stays(s.x, weight, _PLACE)
    i = np.unravel_index(int(cost.argmin()), cost.shape)
    rate = float(periods[i[0]])
    return float(cost[i]), Motion("bounces", "", nearest(rate, words.HOP_PERIOD), "", "", rate)


def _orbit(s: Sighting, weight: np.ndarray, periods: np.ndarray = _ORBITS) -> tuple[float, Motion]:
    best = (np.inf, Motion("circles"))
    place, both = np.concatenate([s.x, s.y]), np.concatenate([weight, weight])
    for turn, sign in (("clockwise", 1), ("counterclockwise", -1)):
        phase = sign * 2 * np.pi * s.times / periods[:, None]
        one, nil, cos, sin = np.ones_like(phase), np.zeros_like(phase), np.cos(phase), np.sin(phase)
        basis = np.concatenate([np.stack([one, nil, cos, -sin], -1), np.stack([nil, one, sin, cos], -1)], -2)
        cost, solution = _regress(place, basis, both)
        size = np.hypot(solution[:, 2], solution[:, 3])
        cost = np.where(np.abs(np.log(np.maximum(size, 1e-6) / words.ORBIT_RADIUS)) < 0.6, cost, np.inf)
        i = int(cost.argmin())
        if cost[i] < best[0]:
            rate = float(periods[i])
            best = float(cost[i]), Motion("circles", "", nearest(rate, words.ORBIT_PERIOD), turn, "", rate)
    return best


def _growth(s: Sighting, weight: np.ndarray) -> tuple[float, Motion]:
    taus = np.geomspace(0.2, 6.0, 30)
    far = 1 - np.exp(-s.times / taus[:, None])
    best = (np.inf, Motion("grows"))
    for kind, factor in (("grows", words.GROWTH), ("shrinks", 1 / words.GROWTH)):
        for power in (0.75, 1.0, 1.25):
            miss = np.log(s.radius) - np.log(1 + (factor**power - 1) * far)
            cost = _stays(miss, weight, _SIZE) + (power != 1.0)
            i = int(cost.argmin())
            if cost[i] < best[0]:
                rate = float(taus[i])
                best = float(cost[i]), Motion(kind, "", nearest(rate, words.GROWTH_TAU), "", "", rate)
    return best


def _turning(s: Sighting, weight: np.ndarray) -> tuple[float, float, Motion]:
    """Cost of an angle that stays (up to the shape's own repeats); of the best steady turn; and that turn."""
    if not s.turns:
        return 0.0, np.inf, Motion("spins")
    rates = np.concatenate([[0.0], -np.geomspace(0.25, 4.5, 60), np.geomspace(0.25, 4.5, 60)])
    vectors = np.exp(1j * s.turns * (s.angle - rates[:, None] * s.times))
    first = np.angle((vectors * weight).sum(-1, keepdims=True))
    miss = np.angle(vectors * np.exp(-1j * first)) / s.turns
    cost = _cost(miss, weight, _ANGLE)
    i = 1 + int(cost[1:].argmin())
    turn = "clockwise" if rates[i] > 0 else "counterclockwise"
    rate = float(abs(rates[i]))
    return float(cost[0]), float(cost[i]), Motion("spins", "", nearest(rate, words.SPIN), turn, "", rate)


def fit(s: Sighting) -> Motion:
    """The motion that explains place, size and angle together; "unclear" if none does, or in less than four frames."""
    weight = s.seen.astype(float)
    if weight.sum() < 4:
        return Motion("unclear")
    s = Sighting(s.times, *(np.where(s.seen, a, a[np.argmax(s.seen)]) for a in (s.x, s.y, s.radius, s.angle)),
                 s.seen, s.turns, s.reach, s.room)  # fmt: skip
    here = sum(_stays(place, weight, _PLACE) for place in (s.x, s.y))
    same = _stays(np.log(s.radius), weight, _SIZE)
    staying, turning, spin = _turning(s, weight)
    candidates = [(here + same + staying, here, Motion("still"))]
    for cost, found in (each(s, weight) for each in (_line, _hops, _orbit)):
        candidates.append((cost + same + staying, cost, found))
    cost, found = _growth(s, weight)
    candidates += [(here + cost + staying, here, found), (here + same + turning, here, spin)]
    scores = [np.sqrt(cost / weight.sum()) for cost, _, _ in candidates]
    best = int(np.argmin(scores))
    if scores[0] < 0.5 or scores[0] < _STILL * scores[best]:
        best = 0
    if scores[best] > min(_LIMIT, _BETTER * scores[0] if best else np.inf):
        return Motion("unclear", error=float(scores[best]))
    _, place, found = candidates[best]
    place, found = _finer(s, weight, place, found)
    return replace(found, error=float(scores[best]), jitter=float(_PLACE * np.sqrt(place / weight.sum())))


def _finer(s: Sighting, weight: np.ndarray, cost: float, found: Motion) -> tuple[float, Motion]:
    """The same kind of motion with its rate, and its cost of place, sought on a grid as fine as the track is exact."""
    rates = found.rate * _FINE
    if found.kind == "moves":
        finer = _line(s, weight, rates)
    elif found.kind == "bounces":
        finer = _hops(s, weight, rates, 4 * _PHASES)
    elif found.kind == "circles":
        finer = _orbit(s, weight, rates)
    else:
        return cost, found
    return finer if finer[0] < cost else (cost, found)
