"""Two denoisers in one run: one for the times near noise, the other for those near data (Wan 2.2 A14B)."""

import numpy as np

from dit_video.diffusion.schedule import Instant


def is_second(now: Instant, boundary: float | None) -> bool:
    """Whether the step that begins at `now` is the second denoiser's: below the `boundary` of the model's time. None:
    there is one denoiser.

    Said on the host, so that a step is one program for both, given the weights, the prompt and the scale of guidance of
    the one whose step it is; the other's weights need not be on the device. Reference: `boundary_ratio` of
    `WanPipeline`.
    """
    return boundary is not None and bool(now.model < np.float32(boundary))
