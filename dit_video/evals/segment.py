"""Pixels to objects: which of them belong to an object, of which colour, how opaque; and its silhouette in each frame.

What does not have the background's colours is an object; objects have different colours, so a colour is an object, in
one piece, in every frame.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage

from dit_video.data.toyworld import scene as words
from dit_video.evals import ground as grounds

_CELLS = 40  # of the colour table, per unit of daylight
_DEPTH = int(1.25 * _CELLS) + 1
_CONTRAST = 0.13  # from the background's colours, in daylight: below it a pixel is background whatever else
_FAINT = 0.035  # the same beside what is certainly no background
_SMALLEST = 0.0036  # m^2: nothing smaller is an object; this is a small star that has shrunk
_SURE = 0.15  # from what an object's colour can be: nearer pixels are not a blur of it with something else
_THIN = 0.35  # opacity that an object must reach somewhere in each frame
AGREE = 0.8  # share of the frames in which shape and colour must be the same


class Segments(NamedTuple):
    """Opacity (T, H, W) of each object, its colour, and the share of the frames in which it has it; or a fault, and in
    words why there are none."""

    covers: list[np.ndarray]
    colours: list[str]
    shares: list[float]
    fault: str = ""
    reason: str = ""


@lru_cache
def _colour_table() -> Float[np.ndarray, "D D D N"]:
    """Distance of every colour of daylight to what each object's colour can be, shaded or in its highlight."""
    shades = [(s, h) for s in np.linspace(0.62, 1.1, 9) for h in ((0.0,) if s < 0.95 else (0.0, 0.1, 0.2, 0.3))]
    axis = np.arange(_DEPTH) / _CELLS
    grid = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    table = []
    for rgb in words.RGB.values():
        own = np.minimum(np.array(rgb) * np.array([s for s, _ in shades])[:, None], 1)
        own = own + (1 - own) * np.array([h for _, h in shades])[:, None]
        square = (grid**2).sum(-1)[:, None] - 2 * grid @ own.T + (own**2).sum(-1)
        table.append(np.sqrt(np.maximum(square, 0).min(-1)))
    return np.float32(np.stack(table, -1)).reshape(_DEPTH, _DEPTH, _DEPTH, -1)


_PLANE = np.zeros((3, 3, 3), bool)  # neighbours within a frame
_PLANE[1] = True


def _dilated(mask: Bool[np.ndarray, "T H W"], times: int = 1) -> Bool[np.ndarray, "T H W"]:
    """Pixels of the mask and their four neighbours in the frame."""
    for _ in range(times):
        out = mask.copy()
        for axis in (1, 2):
            a, b = np.moveaxis(out, axis, 0), np.moveaxis(mask, axis, 0)
            a[1:] |= b[:-1]
            a[:-1] |= b[1:]
        mask = out
    return mask


def _neighbours(mask: Bool[np.ndarray, "T H W"]) -> np.ndarray:
    """How many of the four neighbours in the frame are in the mask."""
    out = np.zeros(mask.shape, np.int8)
    out[:, 1:] += mask[:, :-1]
    out[:, :-1] += mask[:, 1:]
    out[:, :, 1:] += mask[:, :, :-1]
    out[:, :, :-1] += mask[:, :, 1:]
    return out


def segment(day: np.ndarray, contrast: np.ndarray, tones: np.ndarray, not_colour: str = "") -> Segments:
    """The objects of a clip in daylight.

    day: (T, H, W, 3). contrast: (T, H, W), distance of each pixel from the background's colours. tones: (2, 3), those
    colours. not_colour: one that no object has.
    """

    def none(fault: str, reason: str) -> Segments:
        return Segments([], [], [], fault, reason)

    count, height, width, _ = day.shape
    m2 = float(min(height, width)) ** 2
    least = max(_SMALLEST * m2, 3.0)
    inside = contrast > _CONTRAST
    if inside.sum() < least * count * 0.5:
        return none("nothing", "no object")
    inside = _dilated(inside & (_neighbours(inside) >= 2), 3) & (contrast > _FAINT)  # with the soft skirts of objects
    t, y, x = np.nonzero(inside)
    distances = _colour_table()[_cells(day[t, y, x])]
    votes, off = distances.argmin(-1), distances.min(-1)
    seeds: dict[int, np.ndarray] = {}  # the pixels that are sure to have a colour
    whole: dict[int, bool] = {}  # whether they are an object, however few frames it is there
    for i in np.argsort(-np.bincount(votes, minlength=len(words.COLOURS))):
        mine = (votes == i) & (off < _SURE) & (contrast[t, y, x] > _CONTRAST)
        if mine.sum() < 0.1 * least * count or words.COLOURS[i] == not_colour:
            continue
        mine[mine] = ~_mixed(day[t, y, x][mine], tones, list(seeds))
        sure = np.zeros(day.shape[:3], bool)
        sure[t[mine], y[mine], x[mine]] = True
        sure &= _neighbours(sure) >= 2  # noise has none
        apart = sure & ~_dilated(np.any(list(seeds.values()), 0), 2) if seeds else sure  # not a rim of another
        areas = apart.sum((1, 2))
        flashes = bool(((areas[1:] > least) & (areas[:-1] > least)).any())  # a whole object, if only for two frames
        if flashes or (areas > 0.3 * least).mean() > 0.35:
            seeds[int(i)], whole[int(i)] = sure, flashes
    names = list(seeds)
    if not names:
        return none("colours", "no object has a colour of this world")
    if len(names) > 2:
        return none("colours", f"{len(names)} colours: " + ", ".join(words.COLOURS[i] for i in names))
    covers = _shared(names, seeds, day, contrast, tones, (t, y, x), distances)
    lasting = [(cover > 0.5).sum((1, 2)) > 0.6 * least for cover in covers]
    seldom = int(np.argmin([each.mean() for each in lasting]))
    if len(names) == 2 and lasting[seldom].mean() < 0.5:
        beside = whole[names[seldom]] and (lasting[0] & lasting[1]).sum() > 1
        if not beside:  # a flaw of a few frames, or the same object in another colour
            names = [names[1 - seldom]]
            covers = _shared(names, seeds, day, contrast, tones, (t, y, x), distances)
    shares = []
    for i, cover in zip(names, covers, strict=True):
        sure = (cover[t, y, x] > 0.4) & (off < _SURE)
        foreign = sure & (votes != i)
        foreign[foreign] = ~_mixed(day[t, y, x][foreign], tones, [i])
        own, other = (np.bincount(t[each], minlength=count) for each in (sure & (votes == i), foreign))
        shares.append(float((own >= other).mean()))
        if shares[-1] < AGREE:
            return none("recolours", f"the {words.COLOURS[i]} object changes its colour")
    return Segments(covers, [words.COLOURS[i] for i in names], shares)


def _shared(names, seeds, day, contrast, tones, places, distances) -> list[np.ndarray]:
    """Opacity of the objects of one or two colours, each pixel given to one of them."""
    t, y, x = places
    whose = np.zeros(len(t), int)
    if len(names) == 2:
        # the soft rim between two colours can look like a third: it belongs to whichever sure pixel is nearest
        first, second = seeds[names[0]], seeds[names[1]]
        back = first.copy()
        first[first] = ~_mixed(day[first], tones, names[1:])
        if not first.any():
            first = back
        first, second = _lent(first, second), _lent(second, first)
        _, where = ndimage.distance_transform_edt(~(first | second), sampling=(1e3, 1, 1), return_indices=True)
        whose = second[tuple(where[:, t, y, x])].astype(int)
    covers = []
    for k, i in enumerate(names):
        mine = whose == k
        cover = np.zeros(day.shape[:3], np.float32)
        away = contrast[t, y, x][mine]
        cover[t[mine], y[mine], x[mine]] = away / (away + distances[mine, i])
        covers.append(cover)
    return covers


def _lent(mine: Bool[np.ndarray, "T H W"], other: Bool[np.ndarray, "T H W"]) -> Bool[np.ndarray, "T H W"]:
    """Sure pixels of an object. A frame that has none (a star of few pixels, all rim) is lent those of the next one,
    except where the other object surely is."""
    has = np.flatnonzero(mine.any((1, 2)))
    if not len(has):
        return mine
    nearest = has[np.abs(np.arange(len(mine))[:, None] - has).argmin(1)]
    lent = mine[nearest] & ~_dilated(other)
    lent[has] = mine[has]
    return lent


def _cells(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Indices into the colour table."""
    cell = np.clip(np.rint(pixels * _CELLS), 0, _DEPTH - 1).astype(int)
    return cell[..., 0], cell[..., 1], cell[..., 2]


def _mixed(pixels: np.ndarray, tones: np.ndarray, colours: list[int]) -> np.ndarray:
    """Of pixels (N, 3), those that can be a blur of an object of one of the colours with the background, or with the
    object of the other."""
    off = np.full(len(pixels), np.inf)
    rgb = [np.array(words.RGB[words.COLOURS[i]]) for i in colours]
    for k, own in enumerate(rgb):
        for back in (tones[0] * grounds.SHADOW, *tones, *rgb[:k]):
            for shaded in (0.75 * own, 0.92 * own, own + 0.25 * (1 - own)):
                _, distance = grounds.nearest_on(pixels - back, shaded - back)
                off = np.minimum(off, distance)
    return off < 0.12


@dataclass
class Silhouettes:
    """Of one object in every frame, in pixels; `hidden`: cut off by the other object; `cut_off`: by that or by the
    frame's edge."""

    cover: np.ndarray
    x: np.ndarray
    y: np.ndarray
    area: np.ndarray
    there: np.ndarray
    hidden: np.ndarray
    cut_off: np.ndarray
    pieces: np.ndarray  # share of the area outside of the largest piece


def silhouettes(cover: Float[np.ndarray, "T H W"], free: Bool[np.ndarray, "T H W"]) -> Silhouettes:
    """Of one object; free: where the other does not hide it."""
    count, height, width = cover.shape
    # half of what it is at its strongest: a generator may leave an object thin in some frames
    strongest = cover.reshape(count, -1).max(1)[:, None, None]
    inside = cover > np.where(strongest > _THIN, 0.5 * strongest, 0.5)
    labels, total = ndimage.label(inside, _PLANE)
    sizes = np.bincount(labels.ravel(), minlength=total + 1)
    highest = np.maximum.accumulate(labels.reshape(count, -1).max(1))  # labels are given frame by frame
    frame_of = np.searchsorted(highest, np.arange(total + 1))
    frame_of[0] = -1
    keep = np.zeros(total + 1, bool)
    pieces, hidden = np.zeros(count), np.zeros(count, bool)
    blocked = _dilated(~free, 2)
    for t in range(count):
        own = np.flatnonzero(frame_of == t)
        if not len(own):
            continue
        hidden[t] = (blocked[t] & inside[t]).any()
        largest = own[sizes[own].argmax()]
        pieces[t] = 1 - sizes[largest] / sizes[own].sum()
        keep[own if hidden[t] else largest] = True
    chosen = _dilated(keep[labels], 3)
    cover = np.where(chosen, cover, 0)
    area = cover.sum((1, 2))
    total_area = np.maximum(area, 1e-6)
    x = (cover.sum(1) @ (np.arange(width) + 0.5)) / total_area
    y = (cover.sum(2) @ (np.arange(height) + 0.5)) / total_area
    edge = np.stack([cover[:, 0].max(-1), cover[:, -1].max(-1), cover[:, :, 0].max(-1), cover[:, :, -1].max(-1)]).max(0)
    there = area > 0.5 * _SMALLEST * min(height, width) ** 2
    return Silhouettes(cover, x, y, area, there, hidden, (edge > 0.4) | hidden, np.where(hidden, 0, pieces))
