"""A folder of one's own clips: videos and pictures with captions beside them.

`clips/a.mp4` with `clips/a.txt`, or a `metadata.jsonl` of `{"file_name": "a.mp4", "text": "..."}` a line. A video is
resampled by its timestamps, scaled and cropped to the nearest bucket; a picture is a one-frame video.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from dit_video.core.errors import BadInput, DitVideoError, MissingError
from dit_video.core.log import log
from dit_video.core.types import Video
from dit_video.data.buckets import Bucket, nearest
from dit_video.data.loader import Sample, generator, to_float
from dit_video.data.video import VIDEO_SUFFIXES, iterate_video, resample_indices

STILL_SUFFIXES = (".png", ".jpg", ".jpeg")
MOVING_SUFFIXES = (*VIDEO_SUFFIXES, ".gif", ".webp")


@dataclass(frozen=True)
class Folder:
    """Settings. `held_out`: the part of the files that training never sees, for the held-out loss; at least one."""

    path: str = "clips"
    fps: float = 8.0
    seed: int = 0
    held_out: float = 0.05

    def open(self, buckets: Sequence[Bucket], held_out: bool = False) -> "FolderReader":
        """Lists the files. Raises `MissingError` when there is no folder or nothing in it, `BadInput` for a
        metadata.jsonl that cannot be read."""
        return FolderReader(self, tuple(buckets), held_out)


def list_clips(folder: Path) -> list[tuple[Path, str]]:
    """(file, caption), sorted by name. Raises as `Folder.open`."""
    if not folder.is_dir():
        raise MissingError(f"--data.path {folder}: there is no such folder ({folder.absolute()})")
    table = folder / "metadata.jsonl"
    if table.is_file():
        return _from_table(table)
    kinds = (*MOVING_SUFFIXES, *STILL_SUFFIXES)
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in kinds and not p.name.startswith("."))
    if not files:
        raise MissingError(f"{folder} holds no clips: looked for {', '.join(kinds)}, and for metadata.jsonl")
    found, bare = [], []
    for file in files:
        text = file.with_suffix(".txt")
        if text.is_file():
            found.append((file, " ".join(text.read_text(encoding="utf-8", errors="replace").split())))
        else:
            found.append((file, ""))
            bare.append(file.name)
    if bare:
        log.warning("%d of %d clips have no caption (a .txt beside them): %s ...", len(bare), len(files), bare[0])
    return found


def _from_table(table: Path) -> list[tuple[Path, str]]:
    found = []
    for number, line in enumerate(table.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            found.append((table.parent / row["file_name"], " ".join(str(row["text"]).split())))
        except (ValueError, KeyError, TypeError) as error:
            raise BadInput(
                f'{table}, line {number}: {error!r}. A line is {{"file_name": "a.mp4", "text": "a caption"}}.'
            ) from None
    if not found:
        raise MissingError(f"{table} has no lines: it names no clips")
    return sorted(found)


def fit(frame: UInt8[np.ndarray, "H W 3"], height: int, width: int) -> UInt8[np.ndarray, "h w 3"]:
    """Scaled to cover the size, with antialiasing, and cropped in the middle."""
    from PIL import Image

    h, w, _ = frame.shape
    if (h, w) == (height, width):
        return frame
    scale = max(height / h, width / w)
    box_h, box_w = height / scale, width / scale
    top, left = (h - box_h) / 2, (w - box_w) / 2
    picture = Image.fromarray(frame)
    return np.asarray(picture.resize((width, height), Image.Resampling.LANCZOS, (left, top, left + box_w, top + box_h)))


class FolderReader:
    """Files in a new order every epoch. A file that does not decode is named, counted, and skipped from then on."""

    def __init__(self, source: Folder, buckets: tuple[Bucket, ...], held_out: bool):
        self.source, self.buckets = source, buckets
        clips = list_clips(Path(source.path))
        self.broken: dict[Path, str] = {}
        self.lengths: dict[Path, tuple[float, int, int]] = {}
        self.orders: dict[int, np.ndarray] = {}
        if len(clips) > 1:
            # By the name, so that a file stays on its side when others are added.
            clips.sort(key=lambda clip: hashlib.sha256(clip[0].name.encode()).digest())
            count = max(1, round(len(clips) * source.held_out)) if source.held_out > 0 else 0
            clips = clips[:count] if held_out and count else clips[count:]
        self.clips = clips
        if not held_out:
            log.info("%d clips in %s", len(clips), source.path)

    def load(self, draw: int) -> Sample | None:
        epoch, place = divmod(draw, len(self.clips))
        if epoch not in self.orders:
            self.orders = {e: o for e, o in self.orders.items() if e >= epoch - 1}
            self.orders[epoch] = generator(self.source.seed, epoch).permutation(len(self.clips))
        path, caption = self.clips[int(self.orders[epoch][place])]
        if path in self.broken:
            return None
        try:
            bucket, frames = self._read(path, generator(self.source.seed, draw, 1))
        except (DitVideoError, OSError, ValueError, SyntaxError) as error:
            self.broken[path] = str(error)
            log.warning("skipping %s: %s (%d broken of %d)", path, error, len(self.broken), len(self.clips))
            return None
        return Sample(draw, bucket, caption, {"frames": frames})

    def _read(self, path: Path, rng: np.random.Generator) -> tuple[int, UInt8[np.ndarray, "T H W 3"]]:
        """Bucket, and frames in its size; of a longer video a stretch that starts anywhere."""
        if path.suffix.lower() in STILL_SUFFIXES:
            from PIL import Image

            with Image.open(path) as picture:
                still = np.asarray(picture.convert("RGB"))
            which = self._bucket(1, *still.shape[:2])
            bucket = self.buckets[which]
            return which, fit(still, bucket.height, bucket.width)[None]
        seconds, height, width = self._length(path)
        fps = self.source.fps
        which = self._bucket(int(seconds * fps + 1e-3) + 1, height, width)
        bucket = self.buckets[which]
        span = (bucket.frames - 1) / fps
        start = float(rng.uniform(0.0, max(seconds - span, 0.0)))
        frames, times = [], []
        # One frame before the start stands on the screen at the start: begin to read a little earlier.
        for frame, time, _, _ in iterate_video(path, start=max(0.0, start - 1.0)):
            frames.append(frame)
            times.append(time)
            if time > start + span:
                break
            while len(times) > 1 and times[1] <= start:  # only the last frame before the start is needed
                frames.pop(0), times.pop(0)
        if not frames or times[-1] + 1.5 / fps < start + span:
            raise BadInput(f"ends at {times[-1] if times else 0:.2f} s, where {start + span:.2f} s were announced")
        chosen = resample_indices(np.asarray(times), fps, bucket.frames, start)
        return which, np.stack([fit(frames[i], bucket.height, bucket.width) for i in chosen])

    def _bucket(self, frames: int, height: int, width: int) -> int:
        which = nearest(self.buckets, frames, height, width)
        if which is None:
            shortest = min(b.frames for b in self.buckets)
            raise BadInput(
                f"{frames} frames at {self.source.fps:g} fps: shorter than every bucket (at least {shortest})"
            )
        return which

    def _length(self, path: Path) -> tuple[float, int, int]:
        """Seconds from the first to the last frame, and the upright size; from the decoded frames, once a file."""
        if path not in self.lengths:
            last, size = 0.0, None
            for frame, time, _, _ in iterate_video(path):
                last, size = time, frame.shape[:2]
            if size is None:
                raise BadInput("no frame decodes")
            self.lengths[path] = (last, *size)
        return self.lengths[path]

    def frames(self, arrays: Any, bucket: int) -> Video:
        return to_float(arrays["frames"])

    def captions(self, count: int) -> list[str]:
        """The captions there are, again and again up to `count`."""
        texts = [caption for _, caption in self.clips if caption]
        if not texts:
            raise BadInput(f"{self.source.path}: no clip has a caption, and a new tokenizer needs some")
        return [texts[i % len(texts)] for i in range(count)]
