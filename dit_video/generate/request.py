"""What is asked of a model, checked and completed before anything is compiled or computed.

Every message says what is wrong, why, and what to do. What will work but badly is a warning, or with `strict` an error.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from dit_video.core.errors import BadInput
from dit_video.diffusion.noise import check_seed, draw_seed
from dit_video.generate.conditions import Asked, Conditions, gather
from dit_video.generate.extent import (
    check_beyond_training,
    choose_frames,
    choose_size,
    frames_of_footage,
    positive,
    shape_of,
)
from dit_video.generate.mode import TAIL, Plan, abilities, choose, slots_of
from dit_video.generate.notes import Notes
from dit_video.generate.picture import RESIZES, Resize
from dit_video.generate.shots import WARM_UP, Shot, change_slot, prompts_of, shots

if TYPE_CHECKING:
    from dit_video.diffusion.guidance import Guidance
    from dit_video.weights.model import Model

TRANSITIONS = ("cut", "carry")
# what `resolve` takes beside what a call of the pipeline names
OPTIONS = (
    "seconds", "aspect", "solver", "shift", "fit", "resize", "strict", "num_videos_per_prompt", "last_image",
    "keyframes", "extend", "before", "loop", "video", "mask", "strength", "interpolate", "reference",
    "guidance_interval", "guidance_rescale", "cfg_zero_star", "conditioning_scale", "transition", "long", "rope",
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
    guidance_scale_2: float | None = None  # of the second denoiser, where there are two
    conditioning_scale: float = 1.0  # how strong the hints of a control branch are
    memory: int | None = None  # bytes that were free when it was asked; None: enough
    guidance: "Guidance | None" = None  # how, beside the scales; None: there is none

    @property
    def guided(self) -> bool:
        return self.guidance_scale != 1.0 or self.guidance_scale_2 not in (None, 1.0)

    @property
    def pieces(self) -> bool:
        """Whether a window's size says something of the clip: where it is made in them, or their noise comes again."""
        return self.plan.mode != "single" or self.given.loop or self.noise_order != "fresh"

    @property
    def texts(self) -> tuple[tuple[str, ...], ...]:
        """The prompts of the time line, each for every clip."""
        return (self.prompts, *((text,) * len(self.prompts) for _, text in self.prompt_at))

    def texts_of(self, which: Sequence[int]) -> list[str]:
        """The prompts of some clips (those that there are), by the time line, and the negative prompt for each."""
        clips = [i for i in which if i < len(self.prompts)]
        shown = [texts[i] for texts in self.texts for i in clips]
        return shown + ([self.negative_prompt] * len(clips) if self.guided else [])

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
        if plan.mode != "single" or plan.stretch or self.given.loop or self.noise_order != "fresh":
            about["long"] = {"mode": plan.mode, "why": plan.why, "noise": self.noise_order}
            about["long"] |= {"window": plan.window, "overlap": plan.overlap} if self.pieces else {}
            about["long"] |= {"rope": plan.stretch and plan.stretch.method}
        if self.prompt_at:
            about |= {"prompt_at": [list(change) for change in self.prompt_at], "transition": self.transition}
        if self.given.sources and not (len(self.given.sources) == 1 and self.image_from):
            about["given"] = list(self.given.sources)
        about |= {"strength": self.given.strength} if self.given.strength < 1 else {}
        about |= {"loop": True} if self.given.loop else {}
        about |= {"guidance_scale_2": self.guidance_scale_2} if self.guidance_scale_2 is not None else {}
        about |= {"conditioning_scale": self.conditioning_scale} if self.conditioning_scale != 1 else {}
        if guidance := self.guidance:
            about |= {"guidance_interval": [*guidance.interval]} if guidance.interval != (0.0, 1.0) else {}
            about |= {"guidance_rescale": guidance.rescale} if guidance.rescale else {}
            about |= {"cfg_zero_star": True} if guidance.zero_star else {}
        return about | ({"cache": self.cache} if self.cache != "off" else {})


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
    guidance_scale_2: float | None = None,
    guidance_interval: Sequence[float] | None = None,
    guidance_rescale: float = 0.0,
    cfg_zero_star: bool = False,
    conditioning_scale: float | None = None,
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
    ways: Callable[[int], int] = lambda clips: 1,
    **conditions: Any,
) -> Request:
    """The request with the model's defaults filled in. Names and meanings as in the command line.

    `memory`: bytes that are free, which `long="auto"` and decoding are planned for; `ways`: between how many devices of
    so much memory each the pass of so many clips is split. Raises BadInput for what cannot be
    done, and with `strict` for what would only be warned of.
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
    footage = asked.open(positive("fps", defaults.fps if fps is None else fps))
    if asked.interpolate:
        given_fps = fps or footage.about["fps"] * asked.interpolate
    fps = positive("fps", defaults.fps if given_fps is None else given_fps)
    if fps != defaults.fps and not asked.interpolate:  # the motion between its frames is the footage's own
        notes.say(
            f"fps={fps:g}: the model was trained at {defaults.fps:g}; motion plays {fps / defaults.fps:g}x as fast."
        )
    if footage is not None and footage.about["fps"] != fps and not asked.interpolate:
        notes.say(f"footage of {footage.about['fps']:g} fps is brought to {fps:g} fps.")
    if asked.loop and num_frames and num_frames % model.vae.stride == 0:
        num_frames += 1  # of a ring all slots are whole: the rule's odd frame is made and dropped
    usual = frames_of_footage(asked, footage, num_frames or seconds, model.vae.stride, notes) or defaults.num_frames
    frames = choose_frames(num_frames, seconds, fps, usual, model.vae.stride, fit, notes)
    multiple = model.vae.factor * max(model.dit.patch[1:])
    height, width = choose_size(height, width, aspect, shape_of(asked, footage), defaults, multiple, fit, notes)
    given = gather(asked, footage, frames, fps, height, width, resize, model.vae.stride, notes)
    scale, scale_2 = choose_guidance(model, guidance_scale, guidance_scale_2)
    plan = choose(
        model, frames, height, width, memory, long, guided=scale != 1.0, rope=rope, window=window, overlap=overlap,
        ways=ways(2 if scale != 1.0 else 1),
    )  # fmt: skip
    if prompt_at and "free" not in abilities(model):
        raise BadInput("--prompt_at: this model is given a picture or control for all of a clip; it takes one prompt.")
    if conditioning_scale is not None and not model.dit.vace_layers:
        raise BadInput("--conditioning_scale is for models with a control branch (VACE); this one has none.")
    pieces = plan.mode != "single" and slots_of(frames, model.vae.stride) > plan.window
    if prompt_at and transition == "carry" and not given.loop and not pieces:
        raise BadInput(
            f"--transition carry: a clip of {frames} frames is made in one piece, which takes one prompt. Use --long "
            "window or extend with a smaller --window, or --transition cut."
        )
    if long == "auto":
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
        shift=positive("shift", native_shift(model) if shift is None else shift),
        seed=draw_seed() if seed is None else check_seed(seed),
        image_from=image_source(given),
        notes=(),
        plan=plan,
        given=given,
        prompt_at=check_changes(prompt_at or (), prompts, frames, fps, model.vae.stride),
        transition=transition,
        noise_order=noise_order,
        cache=cache,
        guidance_scale_2=scale_2,
        conditioning_scale=1.0 if conditioning_scale is None else float(conditioning_scale),
        memory=memory,
    )
    how = choose_how(guidance_interval, guidance_rescale, cfg_zero_star, request.guided)
    request = replace(request, guidance=how)
    if plan.mode == "single":  # a loop is made in windows, a clip of several shots in as many passes
        most = max(shot.slots for shot in request.shots(model.vae.stride))
        stretch = plan.stretch and (replace(plan.stretch, slots=most) if most > plan.stretch.trained else None)
        request = replace(request, plan=replace(plan, stretch=None if given.loop else stretch))
        if not given.loop:
            longest = min(frames, 1 + (most - 1) * model.vae.stride)
            check_beyond_training(longest, height, width, model, notes)
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
    check_shown(request, model.vae.stride)
    one_pass = plan.mode == "single" and not request.pieces
    unused = {
        "--window and --overlap: one pass makes all of the clip": one_pass and (window, overlap) != (None, None),
        f"--overlap: chunks go on from {TAIL} latent frames": plan.mode == "extend" and overlap not in (None, TAIL),
        "--rope: windows and chunks reach no further than training":
            long in ("window", "extend") and rope not in (None, "none"),
        "--rope: the clip is no longer than those of training":
            one_pass and rope not in (None, "none") and plan.stretch is None,
        "--resize: no picture and no footage is given": resize != "crop" and not given.sources,
        "--transition: no --prompt_at": transition != "cut" and not (prompt_at or given.loop),
        "--negative_prompt: guidance is off at scale 1": negative_prompt and not request.guided,
    }  # fmt: skip
    for what, told in unused.items():
        if told:
            notes.warn(f"{what}, so it changes nothing.")
    if request.num_inference_steps < 1:
        raise BadInput(f"num_inference_steps={request.num_inference_steps} must be at least 1.")
    check_length(
        model, (*dict.fromkeys(text for texts in request.texts for text in texts), request.negative_prompt), notes
    )
    return replace(request, notes=tuple(notes))


def image_source(given: Conditions) -> dict[str, Any] | None:
    """Where the first frame is from."""
    first = next((source for source in given.sources if source.get("frame") == 0), None)
    return first and {name: value for name, value in first.items() if name != "frame"}


def check_changes(
    prompt_at: Sequence[tuple[float, str]], prompts: Sequence[str], frames: int, fps: float, stride: int
) -> tuple[tuple[float, str], ...]:
    """Prompts along the time line, in order. Raises BadInput for times out of order or beyond the clip."""
    last, slot, changes = 0.0, 0, []
    if prompt_at and len({*prompts}) > 1:
        raise BadInput("--prompt_at goes with one prompt: it says what that clip shows later.")
    for change in prompt_at:
        try:
            seconds, text = change
            seconds = positive("prompt_at", float(seconds))
        except (TypeError, ValueError):
            raise BadInput(f"--prompt_at {change}: give seconds and a prompt, such as 4 'a blue square'.") from None
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


def check_shown(request: Request, stride: int) -> None:
    """Raises BadInput for a prompt of the time line that no pass of the denoiser takes."""
    for shot in request.shots(stride):
        for lost in sorted({number for _, number in shot.prompts} - {*prompts_of(shot, request.plan)}):
            text = request.texts[lost][0]
            at = f"--prompt_at {request.prompt_at[lost - 1][0]:g}" if lost else "the first prompt"
            cut = "" if shot.ring else ", or --transition cut"
            raise BadInput(
                f'{at}, "{text}", would not be seen: no pass of {request.plan.window} latent frames is mostly its own. '
                f"Give it more time, or a smaller --window (from {TAIL + 1}){cut}."
            )


def native_shift(model: "Model") -> float:
    """The shift of the flow that a model wants: its own, or what its scheduler's config says."""
    stored = model.scheduler.get("flow_shift", model.scheduler.get("shift", 1.0))
    return stored if model.defaults.shift is None else model.defaults.shift


def choose_guidance(model: "Model", first: float | None, second: float | None) -> tuple[float, float | None]:
    """The scales of guidance: the denoiser's, and the second's where there are two. A first that is given alone goes
    for both. Raises BadInput for a second where there is one denoiser, and for what is no scale."""
    defaults = model.defaults
    if model.dit_2 is None:
        if second is not None:
            raise BadInput("--guidance_scale_2 is for models of two denoisers (Wan 2.2 A14B); this one has one.")
    elif second is None:
        second = defaults.guidance_2 if first is None and defaults.guidance_2 is not None else first
        second = defaults.guidance if second is None else second
    first = defaults.guidance if first is None else first
    for name, scale in (("guidance_scale", first), ("guidance_scale_2", second)):
        if scale is not None and not (math.isfinite(scale) and scale >= 0):
            raise BadInput(f"{name}={scale} must be a number from 0 up; 1 switches guidance off.")
    return float(first), None if second is None else float(second)


def choose_how(interval: Sequence[float] | None, rescale: float, zero_star: bool, guided: bool) -> "Guidance | None":
    """How guidance is done. Raises BadInput where it is off, and as `Guidance`."""
    from dit_video.diffusion.guidance import Guidance

    if not guided:
        if interval is not None or rescale or zero_star:
            raise BadInput("--guidance_interval, --guidance_rescale and --cfg_zero_star: guidance is off at scale 1.")
        return None
    try:
        low, high = (0.0, 1.0) if interval is None else map(float, interval)
    except (TypeError, ValueError):
        raise BadInput(f"guidance_interval={interval}: give two times, such as 0.3 1.") from None
    return Guidance((low, high), float(rescale), bool(zero_star))


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
