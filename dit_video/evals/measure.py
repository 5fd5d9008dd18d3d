"""What is seen in a clip. The toyworld's renderer, backwards: frames in, the words and numbers of a scene out.

It knows the world (the lists and constants of `dit_video.data.toyworld`) and nothing of the prompt. Background and
light come first (`ground`); what does not have the background's colours is an object (`segment`); its outline gives the
shape (`outline`), its way the motion (`path`).
What cannot be read so is not guessed: the reading says why, and the score counts it as wrong.
"""

from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Bool, Float, UInt8

from dit_video.core.errors import BadInput
from dit_video.data.toyworld import scene as words
from dit_video.evals import ground as grounds
from dit_video.evals import outline, path
from dit_video.evals.ground import Ground
from dit_video.evals.segment import AGREE, Silhouettes, segment, silhouettes

FAULTS = {  # why a clip cannot be read
    "ground": "no background of this world",
    "nothing": "no object",
    "colours": "more than two colours, or none of this world",
    "recolours": "an object changes its colour",
    "vanishes": "an object is not there all the time",
    "splits": "an object is in pieces",
    "shapeless": "an object has no shape of this world",
    "morphs": "an object changes its shape",
}
_WHOLE = 0.015  # relative squared error of an outline below which nothing of it is missing
_BEHIND = 4  # frames that one object may be hidden by the other; where two are placed, they are apart sooner
_BLOB = 0.16  # relative squared error of an outline above which it is no shape


@dataclass(frozen=True)
class Object:
    """One object. Words are "unclear" where the frames do not show them. Arrays have one entry a frame; lengths in
    units of m = min(height, width) from the upper left corner, in the world (the camera's way is taken off), areas in
    m^2, angles in radians clockwise from upright, up to the shape's own repeats.

    tone: mean colour in daylight, nan where it is not seen. whole: there and in one piece, or cut off by the frame or
    the other object. shape_share, colour_share: part of the frames in which shape and colour are the clip's.
    outline_error: median over frames of the relative squared error of the silhouette. rate, path_error, jitter: of
    `path.Motion`.
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
    whole: Bool[np.ndarray, "T"] = field(repr=False)
    tone: Float[np.ndarray, "T 3"] = field(repr=False)
    shape_share: float = 0.0
    colour_share: float = 1.0
    outline_error: float = 0.0
    path_error: float = 0.0
    jitter: float = np.nan


@dataclass(frozen=True)
class Reading:
    """All that is seen in a clip. If it is no scene of this world, it is not `readable`, `faults` (of FAULTS) say what
    is wrong, and `reason` says it in a sentence."""

    faults: tuple[str, ...]
    reason: str
    objects: tuple[Object, ...]
    background: str
    light: str
    camera: str
    ground_fit: float = 0.0
    pattern_match: float = 0.0

    @property
    def readable(self) -> bool:
        return not self.faults

    @property
    def count(self) -> str:
        return {1: "one", 2: "two"}.get(len(self.objects), "unclear")


def measure(frames: UInt8[np.ndarray, "T H W 3"], fps: float = words.FPS) -> Reading:
    """Reads a clip of uint8 RGB. Raises BadInput for anything else. A clip of one frame has no motion ("unclear")."""
    frames = np.asarray(frames)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not len(frames):
        raise BadInput(f"measure: frames must be uint8 (T, H, W, 3), got {frames.dtype} {frames.shape}.")
    pixels = frames.astype(np.float32) / 255
    ground = grounds.find(pixels, fps)

    def reading(faults: tuple[str, ...], reason: str, *objects: Object) -> Reading:
        g = ground
        return Reading(faults, reason, objects, g.background, g.light, g.camera, g.fit, g.match)

    if ground.fit < 0.25:
        return reading(("ground",), FAULTS["ground"])
    day = pixels / ground.exposure
    _, contrast = grounds.to_tones(day, ground.low, ground.high)
    covers, colours, shares, fault, why = segment(day, contrast, np.stack([ground.low, ground.high]), ground.background)
    if fault:
        return reading((fault,), why)
    objects, faults, reasons = [], [], []
    for i, (cover, colour, share) in enumerate(zip(covers, colours, shares, strict=True)):
        hidden = covers[1 - i] >= 0.5 if len(covers) > 1 else np.zeros(cover.shape, bool)
        found, fault, why = _follow(cover, ~hidden, colour, ground, fps)
        if found:
            objects.append(replace(found, colour_share=share, tone=_tone(day, cover, found.seen)))
        if fault:
            faults.append(fault)
            reasons.append(f"the {colour} object {why}")
    return reading(tuple(faults), "; ".join(reasons), *objects)


def _tone(day: np.ndarray, cover: np.ndarray, seen: np.ndarray) -> Float[np.ndarray, "T 3"]:
    """Mean colour of what is surely the object."""
    weight = np.where(cover > 0.7, cover, 0.0)
    total = weight.sum((1, 2))
    mean = np.einsum("thw,thwc->tc", weight, day) / np.maximum(total, 1e-6)[:, None]
    return np.where((seen & (total > 0))[:, None], mean, np.nan)


def _follow(
    cover: np.ndarray, free: np.ndarray, colour: str, ground: Ground, fps: float
) -> tuple[Object | None, str, str]:
    """One object over time; and its fault, and that in words, if it has one."""
    count, height, width = cover.shape
    m = float(min(height, width))
    s = silhouettes(cover, free)
    if not s.there.any():
        return None, "vanishes", "is not there"
    if why := _missing(s, free, ground.camera in ("static", "handheld")):
        return None, "vanishes", why
    if (s.pieces > 0.2).sum() > 0.15 * count:
        return None, "splits", f"is in pieces in {(s.pieces > 0.2).sum()} of {count} frames"
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
    if few:
        size = outlines.radius[:, shape].copy()
    else:
        size = np.sqrt(s.area / outline.AREA[name])
        size *= np.median(outlines.radius[good, shape] / size[good])
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
        return None, "shapeless", "cannot be made out"
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
        motion.turn, motion.edge, motion.rate, track, s.area / m**2, size, angle, seen,
        (s.pieces <= 0.2) | s.cut_off, np.zeros((count, 3)), share, 1.0, middle, motion.error, motion.jitter,
    )  # fmt: skip
    if middle > _BLOB:
        return replace(found, shape="unclear"), "shapeless", "has no shape"
    if share < AGREE:
        return replace(found, shape="unclear"), "morphs", "changes its shape"
    return found, "", ""


def _missing(s: Silhouettes, free: np.ndarray, static: bool) -> str:
    """Why frames in which an object is not there are explained neither by the frame's edge nor by the other object."""
    count = len(s.there)
    gone, there = np.flatnonzero(~s.there), np.flatnonzero(s.there)
    near, beyond = 2 + 0.5 * np.sqrt(s.area.max() / np.pi), 0  # pixels
    for run in np.split(gone, np.flatnonzero(np.diff(gone) > 1) + 1) if len(gone) else ():
        ends = [t for t in (run[0] - 1, run[-1] + 1) if 0 <= t < count]
        cut = [s.cut_off[t] for t in ends]
        if not (all(cut) or (len(run) == 1 and any(cut))):
            return f"vanishes in frame {run[0]}"
        if all(s.hidden[t] for t in ends):
            # a camera that moves may leave behind what was hidden at the clip's end
            when = run if static or len(ends) == 2 else run[:3] if run[0] else run[-3:]
            places = zip(when, *(np.interp(when, there, a[there]) for a in (s.y, s.x)), strict=True)
            if len(when) > _BEHIND or any(_distance(~free[t], y, x) > near for t, y, x in places):
                return f"vanishes in frame {run[0]}, where the other object does not hide it"
        else:
            beyond += len(run)
    if static and beyond > max(2, 0.2 * count):
        return f"is gone in {beyond} of {count} frames"
    return ""


def _distance(mask: np.ndarray, y: float, x: float) -> float:
    """From a place to the nearest pixel of a mask (H, W)."""
    rows, columns = np.nonzero(mask)
    return float(np.hypot(rows + 0.5 - y, columns + 0.5 - x).min(initial=np.inf))


def _sought(
    s: Silhouettes,
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
