"""What was stopped or failed on the way, with what there is of it: a run's work is not lost."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dit_video.core.errors import DitVideoError, Interrupted, OutOfMemory

if TYPE_CHECKING:
    from dit_video.generate.request import Request


class Unfinished(DitVideoError):
    """Stopped on the way: `latents` (B, t, h, w, z), normalised, are those of the part under way, `clips` are whole.
    The exit code is that of the cause."""

    def __init__(self, message: str, cause: type[DitVideoError], latents: np.ndarray, request: "Request"):
        super().__init__(message)
        self.exit_code, self.cause, self.latents, self.request = cause.exit_code, cause, latents, request
        self.clips: list[Any] = []
        self.kept: Path | None = None  # the latents' file, where they are in one
        self.strips: list[list[int]] = []  # where streams end in the latents, as in a clip's metadata
        self.steps = ""  # how far they are, where they are not finished


def unfinished(error: BaseException, doing: str, latents: np.ndarray, request: "Request") -> Unfinished:
    """What is raised in the place of an error once there are latents to keep."""
    line = str(error).splitlines()[0] if str(error) else type(error).__name__
    if isinstance(error, KeyboardInterrupt):
        return Unfinished(f"interrupted while {doing}", Interrupted, latents, request)
    if isinstance(error, DitVideoError):
        return Unfinished(str(error), type(error), latents, request)
    full = isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)
    return Unfinished(f"{doing} failed ({line})", OutOfMemory if full else DitVideoError, latents, request)
