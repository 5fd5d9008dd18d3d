"""Buckets: the few (frames, height, width) that a run compiles for, and which of them a clip goes into."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dit_video.core.errors import BadInput
from dit_video.core.sizes import frames_rule, nearest_frames, nearest_size, size_rule

AT_ONCE = 2**22  # pixels that a device encodes at once: in the widest layer of Wan's VAE they are 1.6 GB


@dataclass(frozen=True)
class Bucket:
    """Pixel frames (4k+1), height and width of the clips that share a compiled program.

    `share` is the part of the clips of a source that can make any size (a renderer); files go where they fit best.
    """

    frames: int = 33
    height: int = 64
    width: int = 64
    share: float = 1.0

    def check(self, multiple: int = 16) -> None:
        """Raises `BadInput` for frames off 4k+1, and for sizes off `multiple` pixels."""
        frames_rule(self.frames)
        size_rule(self.height, self.width, multiple)

    def at_once(self, chunk: int, ways: int = 1) -> int:
        """Clips of this size that are encoded together on `ways` devices: `chunk`, a multiple of these, or as few as
        their pixels ask for; one a device at least."""
        return min(chunk, ways * max(1, AT_ONCE // (self.frames * self.height * self.width)))

    def check_latents(self, stride: int, factor: int, patch: tuple[int, int, int]) -> None:
        """Raises `BadInput` for a size that is not a whole number of a denoiser's patches of the latents of a VAE that
        compresses time by `stride` and space by `factor`, naming the nearest."""
        for name, size, (low, high) in (
            ("frames", self.frames, nearest_frames(self.frames, stride)),
            ("height", self.height, nearest_size(self.height, factor * patch[1])),
            ("width", self.width, nearest_size(self.width, factor * patch[2])),
        ):
            if size != low:
                raise BadInput(
                    f"buckets: {name}={size} of {self.frames}x{self.height}x{self.width} does not divide into this "
                    f"model's latents and patches. Nearest: {low if low == high else f'{low} or {high}'}."
                )


def parse_buckets(text: str) -> tuple[Bucket, ...]:
    """`17x64x64,1x64x64`: frames, height, width. Raises `BadInput`."""
    found = []
    for part in text.split(","):
        numbers = part.strip().split("x")
        if len(numbers) != 3 or not all(n.isdecimal() and int(n) > 0 for n in numbers):
            raise BadInput(f"bucket {part.strip()!r}: wants frames x height x width, such as 17x64x64")
        found.append(Bucket(*map(int, numbers)))
    return tuple(found)


def nearest(buckets: Sequence[Bucket], frames: int, height: int, width: int) -> int | None:
    """Index of the bucket for a clip: of those that are not longer than the clip the one of the nearest aspect (in
    log space, so 2:1 is as far from 1:1 as 1:2 is), then the longest, then the nearest size. None: all are longer."""
    fits = [i for i, b in enumerate(buckets) if b.frames <= frames]
    if not fits:
        return None

    def distance(i: int) -> tuple[float, int, float]:
        b = buckets[i]
        aspect = abs(math.log(b.width / b.height) - math.log(width / height))
        return round(aspect, 3), -b.frames, abs(math.log(b.width * b.height) - math.log(width * height))

    return min(fits, key=distance)


def deal(buckets: Sequence[Bucket], count: int) -> list[int]:
    """`count` bucket indices in the proportions of `share`, the same for every pool: largest remainders."""
    total = sum(b.share for b in buckets)
    if total <= 0 or min(b.share for b in buckets) < 0:
        raise BadInput("buckets: shares must not be negative, and one must be positive")
    exact = [count * b.share / total for b in buckets]
    counts = [int(x) for x in exact]
    for i in sorted(range(len(buckets)), key=lambda i: counts[i] - exact[i])[: count - sum(counts)]:
        counts[i] += 1
    return [i for i, n in enumerate(counts) for _ in range(n)]
