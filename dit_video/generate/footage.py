"""Given footage: a video file as frames of the clip's size and rate, read one by one."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from dit_video.core.errors import BadInput
from dit_video.data.video import iterate_video, resample_indices
from dit_video.generate.picture import Resize, fit_image

Frame = UInt8[np.ndarray, "H W 3"]


@dataclass(frozen=True)
class Footage:
    """A video file, resampled in time and fitted in space. Nothing of it is in memory."""

    path: Path
    order: Int[np.ndarray, "N"]  # which frame of the file each frame is
    about: dict[str, Any]  # what was read and how it was converted
    size: tuple[int, int] | None = None  # height and width that it is fitted to
    resize: Resize = "crop"
    ground: str = "black"  # what is padded with

    def __len__(self) -> int:
        return len(self.order)

    def fitted(self, height: int, width: int, resize: Resize, ground: str = "black") -> "Footage":
        """The same in another size."""
        about = {**self.about, "resize": resize}
        return replace(self, size=(height, width), resize=resize, ground=ground, about=about)

    def frames(self, start: int = 0, stop: int | None = None) -> Iterator[Frame]:
        """Frames `start` to `stop` of this clip."""
        wanted = self.order[start:stop]
        place = 0
        for number, (frame, *_) in enumerate(iterate_video(self.path)):
            while place < len(wanted) and wanted[place] == number:
                yield frame if self.size is None else fit_image(frame, *self.size, self.resize, self.ground)
                place += 1
            if place == len(wanted):
                return

    def read(self, start: int = 0, stop: int | None = None) -> UInt8[np.ndarray, "T H W 3"]:
        return np.stack(list(self.frames(start, stop)))


def open_footage(path: str | os.PathLike[str], fps: float | None, name: str) -> Footage:
    """Reads through the file once for its times. `fps` None keeps the file's rate. `name` is the flag, for messages.

    Raises BadInput for what is not a video, MissingError for a file that is not there.
    """
    times, about = [], {}
    for frame, time, rate, _ in iterate_video(path):
        times.append(time)
        about = {name: str(path), "fps": rate or 1.0, "height": frame.shape[0], "width": frame.shape[1]}
    if not times:
        raise BadInput(f"--{name} {path}: no frame in it. Is the file broken?")
    order = np.arange(len(times)) if fps is None or len(times) == 1 else resample_indices(np.asarray(times), fps)
    return Footage(Path(path), order, about | {"frames": len(times)})
