"""The moments of a sampling run: pairs of flow time for the solver and time as the model wants it.

Made on the host in float64, handed to the compiled step as numbers, so any number of steps is one program.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from dit_video.core.errors import BadInput
from dit_video.diffusion.flow import warp

Kind = Literal["unipc", "euler", "even"]
TRAIN_TIMES = 1000  # the reference counts time in 0..1000
BELOW_ONE = 1e-6  # multistep solvers take log(1 - t): the first moment is just below 1


class Instant(NamedTuple):
    """One moment, as scalars or (in `Schedule`) as arrays over steps + 1 moments."""

    flow: Float[np.ndarray, "..."]  # 1 noise .. 0 data, what the solver integrates over
    model: Float[np.ndarray, "..."]  # in the same unit; the model multiplies by 1000


@dataclass(frozen=True)
class Schedule:
    """`steps` intervals from noise to data.

    - `unipc`: the reference of the Wan pipelines, UniPCMultistepScheduler(use_flow_sigmas, flow_shift) of diffusers;
      there the model's time is cut to an integer of 0..999.
    - `euler`: FlowMatchEulerDiscreteScheduler(shift) of diffusers; the model's time is the flow time. (That scheduler
      shifts its smallest time twice; so does this.)
    - `even`: warp(1 .. 0) in even steps, exact times.
    """

    steps: int
    shift: float = 3.0
    kind: Kind = "unipc"

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise BadInput(f"num_inference_steps={self.steps} must be at least 1.")
        if not self.shift > 0:
            raise BadInput(f"shift={self.shift} must be above zero.")

    def instants(self) -> Instant:
        """All steps + 1 moments, float32; the last is (0, 0)."""
        model = None
        if self.kind == "unipc":
            sigmas = warp(np.linspace(1, 1 / TRAIN_TIMES, self.steps + 1)[:-1], self.shift)
            if abs(sigmas[0] - 1) < BELOW_ONE:
                sigmas[0] -= BELOW_ONE
            model = (sigmas * TRAIN_TIMES).astype(np.int64) / TRAIN_TIMES
        elif self.kind == "euler":
            smallest = warp(np.float32(1 / TRAIN_TIMES), np.float32(self.shift))
            sigmas = warp(np.linspace(TRAIN_TIMES, float(smallest) * TRAIN_TIMES, self.steps) / TRAIN_TIMES, self.shift)
        elif self.kind == "even":
            sigmas = warp(np.linspace(1, 0, self.steps + 1)[:-1], self.shift)
            sigmas[0] -= BELOW_ONE
        else:
            raise BadInput(f"schedule {self.kind!r} is unknown. Use unipc, euler or even.")
        flow = np.append(sigmas, 0.0).astype(np.float32)
        return Instant(flow, flow if model is None else np.append(model, 0.0).astype(np.float32))

    def pairs(self) -> list[tuple[Instant, Instant]]:
        """(now, then) of each step."""
        flow, model = self.instants()
        moments = [Instant(f, m) for f, m in zip(flow, model, strict=True)]
        return list(pairwise(moments))
