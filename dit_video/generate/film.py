"""A clip of any length on its way to a file: latents first, then frames, decoded as they are written."""

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, UInt8

from dit_video.core.errors import NonFinite
from dit_video.core.log import Progress
from dit_video.data.video import VideoWriter
from dit_video.generate.clip import check_free, check_writable, save_latents, write_json
from dit_video.generate.decode import Strip, Tiles, decode_frames, how_decoded
from dit_video.generate.unfinished import Unfinished, unfinished

if TYPE_CHECKING:
    from dit_video.generate.pipeline import VideoPipeline
    from dit_video.generate.request import Request


@dataclass
class Film:
    """Streams of latents, footage in front and behind, and how to decode."""

    pipe: "VideoPipeline"
    request: "Request"
    strips: list[Strip]
    about: dict[str, Any]
    tiles: Tiles | None
    slots: int  # latent slots that are decoded at once
    progress: Progress

    @property
    def latents(self) -> Float[np.ndarray, "t h w z"]:
        """Of all streams, one after another; `strips` in the metadata says where each ends."""
        parts = [strip.latents for strip in self.strips]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    @property
    def metadata(self) -> dict[str, Any]:
        stride = self.pipe.model.vae.stride
        lengths = [1 + (len(s.latents) - 1) * stride - s.skip - s.drop for s in self.strips]
        around = sum(len(footage) for footage in (self.request.given.lead, self.request.given.follow) if footage)
        strips = [[len(strip.latents), strip.skip, strip.drop] for strip in self.strips]
        made = {
            "num_frames": sum(lengths) + around,
            "strips": strips,
            "batch": [self.about["prompt"]],
            "decoded": how_decoded(self.tiles, self.slots),
            "frames_sha256": None,
        }
        return self.about | made

    def frames(self) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
        """One by one. Raises Unfinished, which carries the latents, when decoding fails."""
        given = self.request.given
        if given.lead is not None:
            yield from given.lead.frames()
        yield from self._decoded()
        if given.follow is not None:
            yield from given.follow.frames()

    def _decoded(self) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
        pipe, began = self.pipe, time.perf_counter()
        try:
            with pipe.programs.on_mesh():
                for strip in self.strips:
                    for piece in decode_frames(pipe.programs, pipe.params["vae"], strip, self.tiles, self.slots):
                        self._spent(began)
                        yield from piece
                        began = time.perf_counter()
        except NonFinite as error:
            blamed = NonFinite(f"{error}{pipe.blame()}")
            raise unfinished(blamed, "decoding", self.latents[None], self.request) from error
        except (Exception, KeyboardInterrupt) as error:
            raise unfinished(error, "decoding", self.latents[None], self.request) from error

    def _spent(self, began: float) -> None:
        seconds = self.progress.seconds
        seconds["decode"] = seconds.get("decode", 0.0) + time.perf_counter() - began

    def save(self, path: str | os.PathLike[str], *, force: bool = False, latents: bool = False) -> dict[str, Any]:
        """Writes the video as it is decoded, and its JSON; returns the metadata.

        The latents are written first, as NAME.latents.npz, and stay there if a frame cannot be made or written, or with
        `latents`. Raises Unfinished, which carries them.
        """
        path, about, kept = Path(path), self.metadata, None
        try:
            check_free(path, force)
            check_writable(path.parent)
            kept = save_latents(path, self.latents, about)
            about = write_frames(path, self.frames(), self.request.fps, about, lambda: self.pipe.seconds(self.progress))
        except Unfinished as error:
            error.kept = kept
            raise
        except (Exception, KeyboardInterrupt) as error:
            stopped = unfinished(error, "writing", self.latents[None], self.request)
            stopped.kept, stopped.strips = kept, about.get("strips", [])
            raise stopped from error
        if latents:
            save_latents(path, self.latents, about)
        else:
            kept.unlink()
        return about


def write_frames(
    path: Path, frames: Iterable[UInt8[np.ndarray, "H W 3"]], fps: float, about: dict[str, Any], seconds: Callable
) -> dict[str, Any]:
    """A video and its JSON from frames as they come; returns the metadata with their hash and the `seconds` spent."""
    total = hashlib.sha256()
    with VideoWriter(path, fps, about) as video:
        for frame in frames:
            total.update(np.ascontiguousarray(frame))
            video.write(frame)
        video.metadata = about | {"frames_sha256": total.hexdigest(), "seconds": seconds()}
    write_json(path.with_suffix(".json"), video.metadata)
    return video.metadata
