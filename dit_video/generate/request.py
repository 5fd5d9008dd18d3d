"""What is asked of a model, checked and completed before anything is compiled or computed.

Every message says what is wrong, why, and what to do. Where a rule can be met by a near value, `fit` takes it and says
so; what will work but badly is a warning, or with `strict` an error.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dit_video.core.errors import BadInput
from dit_video.core.log import log
from dit_video.core.sizes import frames_rule, nearest_frames, nearest_size, size_rule
from dit_video.diffusion.noise import check_seed, draw_seed
from dit_video.generate.conditions import Asked, Conditions, gather
from dit_video.generate.mode import Plan, choose, slots_of
from dit_video.generate.picture import RESIZES, Resize, load_image
from dit_video.generate.shots import WARM_UP, Shot, change_slot, shots

if TYPE_CHECKING:
    from dit_video.generate.footage import Footage
    from dit_video.weights.model import Model

TRANSITIONS = ("cut", "carry")
# what `resolve` takes beside what a call of the pipeline names
OPTIONS = (
    "seconds", "aspect", "solver", "shift", "fit", "resize", "strict", "num_videos_per_prompt", "last_image",
    "keyframes", "extend", "before", "loop", "video", "mask", "strength", "interpolate", "transition", "long", "rope",
    "window", "overlap", "noise_order", "cache",
)  # fmt: skip


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
    image_from: dict[str, Any] | None  # of a given first frame: its source, its size there, and how it was fitted
    notes: tuple[str, ...]  # what was changed, and what was warned of
    plan: Plan
    given: Conditions = Conditions()
    prompt_at: tuple[tuple[float, str], ...] = ()  # what is to be seen from these seconds on
    transition: str = "cut"
    noise_order: str = "fresh"
    cache: str = "off"

    @property
    def guided(self) -> bool:
        return self.guidance_scale != 1.0

    @property
    def texts(self) -> tuple[tuple[str, ...], ...]:
        """The prompts of the time line, each for every clip."""
        return (self.prompts, *((text,) * len(self.prompts) for _, text in self.prompt_at))

    def shots(self, stride: int) -> list[Shot]:
        """The streams of latents that a clip is made of."""
        history = 0 if self.given.history is None else slots_of(len(self.given.history), stride)
        changes = tuple(change_slot(seconds, self.fps, stride) for seconds, _ in self.prompt_at)
        return shots(
            slots_of(self.num_frames, stride), stride, changes, self.plan, self.seed, cut=self.transition == "cut",
            history=history, loop=self.given.loop, order=self.noise_order,
        )  # fmt: skip

    def how(self) -> dict[str, Any]:
        """What is out of the ordinary, for the metadata."""
        plan, about = self.plan, {}
        if plan.mode != "single" or plan.stretch:
            about["long"] = {"mode": plan.mode, "why": plan.why, "window": plan.window, "overlap": plan.overlap}
            about["long"] |= {"noise": self.noise_order, "rope": plan.stretch and plan.stretch.method}
        if self.prompt_at:
            about |= {"prompt_at": [list(change) for change in self.prompt_at], "transition": self.transition}
        if self.given.sources and not (len(self.given.sources) == 1 and self.image_from):
            about["given"] = list(self.given.sources)
        about |= {"strength": self.given.strength} if self.given.strength < 1 else {}
        about |= {"loop": True} if self.given.loop else {}
        return about | ({"cache": self.cache} if self.cache != "off" else {})


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
    prompt_at: Sequence[tuple[float, str]] | None = None,
    transition: str = "cut",
    long: str = "single",
    rope: str | None = None,
    window: int | None = None,
    overlap: int | None = None,
    noise_order: str = "fresh",
    cache: str = "off",
    memory: int | None = None,
    **conditions: Any,
) -> Request:
    """The request with the model's defaults filled in. Names and meanings as in the command line.

    `memory`: bytes that are free, which `long="auto"` plans for. Raises BadInput for what cannot be done, and with
    `strict` for what would only be warned of.
    """
    from dit_video.diffusion.cache import caching_named
    from dit_video.diffusion.solvers import solver_named  # loads JAX, which the checks before a model do without
    from dit_video.diffusion.windows import noise_order as check_order

    defaults, notes = model.defaults, Notes(strict)
    if fit not in (None, "nearest"):
        raise BadInput(f"fit={fit!r} is unknown. Use nearest, or leave it out.")
    if resize not in RESIZES:
        raise BadInput(f"resize={resize!r} is unknown. Use {', '.join(RESIZES)}.")
    prompts = check_prompts(prompt, num_videos_per_prompt)
    asked = Asked(image=image, **conditions)
    asked.check(model)
    given_fps = fps
    footage = asked.open(_positive("fps", defaults.fps if fps is None else fps))
    if asked.interpolate:
        given_fps = fps or footage.about["fps"] * asked.interpolate
    fps = _positive("fps", defaults.fps if given_fps is None else given_fps)
    if fps != defaults.fps:
        notes.say(
            f"fps={fps:g}: the model was trained at {defaults.fps:g}; motion plays {fps / defaults.fps:g}x as fast."
        )
    if footage is not None and footage.about["fps"] != fps and not asked.interpolate:
        notes.say(f"footage of {footage.about['fps']:g} fps is brought to {fps:g} fps.")
    usual = frames_of_footage(asked, footage, num_frames or seconds, model.vae.stride, notes) or defaults.num_frames
    frames = choose_frames(num_frames, seconds, fps, usual, model.vae.stride, fit, notes)
    multiple = model.vae.factor * max(model.dit.patch[1:])
    height, width = choose_size(height, width, aspect, shape_of(asked, footage), defaults, multiple, fit, notes)
    given = gather(asked, footage, frames, fps, height, width, resize, model.vae.stride, notes)
    scale = float(defaults.guidance if guidance_scale is None else guidance_scale)
    plan = choose(
        model, frames, height, width, memory, long, guided=scale != 1.0, rope=rope, window=window, overlap=overlap
    )
    if plan.mode == "single":
        check_beyond_training(frames, height, width, model, notes)
    if long == "auto" and plan.mode != "single":
        notes.say(f"--long {plan.mode}: {plan.why}.")
    request = Request(
        prompts=prompts,
        negative_prompt=negative_prompt or "",
        num_frames=frames,
        height=height,
        width=width,
        fps=fps,
        num_inference_steps=defaults.steps if num_inference_steps is None else num_inference_steps,
        guidance_scale=scale,
        solver=solver or defaults.solver,
        shift=_positive("shift", native_shift(model) if shift is None else shift),
        seed=draw_seed() if seed is None else check_seed(int(seed)),
        image_from=image_source(given),
        notes=(),
        plan=plan,
        given=given,
        prompt_at=check_changes(prompt_at or (), prompts, frames, fps, model.vae.stride),
        transition=transition,
        noise_order=noise_order,
        cache=cache,
    )
    solver_named(request.solver)
    caching_named(cache)
    check_order(1, 1, noise_order, 0)
    if transition not in TRANSITIONS:
        raise BadInput(f"transition={transition!r} is unknown. Use {' or '.join(TRANSITIONS)}.")
    if request.solver == "heun" and (cache != "off" or plan.mode == "window" or given.loop):
        raise BadInput("heun evaluates twice a step; caching, windows and loops want unipc, dpmpp_2m or euler.")
    if given.loop and (frames <= model.vae.stride * WARM_UP or (prompt_at and transition == "cut")):
        raise BadInput(f"--loop wants more than {model.vae.stride * WARM_UP} frames, and goes with --transition carry.")
    if given.loop:
        notes.say(f"a loop has {model.vae.stride}k frames: {frames - 1}.")
    if request.num_inference_steps < 1:
        raise BadInput(f"num_inference_steps={request.num_inference_steps} must be at least 1.")
    if not math.isfinite(request.guidance_scale) or request.guidance_scale < 0:
        raise BadInput(f"guidance_scale={request.guidance_scale} must be a number from 0 up; 1 switches guidance off.")
    check_length(
        model, (*dict.fromkeys(text for texts in request.texts for text in texts), request.negative_prompt), notes
    )
    object.__setattr__(request, "notes", tuple(notes))
    return request


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


def image_source(given: Conditions) -> dict[str, Any] | None:
    """Where the first frame is from."""
    first = next((source for source in given.sources if source.get("frame") == 0), None)
    return first and {name: value for name, value in first.items() if name != "frame"}


def check_changes(
    prompt_at: Sequence[tuple[float, str]], prompts: Sequence[str], frames: int, fps: float, stride: int
) -> tuple[tuple[float, str], ...]:
    """Prompts along the time line, in order. Raises BadInput for times out of order or beyond the clip."""
    last, slot, changes = 0.0, 0, []
    if prompt_at and len(prompts) > 1:
        raise BadInput("--prompt_at goes with one prompt: it says what that clip shows later.")
    for seconds, text in prompt_at:
        try:
            seconds = _positive("prompt_at", float(seconds))
        except ValueError:
            raise BadInput(f"--prompt_at {seconds}: give seconds and a prompt, such as 4 'a blue square'.") from None
        check_prompts(text)
        if seconds <= last:
            raise BadInput(f"--prompt_at {seconds:g} comes after {last:g}: times must rise.")
        if seconds >= frames / fps:
            raise BadInput(f"--prompt_at {seconds:g}: the clip ends at {frames / fps:g} s.")
        at = change_slot(seconds, fps, stride)
        if at == slot or at >= slots_of(frames, stride):
            raise BadInput(f"--prompt_at {seconds:g}: nearer than {stride} frames to another change or to the end.")
        last, slot = seconds, at
        changes.append((seconds, text))
    return tuple(changes)


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
        notes.warn(
            f"{frames} frames at {width}x{height} is {tokens:,} tokens; this model was trained to {most:,}. "
            f"Expect less order, or use up to {longest} frames at {near[1]}x{near[0]}."
        )
    elif (height, width) not in sizes and height * width > max(h * w for h, w in sizes):
        notes.warn(f"{width}x{height} is larger than any size in training. Nearest: {near[1]}x{near[0]}.")
