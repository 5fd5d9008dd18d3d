"""What a clip is given beside its prompt: pictures, footage, masks. Checked, and brought to the clip's size and rate.

For a model with a time per token all of it becomes the same thing: latents at time zero. A first frame is slot 0; a
picture elsewhere is encoded alone and joins as tokens at the rotary time of its frame, frame / 4; footage before the
clip stands in front; under a mask, the positions whose pixels are all kept are known. (`sampler` does that.) Other
models are given a video with what is known in it, beside the noise or for a control branch (`encoded` makes it).

`before` makes what comes before given footage: its first frame is the last picture of the new clip, and dropped there.
The motion at that seam is the prompt's: a picture does not say how fast things are.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, UInt8

from dit_video.core.errors import BadInput
from dit_video.generate.footage import Footage, open_footage
from dit_video.generate.mode import abilities, wanted
from dit_video.generate.picture import Resize, fit_image, load_image

if TYPE_CHECKING:
    from dit_video.weights.model import Model

HISTORY = 5  # latent slots of footage that a clip goes on from; the decoder warms up on them
# flag -> abilities of which it asks one, and in words
NEEDS = {
    "image": ({"first"}, "start from a picture"),
    "last_image": ({"picture", "last"}, "end on a picture"),
    "keyframe": ({"picture"}, "show a picture on the way"),
    "before": ({"picture"}, "lead up to footage"),
    "interpolate": ({"picture"}, "fill in frames"),
    "extend": ({"tail"}, "go on from footage"),
    "mask": ({"mask"}, "fill in a part of the picture"),
    "reference": ({"reference"}, "look at a picture of what is to be seen"),
    "video": ({"control"}, "be led by footage"),
    "loop": ({"free"}, "make a loop"),
    "video --strength": ({"free"}, "begin on footage"),
}


@dataclass(frozen=True)
class Asked:
    """As the user gave it: paths, pictures, numbers."""

    image: Any = None
    last_image: Any = None
    keyframes: Mapping[int, Any] | None = None
    extend: str | os.PathLike[str] | None = None
    before: bool = False
    loop: bool = False
    video: str | os.PathLike[str] | None = None
    mask: str | os.PathLike[str] | None = None
    strength: float | None = None
    interpolate: int | None = None
    reference: Sequence[Any] | None = None

    def check(self, model: "Model") -> None:
        """What goes together, and what the model can. Raises BadInput, which says what it can."""
        footage = [f"--{name}" for name in ("extend", "video") if getattr(self, name) is not None]
        uses = [f"--{name}" for name in ("mask", "strength", "interpolate") if getattr(self, name) is not None]
        if len(footage) > 1:
            raise BadInput("--extend and --video are two ways to use footage. Give one.")
        if self.before and self.extend is None:
            raise BadInput("--before says on which side of the footage of --extend to go on. Give --extend CLIP.")
        if uses and self.video is None:
            raise BadInput(f"{uses[0]} says what to do with --video. Give --video CLIP.")
        for frame in self.keyframes or ():
            if not str(frame).isdecimal():
                raise BadInput(
                    f"--keyframe {str(frame)[:40]}: give the frame's number and its picture: {{24: picture}}."
                )
        can = abilities(model)
        if self.video is not None and not uses and "control" not in can:
            raise BadInput(
                "--video says what to start from. Say what to do: --mask MASK, --strength X or --interpolate N."
            )
        if self.interpolate is not None and len(uses) > 1:
            raise BadInput(
                "--interpolate makes frames between those of --video; it does not go with --mask or --strength."
            )
        pictures = [name for name in ("image", "last_image", "keyframes") if getattr(self, name) is not None]
        if pictures and footage:
            raise BadInput(f"--{pictures[0]} and {footage[0]} both say what is seen. Give one.")
        if self.loop and (pictures or footage):
            raise BadInput("--loop goes with a prompt alone: its clip has no first frame.")
        if self.strength is not None and not 0 < self.strength <= 1:
            raise BadInput(
                f"strength={self.strength} must be above 0 (the video as it is) and at most 1 (nothing of it)."
            )
        if self.interpolate is not None and self.interpolate < 2:
            raise BadInput(f"interpolate={self.interpolate} must be at least 2: so many times as many frames.")
        asked = {name: getattr(self, name) is not None for name in ("image", "last_image", "interpolate", "mask")}
        asked |= {"keyframe": self.keyframes, "reference": self.reference, "loop": self.loop}
        asked |= {"before" if self.before else "extend": self.extend, "video --strength": self.strength}
        for flag, given in asked.items():
            if given and not NEEDS[flag][0] & can:
                able = [f"--{name}" for name, (need, _) in NEEDS.items() if need & can]
                raise BadInput(f"--{flag}: this model cannot {NEEDS[flag][1]}. It can: {', '.join(able)}.")
        if missing := [name for name in wanted(model) if getattr(self, name) is None]:
            raise BadInput(
                f"this model makes clips that {' and '.join(NEEDS[name][1] for name in wanted(model))}. "
                f"Give {' and '.join(f'--{name} PATH' for name in missing)}."
            )

    def open(self, fps: float) -> Footage | None:
        """The footage at the clip's rate. With --interpolate every frame of the file counts."""
        if self.extend is not None:
            return open_footage(self.extend, fps, "extend")
        if self.video is not None:
            return open_footage(self.video, None if self.interpolate else fps, "video")
        return None


@dataclass(frozen=True)
class Conditions:
    """Checked, in the clip's size. Frames count from the clip's frame 0, which with `history` is the last of it."""

    pictures: tuple[tuple[int, UInt8[np.ndarray, "H W 3"]], ...] = ()
    video: UInt8[np.ndarray, "T H W 3"] | None = None
    keep: Bool[np.ndarray, "T H W"] | None = None  # pixels of `video` that stay
    strength: float = 1.0
    history: UInt8[np.ndarray, "N H W 3"] | None = None
    opening: UInt8[np.ndarray, "H W 3"] | None = None  # the first frame of all footage before: the sink
    since: int = 0  # frames from it to frame 0
    loop: bool = False
    references: tuple[UInt8[np.ndarray, "H W 3"], ...] = ()
    lead: Footage | None = None  # footage that the file begins with
    follow: Footage | None = None  # footage that the file ends with
    drop: int = 0  # frames at the clip's end that `follow` shows
    sources: tuple[dict[str, Any], ...] = ()  # what was given, for the metadata


def gather(
    asked: Asked,
    footage: Footage | None,
    frames: int,
    fps: float,
    height: int,
    width: int,
    resize: Resize,
    stride: int,
    notes: Any,
) -> Conditions:
    """Reads what was asked for. Raises BadInput for a keyframe beyond the clip, another size of mask, short footage,
    and where nothing would be new."""
    pictures, sources = _pictures(asked, frames, height, width, resize)
    references, more = _references(asked.reference or (), height, width)
    sources += more
    if footage is None:
        return Conditions(pictures=pictures, loop=asked.loop, references=references, sources=sources)
    if asked.extend is not None and frames == 1:
        raise BadInput(
            "--extend with num_frames=1 makes nothing new: lengths count from the footage's own frame, the last one or "
            f"with --before the first. Use {1 + stride} or more."
        )
    if asked.interpolate is not None and frames == 1:
        raise BadInput(
            f"--interpolate {asked.interpolate} makes fewer than {1 + stride} frames of the {len(footage)} of --video, "
            f"and the model needs {stride}k+1: nothing would be new. Give longer footage, or a picture with --image."
        )
    about = footage.about
    footage = footage.fitted(height, width, resize)
    if (about["height"], about["width"]) != (height, width):
        notes.say(f"{about['width']}x{about['height']} footage is brought to {width}x{height} ({resize}).")
    how = {name: value for name in ("strength", "interpolate") if (value := getattr(asked, name))}
    how |= {"before": asked.before} if asked.extend is not None else {}
    sources = (footage.about | {"used": len(footage)} | how, *more)
    if asked.extend is not None and asked.before:
        last = (frames - 1, next(footage.frames(0, 1)))
        return Conditions(pictures=(last,), references=references, follow=footage, drop=1, sources=sources)
    if asked.extend is not None:
        usable = min((len(footage) - 1) // stride * stride + 1, 1 + (HISTORY - 1) * stride)
        tail = footage.read(len(footage) - usable)
        if usable == 1:  # a single picture: the clip's first frame, which is not shown twice
            before = replace(footage, order=footage.order[:-1]) if len(footage) > 1 else None
            return Conditions(pictures=((0, tail[0]),), lead=before, sources=sources)
        opening = next(footage.frames(0, 1))
        return Conditions(history=tail, opening=opening, since=len(footage) - 1, lead=footage, sources=sources)
    if asked.interpolate is not None:
        shown = enumerate(footage.frames(0, (frames - 1) // asked.interpolate + 1))
        between = tuple((asked.interpolate * i, frame) for i, frame in shown)
        return Conditions(pictures=between, references=references, sources=sources)
    if len(footage) < frames:
        raise BadInput(
            f"--video has {len(footage)} frames at this rate, the clip {frames}. Use --num_frames up to that."
        )
    keep = None
    if asked.mask is not None:
        keep, more = _mask(asked.mask, about, frames, fps, footage, resize)
        sources += (more,)
    return Conditions(
        video=footage.read(0, frames), keep=keep, strength=asked.strength or 1.0, references=references, sources=sources
    )


def _pictures(asked: Asked, frames: int, height: int, width: int, resize: Resize) -> tuple[tuple, tuple]:
    wanted: list[tuple[int, Any]] = [(0, asked.image)] if asked.image is not None else []
    wanted += sorted((int(frame), picture) for frame, picture in (asked.keyframes or {}).items())
    if asked.last_image is not None:
        wanted.append((frames - 1, asked.last_image))
    if wanted and frames == 1:
        raise BadInput("num_frames=1 with an image leaves nothing to generate: the image is the first frame.")
    pictures, sources = [], []
    for frame, picture in wanted:
        if not 0 <= frame < frames:
            raise BadInput(f"--keyframe {frame}: the clip has frames 0 to {frames - 1}.")
        if frame in (other for other, _ in pictures):
            raise BadInput(f"frame {frame} is given twice. Give each frame one picture.")
        pixels, source = load_image(picture)
        pictures.append((frame, fit_image(pixels, height, width, resize)))
        sources.append({"frame": frame} | source | {"resize": resize})
    return tuple(pictures), tuple(sources)


def _references(pictures: Sequence[Any], height: int, width: int) -> tuple[tuple, tuple]:
    """Pictures of what is to be seen, whole, on white: as the reference implementation of VACE fits them."""
    loaded = [load_image(picture) for picture in pictures]
    fitted = tuple(fit_image(pixels, height, width, "pad", "white") for pixels, _ in loaded)
    return fitted, tuple({"reference": source.pop("image")} | source for _, source in loaded)


def _mask(
    path: str | os.PathLike[str], of: dict[str, Any], frames: int, fps: float, footage: Footage, resize: Resize
) -> tuple[Bool[np.ndarray, "T H W"], dict[str, Any]]:
    """Which pixels stay: those where the mask is dark. What is padded is new."""
    mask = open_footage(path, fps, "mask")
    if (mask.about["height"], mask.about["width"]) != (of["height"], of["width"]):
        raise BadInput(
            f"--mask is {mask.about['width']}x{mask.about['height']}, --video is {of['width']}x{of['height']}. "
            "They must have one size: white is made new, black stays."
        )
    if 1 < len(mask) < frames:
        raise BadInput(f"--mask has {len(mask)} frames, the clip {frames}. Give as many, or one picture for all.")
    pixels = mask.fitted(*footage.size, resize, "white").read(0, frames)
    keep = pixels.mean(-1) < 128
    return (np.broadcast_to(keep, (frames, *keep.shape[1:])) if len(mask) == 1 else keep), mask.about


def known_positions(keep: Bool[np.ndarray, "T H W"], stride: int, factor: int, patch: int) -> Bool[np.ndarray, "t h w"]:
    """Latent positions that are known: every pixel that they stand for is kept, and all of their patch, as a token has
    one time."""
    cell, (T, H, W) = factor * patch, keep.shape
    whole = keep.reshape(T, H // cell, cell, W // cell, cell).all((2, 4))
    rest = whole[1:].reshape((T - 1) // stride, stride, *whole.shape[1:]).all(1)
    return np.concatenate([whole[:1], rest]).repeat(patch, 1).repeat(patch, 2)
