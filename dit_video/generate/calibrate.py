"""Measures how a model's velocity changes along the way, for step caching."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dit_video.diffusion.cache import Curve, measured
from dit_video.diffusion.guidance import Guidance
from dit_video.diffusion.schedule import Schedule
from dit_video.generate.unfinished import Unfinished

if TYPE_CHECKING:
    from dit_video.generate.pipeline import VideoPipeline
    from dit_video.generate.request import Request

STEPS = 32


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
