"""Pictures of a clip that is still being made."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dit_video.core.errors import BadInput
from dit_video.core.log import log
from dit_video.data.video import frame_grid
from dit_video.generate.decode import SLOTS, Strip, decode_frames, tiles_for

SHOWN = SLOTS + 1  # latent slots of the first clip under way


def preview(paths: Sequence[Path], every: int) -> Callable:
    """A `callback_on_step_end` that writes what the latents are on the way to, every so many steps, as a sheet of
    frames: NAME.preview.png beside the clip's path, of several that are made at once the first one's."""
    from PIL import Image

    if every < 1:
        raise BadInput(f"preview_every={every} must be at least 1.")

    def show(pipe: Any, step: int, t: float, now: dict[str, Any]) -> None:
        if (step + 1) % every:
            return
        target, strip = paths[now["clips"][0]].with_suffix(".preview.png"), Strip(np.asarray(now["data"][0, :SHOWN]))
        try:
            tiles, slots = tiles_for(pipe.model.vae, *strip.latents.shape[1:3], pipe.memory)
            with pipe.programs.on_mesh():
                pieces = list(decode_frames(pipe.programs, pipe.params["vae"], strip, tiles, slots))
            frames = np.concatenate(pieces)
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(frame_grid(frames)).save(target)
        except Exception as error:  # a picture of a clip is not worth the clip
            log.warning("no preview after step %d: %s", step + 1, error)

    return show
