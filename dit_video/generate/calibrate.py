"""Measures how a model's velocity changes along the way, for step caching, and keeps what was measured."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8

from dit_video.core.errors import BadInput
from dit_video.core.files import cache_folder, replacing
from dit_video.core.log import log
from dit_video.diffusion.cache import Curve, measured
from dit_video.diffusion.guidance import Guidance
from dit_video.diffusion.schedule import Schedule
from dit_video.generate.conditions import Conditions
from dit_video.generate.mode import wanted
from dit_video.generate.unfinished import Unfinished

if TYPE_CHECKING:
    from dit_video.generate.pipeline import VideoPipeline
    from dit_video.generate.request import Request
    from dit_video.weights.model import Model

STEPS = 32
PROMPT = "a red circle moves right"


def curve_for(pipe: "VideoPipeline", request: "Request") -> Curve:
    """The curve of a model at a request's size and guidance: what an earlier run has kept in the user's cache, or
    measured now and kept there."""
    asked = usual(pipe.model, request)
    size = f"{asked.num_frames}x{asked.height}x{asked.width}"
    scales = [f"{scale:g}" for scale in (asked.guidance_scale, asked.guidance_scale_2) if scale is not None]
    file = cache_folder("curves") / f"{pipe.hash}_{size}_{'_'.join(scales)}.json"
    if (found := _kept(file)) is not None:
        return found
    log.warning(
        "--cache: how the velocity of this model changes at %s with guidance %s was never measured. It is now, which "
        "costs %d steps (this clip has %d), and kept in %s for the next time.",
        size, " and ".join(scales), STEPS, request.num_inference_steps, file,
    )  # fmt: skip
    curve = calibrate(pipe, [asked])
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as partial:
            partial.write_text(json.dumps(rows(curve)) + "\n")
    except (OSError, BadInput) as error:
        log.warning("it cannot be kept there, and will be measured again: %s", error)
    return curve


def _kept(file: Path) -> Curve | None:
    """None for a file that is not there or broken."""
    try:
        columns = [tuple(map(float, column)) for column in zip(*json.loads(file.read_text()), strict=True)]
        return Curve(*columns)
    except (OSError, ValueError, TypeError):
        return None


def usual(model: "Model", request: "Request") -> "Request":
    """A clip of a request's size, as long as a pass of it, and with its guidance. All else is the same for every
    request, or a clip would depend on those that were made before it: prompt, seed, and the pictures that a model
    wants."""
    stride = model.vae.stride
    slots = max(shot.slots for shot in request.shots(stride))
    slots = min(slots, request.plan.window) if request.plan.mode != "single" or request.given.loop else slots
    frames, (height, width) = 1 + (slots - 1) * stride, (request.height, request.width)
    names = wanted(model)
    shown = [(0, drawn(0.3, height, width)), (frames - 1, drawn(0.7, height, width))][: len(names)]
    return replace(
        request, prompts=(PROMPT,), negative_prompt="", num_frames=frames, seed=0, image_from=None, notes=(),
        plan=replace(request.plan, mode="single"), given=Conditions(pictures=tuple(shown)), prompt_at=(),
        transition="cut", noise_order="fresh",
    )  # fmt: skip


def drawn(at: float, height: int, width: int) -> UInt8[np.ndarray, "H W 3"]:
    """A red circle on grey, its middle at a part of the width."""
    y, x = np.mgrid[:height, :width]
    inside = (y - height / 2) ** 2 + (x - at * width) ** 2 < (min(height, width) / 5) ** 2
    return np.where(inside[..., None], (220, 40, 40), 128).astype(np.uint8)


def calibrate(pipe: "VideoPipeline", requests: "Sequence[Request]", steps: int = STEPS) -> Curve:
    """The curve of a model, from the first clip of each request, with plain guidance. `weights.model.Defaults.cache`
    keeps its rows. What stops it is raised as itself: there are no latents that a user would want."""
    runs = []
    for asked in requests:
        request = replace(asked, prompts=asked.prompts[:1], num_inference_steps=steps, solver="euler", cache="off")
        request = replace(request, guidance=asked.guidance and Guidance())
        flow = Schedule(steps, request.shift, "euler").instants().flow
        times: list[float] = []
        velocities: list[Any] = []

        def note(
            _: Any, step: int, t: float, now: dict[str, Any], times=times, velocities=velocities, flow=flow
        ) -> None:
            if len(times) < steps - 1:  # the slope of the last step ends at zero: it is never asked for
                times.append(t / 1000)
                velocities.append((now["latents"] - now["data"]) / flow[step + 1])

        try:
            pipe.run(request, callback=note, output_type="latent")
        except Unfinished as error:
            raise error.cause(str(error)) from None
        runs.append((np.array(times), velocities))
    return measured(runs)


def rows(curve: Curve) -> tuple[tuple[float, float, float], ...]:
    """As `Defaults.cache` has them."""
    return tuple(zip(curve.t, curve.change, curve.scale, strict=True))
