"""How long and how large a clip is: as asked for, or as footage and pictures are, or as the model was trained.

Where a rule can be met by a near value, `fit` takes it and says so.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dit_video.core.errors import BadInput
from dit_video.core.sizes import frames_rule, nearest_frames, nearest_size, size_rule
from dit_video.generate.conditions import Asked
from dit_video.generate.mode import abilities
from dit_video.generate.notes import Notes
from dit_video.generate.picture import load_image

if TYPE_CHECKING:
    from dit_video.generate.footage import Footage
    from dit_video.weights.model import Model


def positive(name: str, value: float) -> float:
    if not (math.isfinite(value) and value > 0):
        raise BadInput(f"{name}={value} must be a number above zero.")
    return float(value)


def shape_of(asked: Asked, footage: "Footage | None") -> tuple[int, int] | None:
    """Height and width of what is given, the first thing that is."""
    if footage is not None:
        return footage.about["height"], footage.about["width"]
    pictures = [asked.image, *(asked.keyframes or {}).values(), asked.last_image]
    return next((load_image(picture)[0].shape[:2] for picture in pictures if picture is not None), None)


def frames_of_footage(
    asked: Asked, footage: "Footage | None", length: float | None, stride: int, notes: Notes
) -> int | None:
    """How many frames given footage makes, on the rule. None where it does not say. Raises BadInput for a length
    beside --interpolate, which has one."""
    if footage is None or asked.extend is not None or (length and not asked.interpolate):
        return None
    count = len(footage)
    if asked.interpolate:
        if length:
            raise BadInput(
                "--interpolate makes as many frames as the footage gives. Leave --num_frames and --seconds out."
            )
        count = (count - 1) * asked.interpolate + 1
    frames = nearest_frames(count, stride)[0]
    if frames != count:
        notes.say(f"the footage makes {count} frames; taking {frames} (the model needs {stride}k+1).")
    return frames


def choose_frames(
    num_frames: int | None, seconds: float | None, fps: float, default: int, stride: int, fit: str | None, notes: Notes
) -> int:
    """The frame count: given, or from seconds, or the default; on the rule `stride * k + 1`."""
    if seconds is not None:
        low, high = nearest_frames(max(1, math.floor(positive("seconds", seconds) * fps)), stride)
        asked = seconds * fps
        frames = low if abs(low - asked) <= abs(high - asked) else high
        if num_frames is not None and num_frames != frames:
            raise BadInput(
                f"--seconds {seconds:g} and --num_frames {num_frames} disagree "
                f"({frames} frames at {fps:g} fps). Give one."
            )
        if abs(frames - asked) > 1:
            notes.say(
                f"{seconds:g} s at {fps:g} fps: {frames} frames, {frames / fps:.2f} s (the model needs {stride}k+1)."
            )
        return frames
    if num_frames is None:
        return default
    if fit == "nearest" and num_frames >= 1:
        low, high = nearest_frames(num_frames, stride)
        frames = low if num_frames - low <= high - num_frames else high
        if frames != num_frames:
            notes.say(f"num_frames={num_frames}: this model needs {stride}k+1; taking {frames}.")
        return frames
    return frames_rule(num_frames, stride)


def parse_aspect(aspect: str) -> float:
    """Width over height of `16:9` or `1.78`. Raises BadInput."""
    try:
        width, _, height = str(aspect).replace("/", ":").replace("x", ":").partition(":")
        ratio = float(width) / float(height or 1)
        if not (math.isfinite(ratio) and ratio > 0):
            raise ValueError
    except (ValueError, ZeroDivisionError):
        raise BadInput(f"aspect={aspect!r} is not a ratio. Give width:height, such as 16:9 or 9:16.") from None
    return ratio


def nearest_trained(ratio: float, sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The (height, width) among `sizes` whose shape is nearest to `ratio` (width over height)."""
    return min(sizes, key=lambda size: abs(math.log(size[1] / size[0] / ratio)))


def choose_size(
    height: int | None,
    width: int | None,
    aspect: str | None,
    picture: tuple[int, int] | None,
    defaults: Any,
    multiple: int,
    fit: str | None,
    notes: Notes,
) -> tuple[int, int]:
    """Height and width: given, or the trained size nearest to an aspect or to the image's, or the default."""
    default, sizes = (defaults.height, defaults.width), tuple(defaults.sizes) or ((defaults.height, defaults.width),)
    if aspect is not None and (height is not None or width is not None):
        raise BadInput(f"--aspect {aspect} and --height/--width are two ways to say one thing. Give one.")
    if height is None and width is None:
        if aspect is not None:
            size = nearest_trained(parse_aspect(aspect), sizes)
            notes.say(f"--aspect {aspect}: taking {size[1]}x{size[0]}, the nearest size that the model was trained at.")
            return size
        if picture is not None:
            size = nearest_trained(picture[1] / picture[0], sizes)
            if size != default:
                notes.say(
                    f"the image is {picture[1]}x{picture[0]}: taking {size[1]}x{size[0]}, the nearest size of training."
                )
            return size
        return default
    size = (default[0] if height is None else height, default[1] if width is None else width)
    if fit == "nearest" and min(size) >= 1:
        snapped = tuple(min(nearest_size(side, multiple), key=lambda near, s=side: abs(near - s)) for side in size)
        if snapped != size:
            notes.say(f"{size[1]}x{size[0]}: sides must be multiples of {multiple}; taking {snapped[1]}x{snapped[0]}.")
        return snapped[0], snapped[1]
    return size_rule(*size, multiple)


def token_count(frames: int, height: int, width: int, model: "Model") -> int:
    """Tokens that the denoiser sees."""
    t, h, w, _ = model.vae.latent_shape(frames, height, width)
    pt, ph, pw = model.dit.patch
    return (t // pt) * (h // ph) * (w // pw)


def check_beyond_training(frames: int, height: int, width: int, model: "Model", notes: Notes) -> None:
    """Warns, with numbers, of more tokens or another size than the model was trained on."""
    defaults = model.defaults
    sizes = tuple(defaults.sizes) or ((defaults.height, defaults.width),)
    longest = max(defaults.num_frames, defaults.max_frames)
    most = max(token_count(longest, h, w, model) for h, w in sizes)
    tokens = token_count(frames, height, width, model)
    near = nearest_trained(width / height, sizes)
    if tokens > most:
        pieces = ", or --long window" if frames > longest and "free" in abilities(model) else ""
        notes.warn(
            f"{frames} frames at {width}x{height} is {tokens:,} tokens; this model was trained to {most:,}. "
            f"Expect less order, or use up to {longest} frames at {near[1]}x{near[0]}{pieces}."
        )
    elif (height, width) not in sizes and height * width > max(h * w for h, w in sizes):
        notes.warn(f"{width}x{height} is larger than any size in training. Nearest: {near[1]}x{near[0]}.")
