"""What a call of the pipeline gives back."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dit_video.core.errors import BadInput
from dit_video.generate.clip import Clip

OutputType = Literal["uint8", "np", "latent"]


@dataclass(frozen=True)
class Output:
    """Clips in the order of the prompts."""

    clips: list[Clip]
    seed: int
    output_type: OutputType = "uint8"

    @property
    def frames(self) -> list[np.ndarray]:
        """One array a clip: uint8 (T, H, W, 3); float32 in [0, 1] for "np"; normalised latents (t, h, w, z) for
        "latent"."""
        if self.output_type == "latent":
            return [clip.latents for clip in self.clips]
        if self.output_type == "np":
            return [clip.frames.astype(np.float32) / 255 for clip in self.clips]
        return [clip.frames for clip in self.clips]

    @property
    def metadata(self) -> list[dict[str, Any]]:
        """One dict a clip."""
        return [clip.metadata for clip in self.clips]

    def save(self, path: str | os.PathLike[str], *, force: bool = False) -> list[Path]:
        """Writes the clip to `path`; several to NAME_0, NAME_1, ... Each with its JSON beside it."""
        if self.output_type == "latent":
            raise BadInput('output_type="latent" has no frames to save. Leave it out.')
        path = Path(path)
        paths = [path] if len(self.clips) == 1 else [path.with_stem(f"{path.stem}_{i}") for i in range(len(self.clips))]
        return [clip.save(p, force=force) for clip, p in zip(self.clips, paths, strict=True)]
