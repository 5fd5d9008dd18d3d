"""How a model is sampled that was trained on these clips: at their rate, their sizes, their lengths."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from dit_video.core.log import log
from dit_video.data.buckets import Bucket
from dit_video.data.loader import Source
from dit_video.weights.model import Defaults


class Shown(NamedTuple):
    """What training shows."""

    sizes: tuple[tuple[int, int], ...]  # (height, width); first that of most videos
    lengths: dict[int, float]  # frames of a crop -> how often, relatively
    fps: float | None  # None: not known, or there are stills alone

    @property
    def longest(self) -> int:
        return max(self.lengths)

    @property
    def usual(self) -> int:
        """The length that comes most often; that of a still only where there is nothing else."""
        return max(self.lengths, key=lambda frames: (frames > 1, self.lengths[frames]))


def shown(data: Source, buckets: Sequence[Bucket], crops: Sequence[tuple[int, float]], stride: int) -> Shown:
    """Of clips in these buckets, cut to crops of (slots, share) of a VAE that compresses time by `stride`."""
    lengths: dict[int, float] = defaultdict(float)
    for bucket in buckets:
        for slots, share in crops:
            if share > 0:
                lengths[min(1 + (slots - 1) * stride, bucket.frames)] += bucket.share * share
    ranked = sorted(buckets, key=lambda bucket: (bucket.frames == 1, -bucket.share))
    sizes = tuple(dict.fromkeys((bucket.height, bucket.width) for bucket in ranked))
    return Shown(sizes, dict(lengths), data.fps if max(lengths, default=1) > 1 else None)


def as_trained(start: Defaults | None, what: Shown) -> Defaults:
    """The defaults of a model that was shown this. `start`: those of the model that it began with, which knows its own
    sizes and lengths still; they stay where training showed them too. None: it began at random."""
    of = start or Defaults()
    (height, width), sizes, keeps = what.sizes[0], what.sizes, of.num_frames in what.lengths
    if start is not None:
        if (start.height, start.width) in what.sizes:
            height, width = start.height, start.width
        if set(what.sizes) <= set(start.sizes):
            sizes = start.sizes
        keeps = what.longest == 1 or start.num_frames <= what.longest  # shown stills alone, it moves as before
    return replace(
        of,
        height=height,
        width=width,
        sizes=sizes,
        num_frames=of.num_frames if keeps else what.usual,
        max_frames=what.longest if start is None else max(what.longest, start.max_frames),
        fps=what.fps or of.fps,
    )


def say_rate(what: Shown, fps: float, whose: str, remedy: str) -> None:
    """Warns where clips of another rate are shown than those that are made: what is learnt moves too fast or slow."""
    if what.fps is not None and what.fps != fps:
        log.warning(
            "the clips have %g frames a second, and %s makes %g: what is learnt will move %g times as fast. %s",
            what.fps, whose, fps, fps / what.fps, remedy,
        )  # fmt: skip
