"""Shape, radius and angle of a silhouette, by comparison with every shape at every angle.

A silhouette is cut out around its centre of mass and scaled to an area of one disk of radius 1, so that one bank of
templates serves all sizes and the comparison is a matrix product.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from dit_video.data.toyworld import scene as words

_SIDE, _REACH = 29, 1.95  # samples a side, and how far they reach in radii of the disk of equal area
_SOFT = (0.08, 0.16, 0.30, 0.50)  # width of the soft edge in such radii
_SCALE = (0.92, 0.96, 1.0, 1.04, 1.08)
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


def _smooth(x: np.ndarray) -> np.ndarray:
    x = np.clip(x, 0, 1)
    return x * x * (3 - 2 * x)


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
    templates: Float[np.ndarray, "G S 7"]  # N = 7 * G: products so small that BLAS does not start threads for them
    squares: Float[np.ndarray, "G S 7"]
    shape: Int[np.ndarray, "N"]  # in the order of the shapes, then of their angles, then of the scales


@lru_cache
def _bank(soft: float) -> _Bank:
    u = np.linspace(-_REACH, _REACH, _SIDE)
    x, y = np.meshgrid(u, u)
    rows = []
    for i, shape in enumerate(words.SHAPES):
        for angle in np.arange(_ANGLES[shape]) / _ANGLES[shape] * 2 * np.pi / SYMMETRY.get(shape, 1):
            for scale in _SCALE:
                r = RADIUS[shape] * scale
                rows.append((_smooth(0.5 - distance(shape, x / r, y / r, angle) * r / soft).ravel(), i))
    templates, shape = zip(*rows, strict=True)
    stacked = np.float32(np.stack(templates))
    grouped = np.ascontiguousarray(stacked.reshape(-1, 7, stacked.shape[-1]).swapaxes(1, 2))
    return _Bank(grouped, grouped**2, np.array(shape))


def _product(a: Float[np.ndarray, "T S"], grouped: Float[np.ndarray, "G S 7"]) -> Float[np.ndarray, "T N"]:
    return np.moveaxis(a @ grouped, 0, 1).reshape(len(a), -1)


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
    """Per frame and shape: relative squared error of the best template, its angle, its radius in pixels."""

    error: Float[np.ndarray, "T N"]
    angle: Float[np.ndarray, "T N"]
    radius: Float[np.ndarray, "T N"]


def compare(cover: Float[np.ndarray, "T H W"], seen: Float[np.ndarray, "T H W"], x, y, radius) -> Outlines:
    """Silhouettes against all templates. cover: opacity in [0, 1]. seen: 0 where something else hides it.

    x, y: centre of mass; radius: of the disk of equal area, pixels, each (T,).
    """
    samples, weight = cut(np.stack([cover * seen, seen]), x, y, radius)
    samples = samples / np.maximum(weight, 0.25)
    softness = np.abs(np.log(np.array(_SOFT)) - np.log(np.clip(2.0 / radius, 0.01, 1))[:, None]).argmin(1)
    fits = np.empty((len(x), len(words.SHAPES), 3))
    for level in np.unique(softness):
        rows, bank = softness == level, _bank(_SOFT[level])
        a, w = samples[rows], weight[rows]
        power = _product(w, bank.squares)
        error = ((w * a * a).sum(-1)[:, None] - 2 * _product(w * a, bank.templates) + power) / np.maximum(power, 1e-3)
        for i in range(len(words.SHAPES)):
            own = np.flatnonzero(bank.shape == i)
            fits[rows, i] = _best(error[:, own].reshape(len(a), -1, len(_SCALE)), words.SHAPES[i])
            fits[rows, i, 2] *= radius[rows]
    return Outlines(*np.moveaxis(fits, -1, 0))
