"""What is asked of a model, checked and completed before anything is compiled or computed.

Every message says what is wrong, why, and what to do. Where a rule can be met by a near value, `fit` takes it and says
so; what will work but badly is a warning, or with `strict` an error.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import UInt8

from dit_video.core.errors import BadInput
from dit_video.core.log import log
from dit_video.core.sizes import frames_rule, nearest_frames, nearest_size, size_rule
from dit_video.diffusion.noise import check_seed, draw_seed

if TYPE_CHECKING:
    from dit_video.weights.model import Model

Resize = Literal["crop", "pad", "stretch"]
RESIZES = ("crop", "pad", "stretch")


@dataclass(frozen=True)
class Request:
    """A checked request. One clip a prompt."""

    prompts: tuple[str, ...]
    negative_prompt: str
    num_frames: int
    height: int
    width: int
    fps: float
    num_inference_steps: int
    guidance_scale: float
    solver: str
    shift: float
    seed: int
    image: UInt8[np.ndarray, "H W 3"] | None  # of the clip's size
    image_from: dict[str, Any] | None  # its source, its size there, and how it was fitted
    notes: tuple[str, ...]  # what was changed, and what was warned of

    @property
    def guided(self) -> bool:
        return self.guidance_scale != 1.0


class Notes(list):
    """Collects what a user should know; `strict` turns warnings into errors."""

    def __init__(self, strict: bool):
        super().__init__()
        self.strict = strict

    def say(self, text: str) -> None:
        log.info(text)
        self.append(text)

    def warn(self, text: str) -> None:
        if self.strict:
            raise BadInput(text)
        log.warning(text)
        self.append(text)


def resolve(
    model: "Model",
    prompt: str | Sequence[str],
    *,
    negative_prompt: str | None = None,
    image: Any = None,
    num_frames: int | None = None,
    seconds: float | None = None,
    height: int | None = None,
    width: int | None = None,
    aspect: str | None = None,
    fps: float | None = None,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    solver: str | None = None,
    shift: float | None = None,
    seed: int | None = None,
    num_videos_per_prompt: int = 1,
    fit: str | None = None,
    resize: Resize = "crop",
    strict: bool = False,
) -> Request:
    """The request with the model's defaults filled in. `fps`, `seconds` and sizes as in the command line.

    Raises BadInput for what cannot be done, and with `strict` for what would only be warned of.
    """
    from dit_video.diffusion.solvers import solver_named  # loads JAX, which the checks before a model do without

    defaults, notes = model.defaults, Notes(strict)
    if fit not in (None, "nearest"):
        raise BadInput(f"fit={fit!r} is unknown. Use nearest, or leave it out.")
    prompts = check_prompts(prompt, num_videos_per_prompt)
    picture, source = (None, None) if image is None else load_image(image)
    fps = _positive("fps", defaults.fps if fps is None else fps)
    if fps != defaults.fps:
        notes.say(
            f"fps={fps:g}: the model was trained at {defaults.fps:g}; motion plays {fps / defaults.fps:g}x as fast."
        )
    frames = choose_frames(num_frames, seconds, fps, defaults.num_frames, model.vae.stride, fit, notes)
    multiple = model.vae.factor * max(model.dit.patch[1:])
    height, width = choose_size(height, width, aspect, picture, defaults, multiple, fit, notes)
    check_beyond_training(frames, height, width, model, notes)
    if picture is not None:
        if frames == 1:
            raise BadInput("num_frames=1 with an image leaves nothing to generate: the image is the first frame.")
        picture = fit_image(picture, height, width, resize)
        source = {**source, "resize": resize}
    request = Request(
        prompts=prompts,
        negative_prompt=negative_prompt or "",
        num_frames=frames,
        height=height,
        width=width,
        fps=fps,
        num_inference_steps=defaults.steps if num_inference_steps is None else num_inference_steps,
        guidance_scale=float(defaults.guidance if guidance_scale is None else guidance_scale),
        solver=solver or defaults.solver,
        shift=_positive("shift", native_shift(model) if shift is None else shift),
        seed=draw_seed() if seed is None else check_seed(int(seed)),
        image=picture,
        image_from=source,
        notes=(),
    )
    solver_named(request.solver)
    if request.num_inference_steps < 1:
        raise BadInput(f"num_inference_steps={request.num_inference_steps} must be at least 1.")
    if not math.isfinite(request.guidance_scale) or request.guidance_scale < 0:
        raise BadInput(f"guidance_scale={request.guidance_scale} must be a number from 0 up; 1 switches guidance off.")
    check_length(model, (*prompts, request.negative_prompt), notes)
    object.__setattr__(request, "notes", tuple(notes))
    return request


def native_shift(model: "Model") -> float:
    """The shift of the flow that a model wants: its own, or what its scheduler's config says."""
    stored = model.scheduler.get("flow_shift", model.scheduler.get("shift", 1.0))
    return stored if model.defaults.shift is None else model.defaults.shift


def _positive(name: str, value: float) -> float:
    if not (math.isfinite(value) and value > 0):
        raise BadInput(f"{name}={value} must be a number above zero.")
    return float(value)


def check_prompts(prompt: str | Sequence[str], videos_per_prompt: int = 1) -> tuple[str, ...]:
    """The prompts, each repeated. Raises BadInput for none, for an empty one, for what is not text."""
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not prompts:
        raise BadInput('No prompt. Say what should be seen: dit-video generate "a red circle moves right".')
    for text in prompts:
        if not isinstance(text, str):
            raise BadInput(f"A prompt must be text, got {type(text).__name__}.")
        if not text.strip():
            raise BadInput('The prompt is empty. Say what should be seen: "a red circle moves right".')
    if videos_per_prompt < 1:
        raise BadInput(f"num_videos_per_prompt={videos_per_prompt} must be at least 1.")
    return tuple(text for text in prompts for _ in range(videos_per_prompt))


def check_length(model: "Model", prompts: Sequence[str], notes: Notes) -> None:
    """Shows what of a prompt is beyond the tokens that the model takes."""
    limit = model.dit.text_len
    for text, dropped in zip(prompts, model.tokenizer.encode(prompts, max_length=limit).dropped, strict=True):
        if dropped:
            count = len(model.tokenizer.pieces(text)) + 1
            fix = "Shorten it." if notes.strict else "--strict makes this an error."
            notes.warn(f'Prompt is {count} tokens, limit {limit}. Dropped: "{dropped}". {fix}')


def choose_frames(
    num_frames: int | None, seconds: float | None, fps: float, default: int, stride: int, fit: str | None, notes: Notes
) -> int:
    """The frame count: given, or from seconds, or the default; on the rule `stride * k + 1`."""
    if seconds is not None:
        low, high = nearest_frames(max(1, math.floor(_positive("seconds", seconds) * fps)), stride)
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
    picture: np.ndarray | None,
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
            size = nearest_trained(picture.shape[1] / picture.shape[0], sizes)
            if size != default:
                shape = f"{picture.shape[1]}x{picture.shape[0]}"
                notes.say(f"the image is {shape}: taking {size[1]}x{size[0]}, the nearest size of training.")
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
        notes.warn(
            f"{frames} frames at {width}x{height} is {tokens:,} tokens; this model was trained to {most:,}. "
            f"Expect less order, or use up to {longest} frames at {near[1]}x{near[0]}."
        )
    elif (height, width) not in sizes and height * width > max(h * w for h, w in sizes):
        notes.warn(f"{width}x{height} is larger than any size in training. Nearest: {near[1]}x{near[0]}.")


def load_image(image: Any) -> tuple[UInt8[np.ndarray, "H W 3"], dict[str, Any]]:
    """Pixels of a path, a PIL image, or a uint8 array (H, W, 3), upright and on white where it is transparent."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    source: dict[str, Any] = {"image": "given"}
    if isinstance(image, (str, os.PathLike)):
        path = Path(image)
        source["image"] = str(path)
        if not path.is_file():
            raise BadInput(f"image {path}: no such file.")
        try:
            with Image.open(path) as opened:
                opened.load()
                image = opened
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
            raise BadInput(f"image {path} cannot be read ({error}). Use a PNG, JPEG or WebP file.") from error
    if isinstance(image, Image.Image):
        image = ImageOps.exif_transpose(image)
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            image = image.convert("RGBA")
            ground = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(ground, image)
        image = np.asarray(image.convert("RGB"))
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
        raise BadInput(f"An image must be a path, a PIL image, or uint8 (H, W, 3); got {image.dtype} {image.shape}.")
    source["height"], source["width"] = image.shape[:2]
    return image, source


def fit_image(image: UInt8[np.ndarray, "H W 3"], height: int, width: int, resize: Resize) -> UInt8[np.ndarray, "H W 3"]:
    """The image at the clip's size: `crop` what sticks out (centred), `pad` with black, or `stretch`."""
    from PIL import Image, ImageOps

    if resize not in RESIZES:
        raise BadInput(f"resize={resize!r} is unknown. Use {', '.join(RESIZES)}.")
    if image.shape[:2] == (height, width):
        return image
    picture, size = Image.fromarray(image), (width, height)
    if resize == "crop":
        picture = ImageOps.fit(picture, size, Image.Resampling.LANCZOS)
    elif resize == "pad":
        picture = ImageOps.pad(picture, size, Image.Resampling.LANCZOS, color=(0, 0, 0))
    else:
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    return np.asarray(picture)
