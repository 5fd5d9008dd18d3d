"""Files to clips: scenes are told apart, brought to an even rate, cut to buckets, and filtered.

A *scene* ends where adjacent frames differ by much (`changes_scene`). In each scene, clips of the longest bucket that
fits follow one another from its start; what is left at its end goes to shorter buckets or is left out. Frames come and
go one at a time: a file of hours needs the memory of one clip. Imports neither JAX nor grain, for worker processes.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, groupby, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from dit_video.core.errors import BadInput
from dit_video.data.buckets import Bucket, nearest
from dit_video.data.still import is_still, read_picture
from dit_video.data.store import Store
from dit_video.data.video import begins_by, iterate_video

Frame = UInt8[np.ndarray, "H W 3"]

THUMB = 32  # pixels on a side of what changes are measured on
BEFORE, TIMES = 8, 3.0  # a cut stands out by TIMES from the mean of the BEFORE changes before it


@dataclass(frozen=True)
class Cutting:
    """How files become clips. Changes are mean absolute differences of thumbnails, of 255."""

    fps: float = 8.0
    scene: float = 24.0  # change from one frame of the file to the next that ends a scene; 0: a file is one scene
    min_seconds: float = 0.0  # of a scene
    min_side: int = 0  # pixels of the shorter side of the file
    min_motion: float = 0.0  # mean change from frame to frame of a clip; stills are not asked
    max_motion: float = 255.0

    def check(self) -> "Cutting":
        """Raises `BadInput` for numbers that cannot be."""
        if not 0 < self.fps < float("inf"):
            raise BadInput(f"fps={self.fps} must be a number above zero")
        for name in ("scene", "min_seconds", "min_side", "min_motion"):
            if getattr(self, name) < 0:
                raise BadInput(f"{name}={getattr(self, name)} must not be negative")
        if self.max_motion < self.min_motion:
            raise BadInput(f"max_motion={self.max_motion} is below min_motion={self.min_motion}: nothing would be left")
        return self


class Cut(NamedTuple):
    """A clip of a file, in the size of its bucket."""

    bucket: int
    frames: UInt8[np.ndarray, "T H W 3"]
    scene: int
    start: float  # seconds in the file
    motion: float


class Clip(NamedTuple):
    """What an item of a source gives, before it is encoded."""

    bucket: int
    caption: str
    arrays: Any  # what the reader's `frames` makes pixels of
    about: dict[str, Any]  # where it is from


class Dropped(NamedTuple):
    """What a filter took out, and why."""

    reason: str


def fit(frame: Frame, height: int, width: int) -> Frame:
    """Scaled to cover the size, with antialiasing, and cropped in the middle."""
    from PIL import Image, ImageOps

    if frame.shape[:2] == (height, width):
        return frame
    return np.asarray(ImageOps.fit(Image.fromarray(frame), (width, height), Image.Resampling.LANCZOS))


def thumbnail(frame: Frame) -> Float[np.ndarray, "h w 3"]:
    """THUMB x THUMB means of the frame, 0..255."""
    from PIL import Image

    step = [max(1, size // (4 * THUMB)) for size in frame.shape[:2]]
    small = Image.fromarray(np.ascontiguousarray(frame[:: step[0], :: step[1]]))
    return np.asarray(small.resize((THUMB, THUMB), Image.Resampling.BOX), np.float32)


def changes_scene(change: float, before: Sequence[float], threshold: float) -> bool:
    """A cut: the change is above `threshold` and TIMES the mean of those just before it, so that fast motion and a
    handheld camera, where every change is large, are no cuts. Fades and dissolves are not found. (The content and the
    adaptive detector of PySceneDetect, on thumbnails.)"""
    return change > threshold and change > TIMES * float(np.mean(before[-BEFORE:] or [0.0]))


def scenes(frames: Iterable[tuple[Frame, float]], threshold: float) -> Iterator[tuple[int, Frame, float]]:
    """(scene number, frame, seconds)."""
    number, last, changes = 0, None, []  # changes: the latest
    for frame, time in frames:
        if threshold > 0:
            thumb = thumbnail(frame)
            change = 0.0 if last is None else float(np.abs(thumb - last).mean())
            number += changes_scene(change, changes, threshold)
            if last is not None:
                changes = [*changes[1 - BEFORE :], change]
            last = thumb
        yield number, frame, time


def at_rate(frames: Iterable[tuple[Frame, float]], fps: float) -> Iterator[tuple[Frame, float]]:
    """What stands on screen at start + k / fps, one frame at a time: those that `resample_indices` picks."""
    held, start, last, k, slack = None, 0.0, 0.0, 0, begins_by(fps)
    for frame, time in frames:
        start = time if held is None else start
        while held is not None and start + k / fps + slack < time:
            yield held, start + k / fps
            k += 1
        held, last = frame, time
    while held is not None and start + k / fps <= last + slack:
        yield held, start + k / fps
        k += 1


def cut_file(path: Path, buckets: Sequence[Bucket], cutting: Cutting) -> Iterator[Cut | Dropped]:
    """The clips of a video or a picture, in their order. Raises `BadInput` for one that does not decode, after the
    clips that did."""
    if is_still(path):
        still = read_picture(path)
        which = nearest(buckets, 1, *still.shape[:2])
        if min(still.shape[:2]) < cutting.min_side:
            yield Dropped("too small")
        elif which is None:
            yield Dropped("a still, and no bucket has one frame")
        else:
            b = buckets[which]
            yield Cut(which, fit(still, b.height, b.width)[None], 0, 0.0, 0.0)
        return
    frames = ((frame, time) for frame, time, _, _ in iterate_video(path))
    number = None
    for number, scene in groupby(scenes(frames, cutting.scene), key=lambda item: item[0]):
        first = next(scene)
        if min(first[1].shape[:2]) < cutting.min_side:
            yield Dropped("too small")
            return
        yield from _cut_scene(number, (item[1:] for item in chain([first], scene)), buckets, cutting)
    if number is None:
        raise BadInput(f"{path}: no frame decodes")


def _cut_scene(
    number: int, frames: Iterator[tuple[Frame, float]], buckets: Sequence[Bucket], cutting: Cutting
) -> Iterator[Cut | Dropped]:
    """The clips of a scene, once it has run for `min_seconds`."""
    waiting: list[Cut] = []
    span: list[float] = []  # the first and the latest time

    def watched() -> Iterator[tuple[Frame, float]]:
        for frame, time in frames:
            span[:] = [span[0] if span else time, time]
            yield frame, time

    some = False
    for which, held in _fill(at_rate(watched(), cutting.fps), buckets):
        some = True
        clip = np.stack([frame for frame, _ in held])
        motion = float(np.mean([np.abs(b - a).mean() for a, b in pairwise(map(thumbnail, clip))]))
        if motion < cutting.min_motion:
            yield Dropped("too little motion")
        elif motion > cutting.max_motion:
            yield Dropped("too much motion")
        else:
            waiting.append(Cut(which, clip, number, round(held[0][1], 3), round(motion, 3)))
        if span[1] - span[0] >= cutting.min_seconds:
            yield from waiting
            waiting = []
    if some and span[1] - span[0] >= cutting.min_seconds:
        yield from waiting
    else:
        yield Dropped("too short")


def _fill(
    frames: Iterable[tuple[Frame, float]], buckets: Sequence[Bucket]
) -> Iterator[tuple[int, list[tuple[Frame, float]]]]:
    """(bucket, its frames with their times): buckets of the nearest aspect, the longest as often as it fits."""
    moving = [i for i, b in enumerate(buckets) if b.frames > 1]
    kinds: list[int] = []  # of the size that the scene gets, the longest first
    held: list[tuple[Frame, float]] = []
    for frame, time in frames:
        if not kinds:
            best = nearest([buckets[i] for i in moving], 1 << 30, *frame.shape[:2])
            if best is None:
                return  # nothing but stills is wanted
            size = buckets[moving[best]].height, buckets[moving[best]].width
            kinds = [i for i in moving if (buckets[i].height, buckets[i].width) == size]
            kinds.sort(key=lambda i: -buckets[i].frames)
        held.append((fit(frame, *size), time))
        if len(held) == buckets[kinds[0]].frames:
            yield kinds[0], held
            held = []
    for which in kinds[1:]:
        count = buckets[which].frames
        while len(held) >= count:
            yield which, held[:count]
            held = held[count:]


def read_clips(
    root: str, captions: dict[str, str], buckets: tuple[Bucket, ...], cutting: Cutting, name: str
) -> Iterator[Clip | Dropped]:
    """The clips of one file of a folder, here or in an object store. Raises as `cut_file`."""
    with Store(root).reading(name) as file:
        for cut in cut_file(file, buckets, cutting):
            if isinstance(cut, Cut):
                about = {"file": name, "scene": cut.scene, "start": cut.start, "motion": cut.motion}
                yield Clip(cut.bucket, captions.get(name, ""), {"frames": cut.frames}, about)
            else:
                yield cut
