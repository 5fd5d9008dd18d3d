"""What is behind the objects: background, light and camera of a clip, by trying every one that there is.

Light multiplies: a pixel is (what is there) * exposure, and exposure is known for each of the three lights. So a clip
is divided by each of them in turn, and the light is the one after which most pixels have the colour of some background:
that of a plain one, one of the two tones of a pattern, or what a gradient has at that place. (Any mixture of two tones
would do for a pattern in the wrong light as well: dark tones by day hold all that others have at night.)
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from dit_video.data.toyworld import motion, render
from dit_video.data.toyworld import scene as words

SHADOW = 0.66  # an object's shadow leaves at least this share of the light
_SPREAD = 0.07  # of the colours of one background, in daylight
_PERIOD = dict(zip(("checkered", "striped"), render.PERIOD[2:], strict=True))  # in units of min(height, width)
_MATCH = 0.5  # correlation of a pattern with the pixels, below which it is none
_OFF = 0.15  # how far the colour of a plain background may be from the one that it should be
_FLAT = 1.12  # a plain background may explain this factor less of a clip than a patterned one, which is more flexible


class Ground(NamedTuple):
    """`fit`: share of the pixels that have the background's colours. `match`: correlation of the pattern with the one
    that was found, 1 if there is none. `zoom`, `right`, `down`: the view in each frame, as `toyworld.motion.view`."""

    background: str
    light: str
    camera: str
    low: Float[np.ndarray, "3"]  # the two tones in daylight; equal if plain
    high: Float[np.ndarray, "3"]
    exposure: Float[np.ndarray, "H W 3"]
    fit: float
    match: float
    zoom: Float[np.ndarray, "T"]
    right: Float[np.ndarray, "T"]
    down: Float[np.ndarray, "T"]


@lru_cache(maxsize=32)
def exposures(height: int, width: int) -> Float[np.ndarray, "3 H W 3"]:
    """What each light multiplies daylight by."""
    v, u = ((np.arange(n) + 0.5) / n - 0.5 for n in (height, width))
    v = v[:, None]
    each = [
        (1 - vignette * 2 * (u * u + v * v)) * (1 - side * (u + 0.5))
        for vignette, side in zip(render.VIGNETTE, render.SIDE, strict=True)
    ]
    return np.float32(np.stack(each)[..., None] * render.TINT[:, None, None])


def to_tones(pixels: np.ndarray, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Share of the tone `high` in daylight pixels (..., 3), unclipped, and distance to the nearest mixture of the two
    tones or to a shadow on it; for two equal tones the share is the brightness relative to it."""
    if np.array_equal(low, high):
        start, way = np.float32(SHADOW * low), np.float32((1.05 - SHADOW) * low)
    else:
        start, way = np.float32(SHADOW * low), np.float32(1.03 * high - SHADOW * low)
    off = pixels - start
    return nearest_on(off, way)


def nearest_on(off: np.ndarray, way: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where on the way from 0 the point nearest to `off` (..., 3) is, unclipped, and its distance if clipped."""
    length = max(way @ way, np.float32(1e-12))  # of a black clip there is no way
    along = off @ (way / length)
    on = np.clip(along, 0, 1)
    square = off[..., 0] ** 2 + off[..., 1] ** 2 + off[..., 2] ** 2 + on * (on - 2 * along) * length
    return along, np.sqrt(np.maximum(square, 0))


def find(frames: Float[np.ndarray, "T H W 3"], fps: float) -> Ground:
    """The ground of a clip; frames in [0, 1]."""
    count, height, width, _ = frames.shape
    light_of, some = exposures(height, width), frames[np.unique(np.linspace(0, count - 1, 4).astype(int)), 1::3, 1::3]
    best_plain = best_pattern = (0.0, "", "", np.zeros(3, np.float32), np.zeros(3, np.float32))

    def share(distance: np.ndarray) -> float:
        return float(np.exp(-((distance / _SPREAD) ** 2)).mean())

    ramps = [ramp[1::3, 1::3, None] for ramp in _ramps(height, width)]
    for light, exposure in zip(words.LIGHTS, light_of, strict=True):
        day = some / exposure[1::3, 1::3]
        for name, rgb in words.PLAIN_RGB.items():
            if name == "black" and light != "day":
                continue
            tone = np.float32(rgb)
            best_plain = max(best_plain, (share(_apart(day, tone)), name, light, tone, tone), key=_first)
        for tones in words.TONES.values():
            low, high = np.float32(tones)
            one_of_two = np.minimum(_apart(day, low), _apart(day, high))
            between = (_apart(day, low + (high - low) * ramp) for ramp in ramps)
            score = max(map(share, (one_of_two, *between)))
            best_pattern = max(best_pattern, (score, "", light, low, high), key=_first)
    if _FLAT * best_plain[0] < best_pattern[0]:
        _, _, light, low, high = best_pattern
        exposure = light_of[words.LIGHTS.index(light)]
        fit = share(nearest_on(some / exposure[1::3, 1::3] - low, high - low)[1])
        background, camera, match, seen = _pattern(frames / exposure, low, high, fps)
        if match > _MATCH:
            return Ground(background, light, camera, low, high, exposure, fit, match, *seen)
    _, name, light, tone, _ = best_plain
    exposure = light_of[words.LIGHTS.index(light or "day")]
    # a generator's tones are a little off: what counts from here on is the one that is there
    day = (some / exposure[1::3, 1::3]).reshape(-1, 3)
    own = day[np.linalg.norm(day - tone, axis=-1) < _OFF]
    tone = np.median(own, 0) if len(own) else tone
    fit = share(np.linalg.norm(day - tone, axis=-1))
    still = np.ones(count), np.zeros(count), np.zeros(count)
    return Ground(name, light, "static", tone, tone, exposure, fit, 1.0, *still)


def _apart(pixels: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """Distance of pixels (..., 3) to a colour, or to one each."""
    return np.sqrt(((pixels - colour) ** 2) @ np.ones(3, np.float32))


def _ramps(height: int, width: int) -> list[Float[np.ndarray, "H W"]]:
    """Share of the second tone of a gradient in each of its four directions."""
    y, x = ((np.arange(n, dtype=np.float32) + 0.5) / n for n in (height, width))
    right, down = np.broadcast_to(x, (height, width)), np.broadcast_to(y[:, None], (height, width))
    return [right, down, 1 - right, 1 - down]


def _first(hypothesis: tuple) -> float:
    return hypothesis[0]


def _wave(u: np.ndarray, pixels_per_period: np.ndarray | float) -> np.ndarray:
    """A square wave of -1 and 1 in u periods, its edges a pixel wide, as the renderer's."""
    return 2 * np.clip((0.25 - np.abs(u % 1.0 - 0.5)) * pixels_per_period, -0.5, 0.5)


def _drawn(name: str, angle: float, offset: float, x: np.ndarray, y: np.ndarray, m: float, zoom=1.0) -> np.ndarray:
    """A checkered or striped pattern at world positions x, y in pixels from the middle of the frame."""
    period = _PERIOD[name] * m
    cos, sin = np.cos(angle), np.sin(angle)
    across = _wave((x * cos + y * sin) / period + offset, period * zoom)
    return across if name == "striped" else across * _wave((y * cos - x * sin) / period + offset, period * zoom)


def _correlation(a: np.ndarray, b: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Over the last axis; weights of the same shape as a."""
    total = np.maximum(weight.sum(-1, keepdims=True), 1e-6)
    a = a - (a * weight).sum(-1, keepdims=True) / total
    b = b - (b * weight).sum(-1, keepdims=True) / total
    power = (weight * a * a).sum(-1) * (weight * b * b).sum(-1)
    return (weight * a * b).sum(-1) / np.sqrt(np.maximum(power, 1e-9))


def _pattern(day: np.ndarray, low: np.ndarray, high: np.ndarray, fps: float) -> tuple[str, str, float, tuple]:
    """Name of the pattern, of the camera, how well they match, and the view, from a clip in daylight."""
    count, height, width, _ = day.shape
    m = float(min(height, width))
    along, distance = nearest_on(day - low, high - low)
    weight = np.float32((distance < 0.12) & (np.abs(along - 0.5) < 0.8))
    along = np.clip(along, 0, 1)
    y = (np.arange(height) + 0.5 - height / 2)[:, None] + np.zeros(width)
    x = (np.arange(width) + 0.5 - width / 2) + np.zeros((height, 1))
    first, first_weight = along[0].ravel(), weight[0].ravel()
    found: list[tuple[float, str, float, float]] = []
    ramps = [a * np.pi for a in (0.0, 0.5, 1.0, 1.5)]
    for angle in ramps:
        ramp = x.ravel() / width * np.cos(angle) + y.ravel() / height * np.sin(angle)
        found.append((float(_correlation(first, ramp, first_weight)), "gradient", angle, 0.0))
    offsets = np.arange(32) / 32
    for name, angles in (("checkered", (0.0,)), ("striped", (-0.25 * np.pi, 0.0, 0.25 * np.pi))):
        for angle in angles:
            drawn = np.stack([_drawn(name, angle, offset, x, y, m).ravel() for offset in offsets])
            match = _correlation(first[None], drawn, np.broadcast_to(first_weight, drawn.shape))
            found.append((float(match.max()), name, angle, float(offsets[match.argmax()])))
    match, name, angle, offset = max(found)
    still = np.ones(count), np.zeros(count), np.zeros(count)
    if name == "gradient":
        return name, "static", match, still
    camera, match, seen = _camera(along, weight, name, angle, offset, x, y, m, fps)
    return name, camera, match, seen


def _camera(along, weight, name, angle, offset, x, y, m, fps) -> tuple[str, float, tuple]:
    """Which camera, by drawing the pattern as each would see it."""
    count, height, width = along.shape
    times = np.arange(count) / fps
    seen, weight = along[:, ::2, ::2].reshape(count, -1), weight[:, ::2, ::2].reshape(count, -1)
    x, y = x[::2, ::2].ravel(), y[::2, ::2].ravel()

    def match(view: tuple) -> float:
        zoom, right, down = (a[:, None] for a in view)
        drawn = _drawn(name, angle, offset, x / zoom + right, y / zoom + down, m, zoom)
        return float(_correlation(seen, drawn, weight).mean())

    def look(camera: str, phase: float = 0.0) -> tuple:
        scene = words.Scene((), name, camera=camera, tones="slate", shake=phase)
        return motion.view(motion.scene_arrays(scene).camera, times, height, width)

    best = max(((match(look(camera)), camera, 0.0) for camera in words.CAMERAS[:-1]), key=_first)
    if count > 1:
        shaken = [(match(look("handheld", phase)), "handheld", phase) for phase in np.arange(24) / 24]
        best = max([best, *shaken], key=_first)
    return best[1], best[0], look(best[1], best[2])
