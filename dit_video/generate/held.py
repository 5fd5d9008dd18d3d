"""Weights where they are computed with: each part is placed when it is first used, and what a run needs once is let go.

The text encoder of the released models is larger than most of their denoisers, and it is done before the first step. So
with large models it comes first and goes before the denoiser comes; the second of two denoisers takes the place of the
first where there is no room for both, and a text encoder that is wanted once more that of the denoisers. What was let
go is read again when it is wanted again.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from dit_video.core.log import log

LARGE = 2**30  # bytes from which a part is worth letting go
ONCE = ("text", "image")  # parts that are done before the first step
DENOISERS = ("dit", "dit_2")  # parts that make room


class Held(Mapping[str, Any]):
    """`held[part]` is placed. Iterating goes over what there is, placed or not."""

    def __init__(self, put: Callable[[str], Any], sizes: Mapping[str, int], free: Callable):
        """`put` places a part; `sizes` are about how many bytes of each part then lie on a device; `free()` says how
        many bytes there are for them (None: nobody knows, or enough)."""
        self.placed: dict[str, Any] = {}
        self.put, self.free, self.seconds = put, free, 0.0
        self.bytes = dict(sizes)
        self.large = sum(self.bytes.values()) >= LARGE
        if not self.large:
            for part in self:
                self[part]

    def __getitem__(self, part: str) -> Any:
        if part not in self.placed:
            began = time.perf_counter()
            self.placed[part] = self.put(part)
            self.seconds += time.perf_counter() - began
            log.debug("placed the weights of %s", part)
        return self.placed[part]

    def __iter__(self) -> Iterator[str]:
        return iter(self.bytes)

    def __len__(self) -> int:
        return len(self.bytes)

    @property
    def to_come(self) -> int:
        """Bytes that will be placed beside what is there, at the least: the VAE and a denoiser."""
        if self.free() is None:
            return 0
        missing = {part: size for part, size in self.bytes.items() if part not in self.placed}
        denoiser = 0 if {"dit", "dit_2"} & set(self.placed) else self.bytes["dit"]
        return denoiser + missing.get("vae", 0)

    def let_go(self, part: str) -> None:
        """Drops a part of `ONCE` that is worth it."""
        if part in ONCE and self.bytes[part] >= LARGE:
            self.placed.pop(part, None)

    def with_room(self, part: str) -> Any:
        """A part; without the denoisers from now on, one after the other, as long as there is no room for it beside
        them."""
        for other in DENOISERS:
            free = self.free()
            if part in self.placed or free is None or self.bytes[part] <= free:
                break
            if other != part and self.placed.pop(other, None) is not None:
                log.debug("%s made room for %s", other, part)
        return self[part]

    def broken(self) -> list[str]:
        """The parts here that hold NaN or infinity."""
        return [part for part, tree in self.placed.items() if not _finite(tree)]


def _finite(weights: Any) -> bool:
    return all(np.isfinite(np.asarray(leaf, np.float32)).all() for leaf in jax.tree.leaves(weights))
