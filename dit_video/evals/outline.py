"""Shape, radius and angle of a silhouette, by comparison with every shape at every angle.

A silhouette is cut out around its centre of mass and scaled to an area of one disk of radius 1, so that one bank of
templates serves all sizes and the comparison is a matrix product.
"""

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import ndimage

from dit_video.data.toyworld import scene as words

_SIDE, _REACH = 29, 1.95  # samples a side, and how far they reach in radii of the disk of equal area
_BLUR = (0.06, 0.11, 0.18, 0.28, 0.40)  # standard deviation, in such radii
_SCALE = (0.93, 1.0, 1.07)
# How a generator may have spoilt an outline: corners rounded by so much of such radii, and blurred by so many levels
# more than a render of that size. Not so much that a square or a star could pass for a disk, or a disk for them.
SPOILT = ((0.0, 0), (0.0, 1), (0.0, 2), (0.20, 0), (0.30, 1))
SYMMETRY = {"square": 4, "triangle": 3, "star": 5}
_ANGLES = {"circle": 1, "ring": 1, "square": 15, "triangle": 20, "star": 12}  # templates in one turn of the symmetry
_RIBS = {  # angle of the first outward normal, lines, their distance from the centre for radius 1
    "square": (0.0, 4, 0.88),
    "triangle": (np.pi / 2, 3, 0.60),
    "star": (-np.pi / 2, 5, 1.25 * np.cos(np.radians(72))),
}


def distance(shape: str, x: np.ndarray, y: np.ndarray, angle: float = 0.0) -> np.ndarray:
    """Signed distance to a shape of radius 1, negative inside; as the renderer's."""
    if shape in words.ROUND:
        away = np.hypot(x, y)
        return away - 1 if shape == "circle" else np.abs(away - words.RING[0]) - words.RING[1]
    first, ribs, offset = _RIBS[shape]
    normals = first + angle + 2 * np.pi * np.arange(ribs) / ribs
    each = np.cos(normals)[:, None] * x.ravel() + np.sin(normals)[:, None] * y.ravel() - offset
    each.sort(axis=0)
    return each[-2 if shape == "star" else -1].reshape(x.shape)


def _areas() -> dict[str, float]:
    """Of each shape of radius 1."""
    s, d = 2 * np.sqrt(3) * 0.60, 1.25
    star = 5 * d * d * np.sin(np.pi / 5) * np.sin(np.pi / 10) / np.sin(np.pi * 0.7)
    middle, half = words.RING
    return {
        "circle": np.pi, "square": 1.76**2, "triangle": np.sqrt(3) / 4 * s * s,
        "star": float(star), "ring": 4 * np.pi * middle * half,
    }  # fmt: skip


AREA = _areas()
RADIUS = {shape: float(np.sqrt(np.pi / area)) for shape, area in AREA.items()}  # of a shape as large as the unit disk


class _Bank(NamedTuple):
    """Templates of one shape at A angles in S scales. Products with them are many and small, so small that BLAS does
    not start threads for them."""

    templates: Float[np.ndarray, "A P S"]
    squares: Float[np.ndarray, "A P S"]


@cache
def _bank(shape: str, rounding: float, blur: float) -> _Bank:
    step = 2 * _REACH / (_SIDE - 1) / 3
    u = (np.arange(3 * _SIDE) - (3 * _SIDE - 1) / 2) * step
    x, y = np.meshgrid(u, u)
    rows = []
    for angle in np.arange(_ANGLES[shape]) / _ANGLES[shape] * 2 * np.pi / SYMMETRY.get(shape, 1):
        scaled = []
        for scale in _SCALE:
            r = RADIUS[shape] * scale
            picture = np.clip(0.5 - distance(shape, x / r, y / r, angle) * r / step, 0, 1)
            if rounding:
                picture = _rounded(picture, shape, rounding / step)
            scaled.append(ndimage.gaussian_filter(picture, blur / step)[1::3, 1::3].ravel())
        rows.append(np.stack(scaled, -1))
    templates = np.float32(np.stack(rows))
    return _Bank(templates, templates**2)


def _rounded(picture: np.ndarray, shape: str, sigma: float) -> np.ndarray:
    """What a decoder without fine detail makes of a shape: corners cut, notches filled, area kept; a ring's hole filled
    in half."""
    soft = ndimage.gaussian_filter(picture, sigma)
    if shape == "ring":
        return np.maximum(picture, 0.5 * ndimage.binary_fill_holes(picture > 0.5))
    level = np.sort(soft, axis=None)[-round(picture.sum())]
    return np.clip(0.5 + (soft - level) / 0.15, 0, 1)


def _product(a: Float[np.ndarray, "T P"], templates: Float[np.ndarray, "A P S"]) -> Float[np.ndarray, "T A S"]:
    return np.concatenate([np.moveaxis(a[i : i + 48] @ templates, 0, 1) for i in range(0, len(a), 48)])


def cut(pictures: Float[np.ndarray, "K T H W"], x, y, radius) -> Float[np.ndarray, "K T S"]:
    """Bilinear samples of pictures around (x, y), in pixels, of radius pixels; 0 outside of the frame."""
    _, count, height, width = pictures.shape
    u = np.linspace(-_REACH, _REACH, _SIDE, dtype=np.float32)
    column = np.asarray(x, np.float32)[:, None] + np.asarray(radius, np.float32)[:, None] * u - 0.5
    row = np.asarray(y, np.float32)[:, None] + np.asarray(radius, np.float32)[:, None] * u - 0.5

    def weights(place: np.ndarray, side: int) -> np.ndarray:
        """(T, S, side): a bilinear sample is one product from the left and one from the right."""
        return np.maximum(0, 1 - np.abs(place[:, :, None] - np.arange(side, dtype=np.float32)))

    return (weights(row, height) @ pictures @ weights(column, width).swapaxes(-1, -2)).reshape(len(pictures), count, -1)


def _best(error: Float[np.ndarray, "T A S"], shape: str) -> Float[np.ndarray, "T 3"]:
    """Least error of one shape over its angles and scales, and both between the templates, by parabolas: error, angle,
    radius in those of the disk of equal area."""
    frames = np.arange(len(error))
    _, angles, scales = error.shape
    i, j = np.unravel_index(error.reshape(len(error), -1).argmin(1), (angles, scales))
    least = error[frames, i, j]

    def between(before: np.ndarray, after: np.ndarray) -> np.ndarray:
        bend = before - 2 * least + after
        return np.clip((before - after) / (2 * np.maximum(bend, 1e-9)), -0.5, 0.5)

    turn = between(error[frames, i - 1, j], error[frames, (i + 1) % angles, j]) if angles > 1 else 0.0
    inner = (j > 0) & (j < scales - 1)
    size = between(error[frames, i, np.maximum(j - 1, 0)], error[frames, i, np.minimum(j + 1, scales - 1)]) * inner
    step = 2 * np.pi / SYMMETRY.get(shape, 1) / angles
    return np.stack([least, (i + turn) * step, (_SCALE[0] + (j + size) * (_SCALE[1] - _SCALE[0])) * RADIUS[shape]], -1)


class Outlines(NamedTuple):
    """Per frame and shape: squared error of the best template relative to the silhouette's power, its angle, its radius
    in pixels, and in which way it is spoilt (an index)."""

    error: Float[np.ndarray, "T N"]
    angle: Float[np.ndarray, "T N"]
    radius: Float[np.ndarray, "T N"]
    spoilt: Float[np.ndarray, "T N"]


def compare(
    cover: Float[np.ndarray, "T H W"],
    seen: Float[np.ndarray, "T H W"],
    x: Float[np.ndarray, "T"],
    y: Float[np.ndarray, "T"],
    radius: Float[np.ndarray, "T"],
    shapes: Sequence[str] = words.SHAPES,
    ways: Sequence[int] = range(len(SPOILT)),
) -> Outlines:
    """Silhouettes against the templates of some shapes.

    cover: opacity in [0, 1]; only its form matters, not its strength. seen: 0 where something else hides it. x, y:
    centre of mass; radius: of the disk of equal area, pixels. ways: in which templates may be spoilt.
    """
    samples, weight = cut(np.stack([cover * seen, seen]), x, y, radius)
    samples = samples / np.maximum(weight, 0.25)
    sharpest = np.abs(np.log(np.array(_BLUR)) - np.log(0.02 + 0.5 / radius)[:, None]).argmin(1)
    fits = np.full((len(x), len(shapes), 4), np.inf)
    for way in ways:
        rounding, softer = SPOILT[way]
        levels = np.minimum(sharpest + softer, len(_BLUR) - 1)
        for level in np.unique(levels):
            rows = np.flatnonzero(levels == level)
            w, weighted = weight[rows], weight[rows] * samples[rows]
            power = (weighted * samples[rows]).sum(-1)[:, None, None]
            for i, shape in enumerate(shapes):
                bank = _bank(shape, 0.0 if shape == "circle" else rounding, _BLUR[level])
                alike = np.maximum(_product(weighted, bank.templates), 0) ** 2
                error = 1 - alike / np.maximum(power * _product(w, bank.squares), 1e-6)
                found = np.concatenate([_best(error, shape), np.full((len(rows), 1), way)], -1)
                better = found[:, 0] < fits[rows, i, 0]
                fits[rows[better], i] = found[better]
    fits[..., 2] *= radius[:, None]
    return Outlines(*np.moveaxis(fits, -1, 0))
