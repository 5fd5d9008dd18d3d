"""What is seen in a clip. The toyworld's renderer, backwards: frames in, the words and numbers of a scene out.

It knows the world (the lists and constants of `dit_video.data.toyworld`) and nothing of the prompt. Background and
light come first (`ground`); what does not have the background's colours is an object; objects have different colours,
so a colour is an object, in one piece, in every frame; its outline gives the shape (`outline`), its way the motion
(`path`).
What cannot be read so is not guessed: the reading says why, and the score counts it as wrong.
"""

from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float, UInt8
from scipy import ndimage

from dit_video.core.errors import BadInput
from dit_video.data.toyworld import scene as words
from dit_video.evals import ground as grounds
from dit_video.evals import outline, path
from dit_video.evals.ground import Ground

_CELLS = 40  # of the colour table, per unit of daylight
_DEPTH = int(1.25 * _CELLS) + 1
_CONTRAST = 0.13  # from the background's colours, in daylight: below it a pixel is background whatever else
_FAINT = 0.035  # the same beside what is certainly no background
_SMALLEST = 0.0036  # m^2: nothing smaller is an object; this is a small star that has shrunk
_SURE = 0.15  # from what an object's colour can be: nearer pixels are not a blur of it with something else
_THIN = 0.35  # opacity that an object must reach somewhere in each frame
_AGREE = 0.8  # share of the frames in which shape and colour must be the same
_WHOLE = 0.015  # relative squared error of an outline below which nothing of it is missing
_BLOB = 0.16  # relative squared error of an outline above which it is no shape


@dataclass(frozen=True)
class Object:
    """One object. Words are "unclear" where the frames do not show them. Arrays have one entry a frame; lengths in
    units of m = min(height, width) from the upper left corner, in the world (the camera's way is taken off), areas in
    m^2, angles in radians clockwise from upright, up to the shape's own repeats.

    shape_share: part of the frames in which the shape is the clip's. outline_error: median over frames of the
    relative squared error of the silhouette. rate, path_error: of `path.Motion`.
    """

    colour: str
    shape: str
    size: str
    motion: str
    direction: str
    speed: str
    turn: str
    edge: str
    rate: float
    track: Float[np.ndarray, "T 2"] = field(repr=False)
    area: Float[np.ndarray, "T"] = field(repr=False)
    radius: Float[np.ndarray, "T"] = field(repr=False)
    angle: Float[np.ndarray, "T"] = field(repr=False)
    seen: Bool[np.ndarray, "T"] = field(repr=False)
    shape_share: float = 0.0
    outline_error: float = 0.0
    path_error: float = 0.0


@dataclass(frozen=True)
class Reading:
    """All that is seen in a clip. `readable` is False, with the reason, if it is no scene of this world: no background,
    no object or more than two, one that vanishes, splits or has no shape."""

    readable: bool
    reason: str
    objects: tuple[Object, ...]
    background: str
    light: str
    camera: str
    ground_fit: float = 0.0
    pattern_match: float = 0.0

    @property
    def count(self) -> str:
        return {1: "one", 2: "two"}.get(len(self.objects), "unclear")


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


def measure(frames: UInt8[np.ndarray, "T H W 3"], fps: float = words.FPS) -> Reading:
    """Reads a clip of uint8 RGB. Raises BadInput for anything else. A clip of one frame has no motion ("unclear")."""
    frames = np.asarray(frames)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not len(frames):
        raise BadInput(f"measure: frames must be uint8 (T, H, W, 3), got {frames.dtype} {frames.shape}.")
    pixels = frames.astype(np.float32) / 255
    ground = grounds.find(pixels, fps)

    def unreadable(reason: str, *objects: Object) -> Reading:
        return Reading(False, reason, objects, ground.background, ground.light, ground.camera, ground.fit, ground.match)

    if ground.fit < 0.25:
        return unreadable("no background of this world")
    day = pixels / ground.exposure
    _, contrast = grounds.to_tones(day, ground.low, ground.high)
    covers, colours, reason = _segment(day, contrast, np.stack([ground.low, ground.high]), ground.background)
    if reason:
        return unreadable(reason)
    whole = np.max(covers, 0)
    objects, reasons = [], []
    for cover, colour in zip(covers, colours, strict=True):
        others = np.max([c for c in covers if c is not cover], 0) if len(covers) > 1 else np.zeros_like(whole)
        found, why = _follow(cover, others < 0.5, colour, ground, fps)
        if found:
            objects.append(found)
        if why:
            reasons.append(f"the {colour} object {why}")
    if reasons:
        return unreadable("; ".join(reasons), *objects)
    return Reading(True, "", tuple(objects), ground.background, ground.light, ground.camera, ground.fit, ground.match)


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


def _segment(
    day: np.ndarray, contrast: np.ndarray, tones: np.ndarray, not_colour: str = ""
) -> tuple[list[np.ndarray], list[str], str]:
    """Opacity (T, H, W) of each object and its colour; or, third, why there are none."""
    count, height, width, _ = day.shape
    m2 = float(min(height, width)) ** 2
    least = max(_SMALLEST * m2, 3.0)
    inside = contrast > _CONTRAST
    if inside.sum() < least * count * 0.5:
        return [], [], "no object"
    inside = _dilated(inside & (_neighbours(inside) >= 2), 3) & (contrast > _FAINT)  # with the soft skirts of objects
    t, y, x = np.nonzero(inside)
    distances = _colour_table()[_cells(day[t, y, x])]
    votes, off = distances.argmin(-1), distances.min(-1)
    seeds: dict[int, np.ndarray] = {}  # the pixels that are sure to have a colour
    for i in np.argsort(-np.bincount(votes, minlength=len(words.COLOURS))):
        mine = (votes == i) & (off < _SURE) & (contrast[t, y, x] > _CONTRAST)
        if mine.sum() < 0.1 * least * count or words.COLOURS[i] == not_colour:
            continue
        mine[mine] = ~_mixed(day[t, y, x][mine], tones, list(seeds))
        sure = np.zeros(day.shape[:3], bool)
        sure[t[mine], y[mine], x[mine]] = True
        sure &= _neighbours(sure) >= 2  # noise has none
        apart = sure & ~_dilated(np.any(list(seeds.values()), 0), 2) if seeds else sure  # not a rim of another
        if (apart.sum((1, 2)) > 0.3 * least).mean() > 0.35:
            seeds[int(i)] = sure
    names = list(seeds)
    if not names:
        return [], [], "no object has a colour of this world"
    if len(names) > 2:
        return [], [], f"{len(names)} colours: " + ", ".join(words.COLOURS[i] for i in names)
    covers = _shared(names, seeds, day, contrast, tones, (t, y, x), distances)
    lasting = [(cover > 0.5).sum((1, 2)) > 0.6 * least for cover in covers]
    if len(names) == 2 and min(each.mean() for each in lasting) < 0.5:
        names = [names[int(np.argmax([each.mean() for each in lasting]))]]  # the other is a flaw of a few frames
        covers = _shared(names, seeds, day, contrast, tones, (t, y, x), distances)
    for i, cover in zip(names, covers, strict=True):
        sure = (cover[t, y, x] > 0.4) & (off < _SURE)
        foreign = sure & (votes != i)
        foreign[foreign] = ~_mixed(day[t, y, x][foreign], tones, [i])
        own, other = (np.bincount(t[each], minlength=count) for each in (sure & (votes == i), foreign))
        if (own >= other).mean() < _AGREE:
            return [], [], f"the {words.COLOURS[i]} object changes its colour"
    return covers, [words.COLOURS[i] for i in names], ""


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
class _Silhouettes:
    """Of one object in every frame, in pixels; `cut_off`: by the frame's edge or by the other object."""

    cover: np.ndarray
    x: np.ndarray
    y: np.ndarray
    area: np.ndarray
    there: np.ndarray
    cut_off: np.ndarray
    pieces: np.ndarray  # share of the area outside of the largest piece


def _silhouettes(cover: np.ndarray, free: np.ndarray) -> _Silhouettes:
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
    return _Silhouettes(cover, x, y, area, there, (edge > 0.4) | hidden, np.where(hidden, 0, pieces))


def _follow(cover: np.ndarray, free: np.ndarray, colour: str, ground: Ground, fps: float) -> tuple[Object | None, str]:
    """One object over time, or what is wrong with it."""
    count, height, width = cover.shape
    m = float(min(height, width))
    s = _silhouettes(cover, free)
    if not s.there.any():
        return None, "is not there"
    gone = np.flatnonzero(~s.there)
    for t in gone:
        before, after = np.flatnonzero(s.there[:t]), np.flatnonzero(s.there[t:])
        if not ((len(before) and s.cut_off[before[-1]]) or (len(after) and s.cut_off[t + after[0]])):
            return None, f"vanishes in frame {t}"
    if len(gone) > max(2, 0.2 * count) and ground.camera == "static" and free.all():
        return None, f"is gone in {len(gone)} of {count} frames"
    if (s.pieces > 0.2).sum() > 0.15 * count:
        return None, f"is in pieces in {(s.pieces > 0.2).sum()} of {count} frames"
    x, y, radius = s.x.copy(), s.y.copy(), np.sqrt(np.maximum(s.area, 1.0) / np.pi)
    visible = free.astype(np.float32)
    outlines = outline.compare(s.cover, visible, x, y, radius)
    best, whole = outlines.error.min(1), s.there & ~s.cut_off
    usual = np.median(best[whole]) if whole.any() else 0.0
    good = whole | (s.there & (best < max(_WHOLE, 1.5 * usual)))
    if good.sum() < min(3, count):
        good = s.there & (best < _BLOB / 3)  # at the edge all the time, but hardly beyond it
    few = good.sum() < min(3, count)  # hardly ever seen whole: only now the shape is sought in what is seen
    if few:
        good = s.there
        rows = np.flatnonzero(good)
        x[rows], y[rows], radius[rows] = _sought(s, visible, rows, radius[rows], (1.0, 1.12, 1.3, 1.5))
        outlines = outline.compare(s.cover, visible, x, y, radius)
    error = np.minimum(outlines.error, 0.5)
    # sharp frames decide more than blurred ones, and large silhouettes more than small ones
    weight = s.area[good] / s.area[good].sum()
    shape = int((weight @ np.log(error[good] + 0.005)).argmin())
    name = words.SHAPES[shape]
    alike = error[:, shape] < 1.5 * error.min(1) + 0.015
    share = float(weight @ alike[good])
    middle = float(np.median(error[good, shape]))
    # the area changes more smoothly than the best template's scale, which is right in the middle
    size = np.sqrt(s.area / outline.AREA[name])
    size *= np.median(outlines.radius[good, shape] / size[good]) if not few else outlines.radius[:, shape] / size
    angle, seen = outlines.angle[:, shape].copy(), s.there.copy()
    rest = np.flatnonzero(s.there & ~good)
    if len(rest):
        world = np.interp(rest, np.flatnonzero(good), (size / ground.zoom)[good])
        disk = world * ground.zoom[rest] / outline.RADIUS[name]
        ways = (int(np.bincount(outlines.spoilt[good, shape].astype(int)).argmax()),)
        x[rest], y[rest], disk = _sought(s, visible, rest, disk, (0.9, 1.0, 1.1), (name,), ways, loyal=3.0)
        completed = outline.compare(s.cover[rest], visible[rest], x[rest], y[rest], disk, (name,), ways)
        size[rest], angle[rest] = completed.radius[:, 0], completed.angle[:, 0]
        seen[rest] = completed.error[:, 0] < 2 * _BLOB
    if not seen.any():
        return None, "cannot be made out"
    track = np.stack([(x - width / 2) / ground.zoom + ground.right + width / 2,
                      (y - height / 2) / ground.zoom + ground.down + height / 2], -1) / m  # fmt: skip
    size = size / ground.zoom / m
    sighting = path.Sighting(
        np.arange(count) / fps, track[:, 0], track[:, 1], size, angle, seen, outline.SYMMETRY.get(name, 0),
        tuple(float(np.median(size[seen])) * e for e in words.EXTENT[name]), (width / m, height / m),
    )  # fmt: skip
    motion = path.fit(sighting)
    first = size[seen][0] if motion.kind in ("grows", "shrinks") else np.median(size[seen])
    found = Object(
        colour, name, path.nearest(float(first), words.RADIUS), motion.kind, motion.direction, motion.speed,
        motion.turn, motion.edge, motion.rate, track, s.area / m**2, size, angle, seen, share, middle, motion.error,
    )  # fmt: skip
    if middle > _BLOB:
        return replace(found, shape="unclear"), "has no shape"
    if share < _AGREE:
        return replace(found, shape="unclear"), "changes its shape"
    return found, ""


def _sought(
    s: _Silhouettes,
    visible: np.ndarray,
    rows: np.ndarray,
    disk: np.ndarray,
    scales: tuple[float, ...],
    shapes: tuple[str, ...] = words.SHAPES,
    ways: tuple[int, ...] = (0,),
    loyal: float = 0.0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Place and radius of the disk of equal area in frames where only a part is seen: the shape of those that fits best
    is moved about and scaled until that part fits. loyal: by which share of the error it must fit better, for each unit
    that the logarithm of the radius changes by."""
    x, y, first = s.x[rows], s.y[rows], disk
    for step in (0.30, 0.12, 0.05):
        steps = np.arange(-2, 3) * step
        dx, dy, scale = (a.ravel() for a in np.meshgrid(steps, steps, scales))
        tried = x[:, None] + dx * disk[:, None], y[:, None] + dy * disk[:, None], scale * disk[:, None]
        which = np.repeat(rows, len(dx))
        flat = (each.ravel() for each in tried)
        error = outline.compare(s.cover[which], visible[which], *flat, shapes, ways).error.min(1)
        if loyal:
            error = error * (1 + loyal * np.abs(np.log(tried[2] / first[:, None])).ravel())
        best = np.arange(len(rows)), error.reshape(len(rows), -1).argmin(1)
        x, y, disk = (each[best] for each in tried)
        scales = (0.94, 1.0, 1.06)
    return x, y, disk
