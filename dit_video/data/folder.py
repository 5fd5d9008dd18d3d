"""A folder of one's own clips: videos and pictures with captions beside them.

`clips/a.mp4` with `clips/a.txt`, or a `metadata.jsonl` of `{"file_name": "a.mp4", "text": "..."}` a line. A video is
resampled by its timestamps, scaled and cropped to the nearest bucket; a picture is a one-frame video.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from dit_video.core.errors import BadInput, DitVideoError, MissingError
from dit_video.core.log import log
from dit_video.core.types import Video
from dit_video.data.buckets import Bucket, nearest
from dit_video.data.loader import Sample, generator, to_float
from dit_video.data.scenes import fit
from dit_video.data.still import is_still, read_picture
from dit_video.data.store import Store
from dit_video.data.video import STILL_SUFFIXES, VIDEO_SUFFIXES, iterate_video, resample_indices

MOVING_SUFFIXES = (*VIDEO_SUFFIXES, ".gif", ".webp")
TABLE = "metadata.jsonl"


@dataclass(frozen=True)
class Folder:
    """Settings. `held_out`: the part of the files that training never sees, for the held-out loss; at least one."""

    path: str = "clips"
    fps: float = 8.0
    seed: int = 0
    held_out: float = 0.05

    def open(self, buckets: Sequence[Bucket], held_out: bool = False) -> "FolderReader":
        """Lists the files. Raises `MissingError` when there is no folder or nothing in it, `BadInput` for a
        metadata.jsonl that cannot be read, and for a `held_out` that leaves nothing to train on."""
        if not 0 <= self.held_out < 1:
            raise BadInput(f"data.held_out={self.held_out}: a part of the clips, 0 to less than 1")
        return FolderReader(self, tuple(buckets), held_out)


def list_clips(store: Store) -> list[tuple[str, str]]:
    """(file, caption), sorted by name. Raises as `Folder.open`."""
    if not store.is_folder():
        raise MissingError(f"--data.path {store}: there is no such folder ({store.root})")
    names = store.names()
    if TABLE in names:
        return _from_table(store)
    kinds = (*MOVING_SUFFIXES, *STILL_SUFFIXES)
    files = [n for n in names if n.lower().endswith(kinds) and not PurePosixPath(n).name.startswith(".")]
    if not files:
        raise MissingError(f"{store} holds no clips: looked for {', '.join(kinds)}, and for {TABLE}")
    beside = {name: str(PurePosixPath(name).with_suffix(".txt")) for name in files}
    texts = store.read_all(sorted(set(beside.values()) & set(names)))
    found = [(name, " ".join(texts.get(text, b"").decode(errors="replace").split())) for name, text in beside.items()]
    bare = [name for name, text in beside.items() if text not in texts]
    if bare:
        log.warning("%d of %d clips have no caption (a .txt beside them): %s ...", len(bare), len(files), bare[0])
    return found


def _from_table(store: Store) -> list[tuple[str, str]]:
    found = []
    for number, raw in enumerate(store.read(TABLE).split(b"\n"), 1):
        if not raw.strip():
            continue
        try:
            line = raw.decode("utf-8")
            row = json.loads(line)
            name, text = row["file_name"], row["text"]
            if not isinstance(name, str) or not isinstance(text, str | None):
                raise TypeError(f"file_name {name!r}, text {text!r}: words are wanted")
            found.append((name, " ".join((text or "").split())))
        except (ValueError, KeyError, TypeError) as error:
            raise BadInput(
                f'{store}/{TABLE}, line {number}: {error!r}. A line is {{"file_name": "a.mp4", "text": "a caption"}}.'
            ) from None
    if not found:
        raise MissingError(f"{store}/{TABLE} has no lines: it names no clips")
    if bare := [name for name, text in found if not text]:
        log.warning("%d of %d clips of %s have no caption: %s ...", len(bare), len(found), TABLE, bare[0])
    return sorted(found)


def part(clips: list[tuple[str, str]], share: float, held_out: bool) -> list[tuple[str, str]]:
    """The clips of training, or those that it never sees: `share` of them, at least one on each side. By the name, so
    that most files stay on their side when others are added."""
    if len(clips) < 2:
        return clips
    clips = sorted(clips, key=lambda clip: hashlib.sha256(PurePosixPath(clip[0]).name.encode()).digest())
    count = min(len(clips) - 1, max(1, round(len(clips) * share))) if share > 0 else 0
    return clips[:count] if held_out and count else clips[count:]


class FolderReader:
    """Files in a new order every epoch. A file that does not decode is named, counted, and skipped from then on."""

    def __init__(self, source: Folder, buckets: tuple[Bucket, ...], held_out: bool):
        self.source, self.buckets = source, buckets
        store = Store(source.path)
        if not store.here:
            raise BadInput(
                f"--data.path {source.path}: files are read from a folder here. Encode them once "
                f"(dit-video data build {source.path} OUT), and train on that with --data OUT."
            )
        root = Path(store.root)
        self.clips = [(root / name, text) for name, text in part(list_clips(store), source.held_out, held_out)]
        self.broken: dict[Path, str] = {}
        self.stills: set[Path] = set()  # videos that are too short to be shown moving
        self.times: dict[Path, tuple[np.ndarray, int, int]] = {}
        self.orders: dict[int, np.ndarray] = {}
        if not held_out:
            log.info("%d clips in %s", len(self.clips), source.path)

    def load(self, draw: int) -> Sample | None:
        epoch, place = divmod(draw, len(self.clips))
        order = self.orders.get(epoch)
        if order is None:  # threads come here together: each goes on with what it made
            order = generator(self.source.seed, epoch).permutation(len(self.clips))
            self.orders = {e: o for e, o in self.orders.items() if e >= epoch - 1} | {epoch: order}
        path, caption = self.clips[int(order[place])]
        if len(self.broken) == len(self.clips):
            why = self.broken[path]
            raise BadInput(f"none of the {len(self.clips)} clips in {self.source.path} can be used: {why}")
        if path in self.broken:
            return None
        try:
            bucket, frames = self._read(path, generator(self.source.seed, draw, 1))
        except (DitVideoError, OSError, ValueError, SyntaxError) as error:
            self.broken[path] = str(error)
            log.warning("skipping %s: %s (%d broken of %d)", path, error, len(self.broken), len(self.clips))
            return None
        return Sample(draw, bucket, caption, {"frames": frames})

    def bucket(self, draw: int) -> None:
        """Only the file's frames tell."""

    def _read(self, path: Path, rng: np.random.Generator) -> tuple[int, UInt8[np.ndarray, "T H W 3"]]:
        """Bucket, and frames in its size; of a longer video a stretch that starts anywhere."""
        if is_still(path):
            still = read_picture(path)
            which = self._bucket(1, *still.shape[:2])
            bucket = self.buckets[which]
            return which, fit(still, bucket.height, bucket.width)[None]
        fps, (times, height, width) = self.source.fps, self._times(path)
        # The last frame stands for a while too; half a frame of ours is near enough to its end.
        each = (times[-1] - times[0]) / max(1, len(times) - 1)
        seconds = times[-1] - times[0] + min(each, 0.5 / fps)
        count = int(seconds * fps + 1e-3) + 1
        which = self._bucket(count, height, width)
        bucket = self.buckets[which]
        if bucket.frames == 1 < count and path not in self.stills:
            self.stills.add(path)
            log.warning(
                "%s: %d frames at %g fps are fewer than any bucket of videos has: a frame of it is shown as a picture",
                path, count, fps,
            )  # fmt: skip
        start = times[0] + float(rng.uniform(0.0, max(seconds - (bucket.frames - 1) / fps, 0.0)))
        wanted = times[resample_indices(times, fps, bucket.frames, start)]
        frames: list[np.ndarray] = []
        for frame, time, _, _ in iterate_video(path, start=wanted[0]):
            made = None  # a frame in the bucket's size is a hundredth of what some files hold
            while len(frames) < bucket.frames and wanted[len(frames)] <= time + 1e-6:
                made = fit(frame, bucket.height, bucket.width) if made is None else made
                frames.append(made)
            if len(frames) == bucket.frames:
                return which, np.stack(frames)
        raise BadInput(f"ends before {wanted[len(frames)]:.2f} s, where it had a frame when it was read first")

    def _bucket(self, frames: int, height: int, width: int) -> int:
        which = nearest(self.buckets, frames, height, width)
        if which is None:
            shortest = min(b.frames for b in self.buckets)
            raise BadInput(
                f"{frames} frames at {self.source.fps:g} fps: shorter than every bucket (at least {shortest})"
            )
        return which

    def _times(self, path: Path) -> tuple[Float[np.ndarray, "T"], int, int]:
        """Seconds at which each frame begins, and the upright size; from the decoded frames, once a file."""
        if path not in self.times:
            times, size = [], None
            for frame, time, _, _ in iterate_video(path):
                times.append(time)
                size = frame.shape[:2]
            if size is None:
                raise BadInput("no frame decodes")
            self.times[path] = (np.asarray(times), *size)
        return self.times[path]

    def frames(self, arrays: Any, bucket: int) -> Video:
        return to_float(arrays["frames"])

    def captions(self, count: int) -> list[str]:
        """The captions there are, again and again up to `count`."""
        texts = [caption for _, caption in self.clips if caption]
        if not texts:
            raise BadInput(f"{self.source.path}: no clip has a caption, and a new tokenizer needs some")
        return [texts[i % len(texts)] for i in range(count)]
