"""Video files: frames in, frames out. Colours are BT.709, converted and tagged; nothing half-written stays behind.

Frames are uint8 RGB of shape (T, H, W, 3) on this side of the border, whatever the file holds.
"""

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
from jaxtyping import Float, Int, UInt8

from dit_video.core.errors import BadInput, MissingError
from dit_video.core.files import beside, json_text, writing
from dit_video.core.log import log

Frames = UInt8[np.ndarray, "T H W 3"]
VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v")
PICTURE_SUFFIXES = (".gif", ".webp", ".png")  # Pillow writes and reads these
STILL_SUFFIXES = (".png", ".jpg", ".jpeg")
UNDECODABLE = (OSError, SyntaxError, ValueError, EOFError)  # what Pillow raises of a broken file, beside its own
WRITE_SUFFIXES = (".mp4", *PICTURE_SUFFIXES)
BT709 = 1  # of H.273: the same number for matrix, primaries and transfer
LIMITED_RANGE, FULL_RANGE = 1, 2  # "TV" 16..235 and "PC" 0..255, as libav counts them


class Footage(NamedTuple):
    """What `read_video` found."""

    frames: Frames
    fps: float
    timestamps: Float[np.ndarray, "T"]  # seconds, as the file says; not always even
    metadata: dict[str, Any]


def check_suffix(path: Path) -> str:
    """The suffix in lower case. Raises BadInput for one that is not written here."""
    suffix = path.suffix.lower()
    if suffix not in WRITE_SUFFIXES:
        raise BadInput(
            f"{path}: cannot write a video as {suffix or 'no suffix'}. Use one of {', '.join(WRITE_SUFFIXES)}."
        )
    return suffix


def check_file(path: Path) -> None:
    """Raises MissingError for a file that is not there, BadInput for a folder or a device."""
    if not path.exists():
        raise MissingError(f"{path}: no such file.")
    if not path.is_file():
        raise BadInput(f"{path}: a folder or a device, not a file.")


def check_frame(frame: np.ndarray, like: tuple[int, ...] | None = None) -> None:
    """Raises BadInput for what is not uint8 (H, W, 3), or not of the shape of the frames before it."""
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[-1] != 3:
        raise BadInput(f"A frame must be uint8 of shape (H, W, 3); got {frame.dtype} {frame.shape}.")
    if like is not None and frame.shape != like:
        raise BadInput(f"All frames of a video have one size; got {frame.shape[:2]} after {like[:2]}.")


@dataclass
class VideoWriter:
    """Takes frames one by one: `with VideoWriter("a.mp4", fps=8) as video: video.write(frame)`.

    By suffix: `.mp4` (H.264 yuv420p in BT.709, index in front, metadata as JSON in the `comment` tag), `.gif`,
    `.webp` (both animated), `.png` (a sheet of the frames). MP4 is encoded as frames come; the others are kept in
    memory to the end. `metadata` may be set until the end as well. The file appears under its name only when it is
    whole, and not at all after an exception.

    Raises BadInput for an unknown suffix, odd sizes in MP4 (yuv420p halves the colour grid), a wrong frame, or a disk
    that takes no more.
    """

    path: str | os.PathLike[str]
    fps: float
    metadata: dict[str, Any] | None = None
    crf: int = 12  # x264: 0 lossless .. 51; 12 is hard to tell from the source
    _frames: list[np.ndarray] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        self.path = Path(self.path)
        self.suffix = check_suffix(self.path)
        if not self.fps > 0:
            raise BadInput(f"fps={self.fps} must be above zero.")
        self.partial = beside(self.path)
        self._container: Any = None
        self._stream: Any = None
        self._shape: tuple[int, ...] | None = None
        self._tagged: dict[str, Any] | None = None  # the metadata that stands in the container
        self._count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        if kind is not None:
            self.abort()
        else:
            self.close()

    def write(self, frame: UInt8[np.ndarray, "H W 3"]) -> None:
        frame = np.asarray(frame)
        check_frame(frame, self._shape)
        self._shape = frame.shape
        if self.suffix != ".mp4":
            self._frames.append(frame.copy())
        else:
            with writing(self.path):
                if self._container is None:
                    self._open(*frame.shape[:2])
                self._encode(frame)
        self._count += 1

    def write_all(self, frames: Frames) -> None:
        for frame in frames:
            self.write(frame)

    def close(self) -> None:
        """Flushes, then renames. A video without a frame is an error."""
        if self._count == 0:
            raise BadInput(f"{self.path}: a video needs at least one frame.")
        try:
            with writing(self.path):
                if self.suffix == ".mp4":
                    for packet in self._stream.encode(None):
                        self._container.mux(packet)
                    self._container.close()
                    if self.metadata != self._tagged:
                        _retag(self.partial, self.metadata)
                else:
                    _write_pictures(self.partial, np.stack(self._frames), self.fps, self.metadata)
                os.replace(self.partial, self.path)
        except BaseException:
            self.abort()
            raise

    def abort(self) -> None:
        """Leaves nothing behind."""
        try:
            if self._container is not None:
                self._container.close()
        except OSError:  # a full disk does not take the end of the file either
            pass
        finally:
            self._container = None
            self.partial.unlink(missing_ok=True)

    def _open(self, height: int, width: int) -> None:
        import av

        if height % 2 or width % 2:
            nearest = f"{width + width % 2}x{height + height % 2}"
            raise BadInput(
                f"{self.path}: MP4 (yuv420p) needs even sizes, got {width}x{height}. "
                f"Nearest: {nearest}; or write .gif, .webp or .png."
            )
        self._container = av.open(str(self.partial), "w", options={"movflags": "+faststart"})
        if self.metadata:
            self._container.metadata["comment"] = json_text(self.metadata)
        self._tagged = None if self.metadata is None else dict(self.metadata)
        rate = Fraction(self.fps).limit_denominator(1001 * 60)
        stream = self._container.add_stream("libx264", rate=rate, options={"crf": str(self.crf), "preset": "medium"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        context = stream.codec_context
        context.time_base = 1 / rate
        context.colorspace = context.color_primaries = context.color_trc = BT709
        context.color_range = LIMITED_RANGE
        self._stream = stream

    def _encode(self, frame: np.ndarray) -> None:
        import av

        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24").reformat(
            format="yuv420p", dst_colorspace=BT709, src_color_range=FULL_RANGE, dst_color_range=LIMITED_RANGE
        )
        picture.colorspace, picture.color_range = BT709, LIMITED_RANGE
        picture.pts, picture.time_base = self._count, self._stream.codec_context.time_base
        for packet in self._stream.encode(picture):
            self._container.mux(packet)


def _retag(path: Path, metadata: dict[str, Any] | None) -> None:
    """The same packets with another comment: the tag is written before the first frame."""
    import av

    copy = path.with_name(f".{path.name}")
    try:
        with av.open(str(path)) as old, av.open(str(copy), "w", options={"movflags": "+faststart"}) as new:
            new.metadata["comment"] = json_text(metadata)
            stream = new.add_stream_from_template(old.streams.video[0])
            for packet in old.demux(old.streams.video[0]):
                if packet.dts is not None:
                    packet.stream = stream
                    new.mux(packet)
        os.replace(copy, path)
    finally:
        copy.unlink(missing_ok=True)


def write_video(
    path: str | os.PathLike[str], frames: Frames, fps: float, metadata: dict[str, Any] | None = None, crf: int = 12
) -> Path:
    """Writes frames by the suffix of `path` (see `VideoWriter`) and returns it as a Path."""
    with VideoWriter(path, fps, metadata, crf) as video:
        video.write_all(frames)
    return Path(path)


def _write_pictures(path: Path, frames: Frames, fps: float, metadata: dict[str, Any] | None) -> None:
    """GIF, WebP and PNG by Pillow."""
    from PIL import Image, PngImagePlugin

    text, suffix = json_text(metadata) if metadata else "", path.suffix.lower()
    if suffix == ".png":
        info = PngImagePlugin.PngInfo()
        if text:
            info.add_itxt("Comment", text)
        Image.fromarray(frame_grid(frames)).save(path, pnginfo=info)
        return
    tick = 10 if suffix == ".gif" else 1  # ms: GIF counts hundredths of a second
    ends = np.round(np.arange(len(frames) + 1) * 1000 / fps / tick).astype(int) * tick
    pictures = [Image.fromarray(frame) for frame in frames]
    options: dict[str, Any] = {"save_all": True, "append_images": pictures[1:], "loop": 0}
    # rounded ends, not rounded lengths: the errors do not add up
    options["duration"] = np.diff(ends).tolist() if len(frames) > 1 else int(1000 / fps)
    if suffix == ".gif":
        pictures[0].save(path, comment=text.encode(), disposal=1, **options)
    else:
        exif = Image.Exif()
        if text:
            exif[0x010E] = json.dumps(metadata)  # ImageDescription, which is ASCII by its rule
        pictures[0].save(path, quality=92, method=4, exif=exif, **options)


def read_video(path: str | os.PathLike[str], *, start: float = 0.0, max_frames: int | None = None) -> Footage:
    """Frames as uint8 RGB, upright, with the time of each. `start` in seconds; reads on to the end or `max_frames`.

    The file's colour tags are followed; without tags, BT.709 from 720 lines up and BT.601 below, as players do.
    Raises MissingError for a file that is not there and BadInput for one that does not decode to a frame or breaks off.
    """
    path = Path(path)
    frames, times = [], []
    fps, metadata = 0.0, {}
    for frame, time, *about in iterate_video(path, start=start):
        fps, metadata = about
        frames.append(frame)
        times.append(time)
        if max_frames is not None and len(frames) >= max_frames:
            break
    if not frames:
        raise BadInput(f"{path}: no video frame at or after {start:g} s. Is the file broken or shorter?")
    return Footage(np.stack(frames), fps, np.asarray(times), metadata)


def iterate_video(
    path: str | os.PathLike[str], *, start: float = 0.0
) -> Iterator[tuple[np.ndarray, float, float, dict[str, Any]]]:
    """(frame, seconds, fps, metadata), one frame at a time: long files without the memory. Errors as `read_video`."""
    path = Path(path)
    check_file(path)
    yield from (_iterate_pictures if path.suffix.lower() in PICTURE_SUFFIXES else _iterate_av)(path, start)


def _iterate_av(path: Path, start: float):
    import av

    # Titles in other encodings than UTF-8 are no reason to refuse a file. PyAV 19 lets them through by itself.
    lenient = {"metadata_errors": "replace"} if int(av.__version__.partition(".")[0]) < 19 else {}
    try:
        with av.open(str(path), **lenient) as container:
            if not container.streams.video:
                raise BadInput(f"{path}: has no video stream.")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            fps = float(stream.average_rate or stream.guessed_rate or 0)
            metadata = _parse(container.metadata.get("comment", ""))
            origin = float(stream.start_time * stream.time_base) if stream.start_time is not None else 0.0
            if start > 0:
                container.seek(int((start + origin) / stream.time_base), stream=stream)
            time = 0.0
            for count, frame in enumerate(container.decode(stream)):
                time = frame.time - origin if frame.time is not None else count / (fps or 1.0)
                if time < start - 1e-6:
                    continue
                yield _to_rgb(frame), time, fps, metadata
            _check_end(path, stream, time)
    except (av.FFmpegError, OSError, ValueError) as error:
        raise BadInput(f"{path}: cannot be decoded ({error}).") from error


def _check_end(path: Path, stream: Any, last: float) -> None:
    """Raises BadInput for a file that is shorter than its own index says: FFmpeg takes the end of the data for the end
    of the film. Matroska's index knows no sizes; where its tag of the duration is far from `last`, the time of the last
    frame, there is a warning, as some programs leave an older tag."""
    there, wanted = path.stat().st_size, max((entry.pos + entry.size for entry in stream.index_entries), default=0)
    if wanted > there:
        raise BadInput(f"{path}: breaks off after {last:.1f} s: {there} bytes of at least {wanted}. Get it again.")
    said = re.fullmatch(r"(\d+):(\d+):(\d+\.?\d*)", stream.metadata.get("DURATION", ""))
    seconds = sum(float(part) * unit for part, unit in zip(said.groups(), (3600, 60, 1), strict=True)) if said else 0.0
    if seconds > last + max(2.0, 0.02 * seconds):
        log.warning("%s: ends at %.1f s and says %.1f. Did it break off?", path, last, seconds)


def _to_rgb(frame: Any) -> np.ndarray:
    """One decoded frame as upright RGB, by its own colour tags."""
    tagged = int(frame.colorspace)
    space = tagged if tagged in (1, 4, 5, 6, 7, 9) else (BT709 if frame.height >= 720 else 5)
    space = 5 if space == 6 else space  # SMPTE 170M and BT.470BG share one matrix
    full = int(frame.color_range) == FULL_RANGE or frame.format.name.startswith("yuvj")
    if frame.format.is_rgb:
        rgb = frame.to_ndarray(format="rgb24")
    else:
        rgb = frame.reformat(
            format="rgb24", src_colorspace=space, dst_colorspace=space,
            src_color_range=FULL_RANGE if full else LIMITED_RANGE, dst_color_range=FULL_RANGE,
        ).to_ndarray()  # fmt: skip
    turns = round(getattr(frame, "rotation", 0) / 90) % 4  # a phone's portrait clip lies on its side in the file
    return np.ascontiguousarray(np.rot90(rgb, turns)) if turns else rgb


def _iterate_pictures(path: Path, start: float):
    from PIL import Image, ImageSequence

    try:
        with Image.open(path) as picture:
            info = picture.info
            text = info.get("Comment") or info.get("comment") or picture.getexif().get(0x010E) or ""
            metadata = _parse(text)
            lengths, frames = [], []
            for page in ImageSequence.Iterator(picture):
                frames.append(np.asarray(page.convert("RGB")))
                lengths.append(float(page.info.get("duration", 0)) / 1000)
    except (*UNDECODABLE, Image.DecompressionBombError) as error:
        raise BadInput(f"{path}: cannot be decoded ({error}).") from error
    if len(frames) > 1:  # as browsers do: many files say 0 and mean "fast"
        lengths = [length if length > 0.01 else 0.1 for length in lengths]
    seconds = sum(lengths)
    fps = len(frames) / seconds if seconds else 1.0
    times = np.concatenate([[0.0], np.cumsum(lengths[:-1])]) if seconds else np.arange(len(frames)) / fps
    for frame, time in zip(frames, times, strict=True):
        if time >= start - 1e-6:
            yield frame, float(time), fps, metadata


def _parse(comment: str | bytes) -> dict[str, Any]:
    """Our JSON if it is ours; whatever else stands in the comment is nobody's error."""
    if isinstance(comment, bytes):
        comment = comment.decode("utf-8", "replace")
    try:
        parsed = json.loads(comment)
    except ValueError:
        return {}
    return parsed if isinstance(parsed, dict) else {}


def begins_by(fps: float) -> float:
    """Seconds after its time within which a frame counts as begun: files round timestamps to a millisecond."""
    return min(1.1e-3, 0.25 / fps)


def resample_indices(
    timestamps: Float[np.ndarray, "T"], fps: float, count: int | None = None, start: float | None = None
) -> Int[np.ndarray, "N"]:
    """Which source frames stand on screen at start + k / fps: the last that began by then.

    By timestamps, so variable-rate files keep their speed. `start` in seconds, the first frame's by default;
    `count` frames, or as many as there are up to the last frame. A frame that begins a moment later (`begins_by`)
    counts as begun.
    """
    timestamps = np.asarray(timestamps, np.float64)
    if len(timestamps) == 0 or not fps > 0:
        raise BadInput(f"resample_indices: needs frames and fps above zero; got {len(timestamps)} frames, fps={fps}.")
    start = float(timestamps[0]) if start is None else start
    slack = begins_by(fps)
    if count is None:
        count = int(np.floor((timestamps[-1] - start + slack) * fps)) + 1
    wanted = start + np.arange(count) / fps
    return np.clip(np.searchsorted(timestamps, wanted + slack, side="right") - 1, 0, len(timestamps) - 1)


def frame_grid(frames: Frames, columns: int | None = None, gap: int = 2) -> UInt8[np.ndarray, "H W 3"]:
    """Frames in reading order on a white ground, about twice as wide as high unless `columns` says."""
    count, height, width, _ = frames.shape
    columns = columns or min(count, max(1, round(np.sqrt(2 * count * height / width))))
    rows = -(-count // columns)
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for index, frame in enumerate(frames):
        top, left = index // columns * (height + gap), index % columns * (width + gap)
        sheet[top : top + height, left : left + width] = frame
    return sheet


def contact_sheet(
    clips: Sequence[Frames], columns: int = 2, frames_per_clip: int = 5, gap: int = 2
) -> UInt8[np.ndarray, "H W 3"]:
    """Several clips on one picture: each a strip of frames spread over its length, `columns` strips side by side.

    Clips may differ in size and length; each strip's cell is as large as the largest.
    """
    if not clips:
        raise BadInput("contact_sheet: needs at least one clip.")
    strips = []
    for clip in clips:
        chosen = np.round(np.linspace(0, len(clip) - 1, min(frames_per_clip, len(clip)))).astype(int)
        strips.append(frame_grid(np.asarray(clip)[chosen], columns=len(chosen), gap=gap))
    height, width = (max(strip.shape[axis] for strip in strips) for axis in (0, 1))
    cells = np.full((len(strips), height, width, 3), 255, np.uint8)
    for cell, strip in zip(cells, strips, strict=True):
        cell[: strip.shape[0], : strip.shape[1]] = strip
    return frame_grid(cells, columns=min(columns, len(cells)), gap=4 * gap)
