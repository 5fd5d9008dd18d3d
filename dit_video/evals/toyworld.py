"""The suite of prompts: a model makes a clip of each, the judge reads it, and the report says how often they agree."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
from jaxtyping import Float, UInt8

from dit_video.core.errors import BadInput
from dit_video.core.log import Progress
from dit_video.data.toyworld.captions import canonical
from dit_video.data.toyworld.draw import make_scene
from dit_video.data.toyworld.motion import pack, screen_track
from dit_video.evals import quality, references
from dit_video.evals.measure import Reading, measure
from dit_video.evals.prompts import Asked, suite
from dit_video.evals.reconstruction import psnr
from dit_video.evals.score import Marks, mark, means, partners, rates, score

Frames = UInt8[np.ndarray, "T H W 3"]
_DIVERSE = (  # prompts of which several seeds are compared
    {"colour": "red", "shape": "circle", "motion": "still"},
    {"colour": "blue", "shape": "square", "motion": "moves", "direction": "right"},
    {"colour": "green", "shape": "triangle", "motion": "spins"},
    {"colour": "yellow", "shape": "star", "motion": "moves", "direction": "up"},
)
_DRAWS = 64  # scenes of each of them, for the spread of start positions that renders have


@dataclass(frozen=True)
class Sampling:
    """How clips are made; None is the model's own."""

    height: int
    width: int
    num_frames: int
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    solver: str | None = None
    long: str | None = None
    seed: int = 0


class Subject(Protocol):
    """What is evaluated: somebody who makes clips of prompts. `name` and `hash` say who, `fps` is that of the clips."""

    name: str
    hash: str
    fps: float

    def make(
        self, prompts: Sequence[str], how: Sampling, images: Sequence[UInt8[np.ndarray, "H W 3"]] | None = None
    ) -> list[Frames]:
        """A clip for each prompt, in their order; images: its first frame, given."""
        ...

    def reconstruct(self, clips: UInt8[np.ndarray, "N T H W 3"]) -> UInt8[np.ndarray, "N T H W 3"]:
        """Clips sent through the VAE."""
        ...


@dataclass(frozen=True)
class Plan:
    """What is asked. kind: of `prompts.KINDS`. condition: "none", or "image": the first frame is given, of a render.
    seeds: of each of a few prompts, for diversity. free: prompts of the free list, beside the others. references:
    prompts at most that are also rendered, frozen and answered from training. by: axis of `Sampling` -> values that it
    takes in turn, each on the first by_count prompts."""

    count: int
    kind: str = "world"
    heldout: bool = False
    condition: str = "none"
    seeds: int = 0
    free: int = 0
    references: int = 100
    by: dict[str, list[Any]] = field(default_factory=dict)
    by_count: int = 96


class Outcome(NamedTuple):
    """The report, and what it was made of, in the order of the prompts."""

    report: dict[str, Any]
    asked: list[Asked]
    clips: list[Frames]
    marks: list[Marks]


def evaluate(
    subject: Subject, plan: Plan, how: Sampling, progress: Progress,
    keep: Callable[[dict[str, Any], Sequence[Frames]], None] = lambda report, clips: None,
) -> Outcome:  # fmt: skip
    """Makes, reads and scores. `keep` is given the report and the clips before more clips are made for diversity, free
    prompts and other settings. Raises what `subject.make` raises."""
    asked = suite(plan.count, plan.kind, how.height, how.width, plan.heldout)
    which = [i for i, one in enumerate(asked) if one.scene is not None][: plan.references]
    few = [asked[i] for i in which]
    with progress.phase("render"):
        rendered = references.renders([one.scene for one in few], how.num_frames, how.height, how.width)
    with progress.phase("generate"):
        clips = make(subject, asked, how, plan.condition)
    readings = read(clips, subject.fps, progress)
    report: dict[str, Any] = {"suite": "toyworld"} | score(readings, asked)
    ceiling = read(rendered, subject.fps, progress)
    report["reference"] |= _references(few, rendered, ceiling, how, subject.fps, progress)
    own, seen = [clips[i] for i in which], [readings[i] for i in which]
    report["quality"] = _quality(own, seen, rendered, ceiling, few) | _speeds(readings, asked)
    if plan.condition == "image" and few:
        report["first_frame"] = _first_frames(own, rendered)
    keep(report, clips)
    if plan.seeds > 1:
        report["diversity"] = _diversity(subject, plan.seeds, how, progress)
    if plan.free:
        report["free"] = _free(subject, plan.free, how, progress)
    for axis, values in plan.by.items():
        some = asked[: plan.by_count]
        report["splits"][axis] = {
            _label(value): _split(subject, some, changed(how, axis, value), plan, progress) for value in values
        }
    return Outcome(report, asked, clips, [mark(*each) for each in zip(readings, asked, strict=True)])


def make(subject: Subject, asked: Sequence[Asked], how: Sampling, condition: str = "none") -> list[Frames]:
    """A clip for each prompt; with the condition "image" its first frame is that of a render."""
    images = None
    if condition == "image":
        if any(one.scene is None for one in asked):
            raise BadInput("Of some free prompts nothing can be rendered, so no first frame can be given. Use others.")
        images = references.renders([one.scene for one in asked], 1, how.height, how.width)[:, 0]
    return subject.make([one.prompt for one in asked], how, images)


def read(clips: Sequence[Frames], fps: float, progress: Progress) -> list[Reading]:
    """What the judge sees in each."""
    readings = []
    with progress.phase("measure", steps=len(clips)) as tick:
        for clip in clips:
            readings.append(measure(clip, fps))
            tick()
    return readings


def _references(
    asked: Sequence[Asked], rendered: np.ndarray, ceiling: Sequence[Reading], how: Sampling, fps: float,
    progress: Progress,
) -> dict[str, Any]:  # fmt: skip
    """Rows of renders, of frozen renders, and of the nearest clips of training; how many prompts they are of."""
    if not asked:
        return {}
    scenes = references.nearest(asked, how.height, how.width)
    with progress.phase("render"):
        near = references.renders(scenes, how.num_frames, how.height, how.width)
    rows = {"renders": ceiling, "frozen": read(references.frozen(rendered), fps, progress),
            "nearest": read(near, fps, progress)}  # fmt: skip
    return {name: means([mark(*each) for each in zip(row, asked, strict=True)]) for name, row in rows.items()}


def _quality(
    clips: Sequence[Frames],
    readings: Sequence[Reading],
    rendered: np.ndarray,
    ceiling: Sequence[Reading],
    asked: Sequence[Asked],
) -> dict[str, dict[str, float]]:
    """Numbers beside those of renders of the same prompts. Flicker is asked of clips before a static camera: there it
    is not hidden by a pattern that moves."""
    static = [i for i, one in enumerate(asked) if one.around.get("camera", "static") == "static"]
    numbers = {
        "flicker": quality.ratio(*([quality.flicker(each[i]) for i in static] for each in (clips, rendered))),
        "boil": quality.average([quality.boil(clips[i]) for i in static]),
        "jitter": quality.ratio(*([quality.jitter(one) for one in each] for each in (readings, ceiling))),
    }
    return {name: value for name, value in numbers.items() if value is not None}


def _speeds(readings: Sequence[Reading], asked: Sequence[Asked]) -> dict[str, dict[str, float]]:
    """How far speeds are from those of the words, where the motion is the one that was asked for."""
    errors = []
    for reading, one in zip(readings, asked, strict=True):
        for wanted, seen in zip(one.objects, partners(reading, one), strict=True):
            # a prompt of the grammar that says nothing means the middle; a free one leaves it open
            speed = wanted.get("speed", "middle" if one.template else "")
            if reading.readable and seen is not None and speed and "motion" in wanted:
                errors.append(quality.speed_error(seen, wanted["motion"], speed))
    value = quality.average(errors)
    return {} if value is None else {"speed_error": value}


def _first_frames(clips: Sequence[Frames], rendered: np.ndarray) -> dict[str, Any]:
    """How well the given first frame is kept: the mean in dB, the lowest (of which there is no interval), and the share
    of clips over 28 dB."""
    each = [psnr(clip[0], render[0]) for clip, render in zip(clips, rendered, strict=True)]
    over = [float(value > 28) for value in each]
    return {"psnr": quality.average(each), "lowest": round(min(each), 2), "over_28": quality.average(over)}


def _diversity(subject: Subject, seeds: int, how: Sampling, progress: Progress) -> dict[str, Any]:
    """Spread of start positions over seeds of one prompt, in units of min(height, width), and its ratio to that of
    renders, which is next to exact; of how many clips, and in how many something is seen."""
    prompts, real, groups = [], [], []
    for i, given in enumerate(_DIVERSE):
        prompt, places = starts(given, i, how.height, how.width)
        real += list(places)
        groups += [i] * len(places)
        prompts += [prompt] * seeds
    with progress.phase("generate"):
        clips = subject.make(prompts, replace(how, seed=how.seed + 1))
    places = [quality.first_place(reading) for reading in read(clips, subject.fps, progress)]
    known = quality.spread(real, groups)
    made = {"spread": quality.spread_entry(places, prompts), "ratio": quality.spread_entry(places, prompts, known)}
    seen = sum(place is not None for place in places)
    about = {"renders": round(known, 4), "n": len(prompts), "seen": seen}
    return {name: value for name, value in made.items() if value is not None} | about


def starts(given: Mapping[str, str], number: int, height: int, width: int) -> tuple[str, Float[np.ndarray, "N 2"]]:
    """A prompt of these words of one object, and where the renderer lets that object start, scene by scene, in units of
    min(height, width)."""
    scenes = [
        make_scene(np.random.default_rng((number, k)), height=height, width=width, **given) for k in range(_DRAWS)
    ]
    track = screen_track(pack(scenes), np.zeros(1, np.float32), height, width)
    return canonical(scenes[0]), np.stack([track.x[:, 0, 0], track.y[:, 0, 0]], -1) / min(height, width)


def _free(subject: Subject, count: int, how: Sampling, progress: Progress) -> dict[str, Any]:
    """The free prompts. Of some of them nothing in this world does all that is asked: these have no render, and are
    wrong in the ceiling too."""
    asked = suite(count, "free", how.height, how.width)
    possible = [one for one in asked if one.scene is not None]
    rendered = references.renders([one.scene for one in possible], how.num_frames, how.height, how.width)
    ceiling = dict(zip((one.prompt for one in possible), read(rendered, subject.fps, progress), strict=True))
    nothing = Reading(("nothing",), "no scene of this world does that", (), "", "", "")
    with progress.phase("generate"):
        clips = make(subject, asked, how)
    report = score(read(clips, subject.fps, progress), asked)
    best = [mark(ceiling.get(one.prompt, nothing), one) for one in asked]
    return {
        "count": report["count"], "scores": report["scores"], "values": report["values"],
        "reference": report["reference"] | {"renders": means(best)}, "clips": report["clips"],
    }  # fmt: skip


def changed(how: Sampling, axis: str, value: Any) -> Sampling:
    """With another value of an axis of AXES; a size is (height, width)."""
    return replace(how, height=value[0], width=value[1]) if axis == "size" else replace(how, **{AXES[axis]: value})


AXES = {"steps": "num_inference_steps", "guidance": "guidance_scale", "frames": "num_frames", "solver": "solver",
        "size": "height and width"}  # fmt: skip


def _label(value: Any) -> str:
    if isinstance(value, tuple):
        return f"{value[1]}x{value[0]}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _split(subject: Subject, asked: Sequence[Asked], how: Sampling, plan: Plan, progress: Progress) -> dict[str, Any]:
    """The first prompts once more, made in another way."""
    asked = suite(len(asked), plan.kind, how.height, how.width, plan.heldout)
    with progress.phase("generate"):
        clips = make(subject, asked, how, plan.condition)
    readings = read(clips, subject.fps, progress)
    return rates([mark(*each) for each in zip(readings, asked, strict=True)])
