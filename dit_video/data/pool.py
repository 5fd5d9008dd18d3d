"""Latents in a pool: encoding a clip costs as much as a training step, so it is encoded once and used several times.

Pool number `p` is clips `p * clips .. (p + 1) * clips` of the reader, encoded, and used in fresh random orders before
the next is made. It is a pure function of (seed, p): a resumed run makes it again and goes on with the same batches.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import grain
import jax
import numpy as np

from dit_video.core.errors import BadInput
from dit_video.core.log import log
from dit_video.data.loader import Reader, Sample, deal_draws, generator, same_processes, stack

_BATCH, _ORDER, _BUCKETS, _PICTURES = 1, 2, 3, 4  # what a generator is for


OTHER_DATA = (
    "the checkpoint was made with other data or other buckets, and the order of clips cannot be kept: start a new run "
    "from its weights (--init RUN --workdir NEW)"
)


@dataclass(frozen=True)
class Pool:
    """Size and use of a pool."""

    clips: int = 1024  # over all processes
    reuse: float = 4.0  # how often a clip is used before the next pool is made
    pictures: int = 2  # frames of each clip that are encoded alone too, as given pictures are
    chunk: int = 16  # clips encoded at once, fewer of large ones
    threads: int = 2  # that read files


class Encoded(NamedTuple):
    """Clips of one bucket, encoded, on the host."""

    latents: np.ndarray  # (n, T', H', W', z) float32, normalised
    pictures: np.ndarray  # (n, P, H', W', z): frames encoded alone
    picture_frames: np.ndarray  # (n, P) int32: which frames; empty (P = 0) for stills
    ids: np.ndarray  # (n, S) int32
    length: np.ndarray  # (n,) int32
    beside: np.ndarray | None = None  # (n, T', H', W', M): mask and given frames, channels behind the noise's
    image: np.ndarray | None = None  # (n, I, E): an image encoder's tokens of the given frames

    def take(self, index: np.ndarray) -> "Encoded":
        return jax.tree.map(lambda x: x[index], self)


# (arrays of a chunk, bucket, (n, P) frame numbers) -> latents, pictures, and where there are such `beside` and `image`
Encode = Callable[[Any, int, np.ndarray], tuple[Any, ...]]
Tokenize = Callable[[list[str]], tuple[np.ndarray, np.ndarray]]
Beat = Callable[[], None]  # called when a piece of the work is done; what it raises ends the work


def unheard() -> None:
    """The `Beat` of who has nobody to tell."""


def draw_pictures(rng: np.random.Generator, clips: int, pictures: int, frames: int) -> np.ndarray:
    """Numbers of the frames that are encoded alone: (clips, pictures), each in 1..frames-1.

    The first of a clip lies in the first half: a short crop has a picture of its own. One in three is the frame at
    the end of its part, which is what a given last frame is.
    """
    if frames == 1 or pictures == 0:
        return np.zeros((clips, 0), np.int32)
    ends = np.full(pictures, frames - 1)
    ends[0] = max(1, (frames - 1) // 2)
    numbers = rng.integers(1, ends + 1, (clips, pictures))
    return np.where(rng.random((clips, pictures)) < 1 / 3, ends, numbers).astype(np.int32)


class PoolStream:
    """Batches of encoded clips of one bucket for ever: `(bucket, Encoded, rng)`, where `rng` is a generator that
    belongs to this batch alone and is the same on every process. State: the number of the pool and of the batch in it,
    and how many processes the clips were dealt to. `ways`: devices that share a chunk."""

    def __init__(
        self,
        reader: Reader,
        encode: Encode,
        tokenize: Tokenize,
        settings: Pool,
        batch: int,
        seed: int,
        process: int = 0,
        processes: int = 1,
        ways: int = 1,
        beat: Beat = unheard,
    ):
        deal_draws(reader, 0, 1, process, processes)  # said now, not after the VAE was compiled
        if settings.clips % processes:
            raise BadInput(f"pool.clips={settings.clips} does not divide over {processes} processes")
        if settings.clips < batch * processes / max(settings.reuse, 1e-9):
            raise BadInput(
                f"pool.clips={settings.clips}: a batch of {batch} would use a clip more than {settings.reuse:g} times"
            )
        self.reader, self.encode, self.tokenize, self.settings = reader, encode, tokenize, settings
        self.batch, self.seed, self.process, self.processes, self.ways = batch, seed, process, processes, ways
        self.beat, self.began = beat, False
        self.pool = self.place = 0
        self.dealt: Counter[int | None] = Counter()  # clips of each bucket; None: the only one
        self.made: tuple[int, dict[int, Encoded], list[tuple[int, np.ndarray]]] | None = None

    def state(self) -> dict[str, Any]:
        return {"pool": self.pool, "batch": self.place, "processes": self.processes}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on after the batch at which `state` was taken. Raises `BadInput` when the order cannot be kept."""
        if "pool" not in state:
            raise BadInput(OTHER_DATA)
        same_processes(state, self.processes)
        self.pool, self.place, self.made = int(state["pool"]), int(state["batch"]), None

    def __iter__(self) -> Iterator[tuple[int, Encoded, np.random.Generator]]:
        return self

    def __next__(self) -> tuple[int, Encoded, np.random.Generator]:
        clips, order = self._pool()
        while self.place >= len(order):
            self.pool, self.place = self.pool + 1, 0
            clips, order = self._pool()
        bucket, index = order[self.place]
        rng = generator(_BATCH, self.seed, self.pool, 0, self.place)
        self.place += 1
        return bucket, clips[bucket].take(index), rng

    def _pool(self) -> tuple[dict[int, Encoded], list[tuple[int, np.ndarray]]]:
        if self.made is None or self.made[0] != self.pool:
            self.made = None  # the old one's memory goes before the new one's comes
            clips = self.make(self.pool)
            self.made = (self.pool, clips, self._order(clips))
        return self.made[1:]

    def _order(self, clips: dict[int, Encoded]) -> list[tuple[int, np.ndarray]]:
        """Buckets in random order, and in each bucket its clips in one permutation after the other."""
        rng = generator(_ORDER, self.seed, self.pool, self.process)
        of_bucket: dict[int, list[np.ndarray]] = {}
        for bucket, encoded in sorted(clips.items()):
            n = len(encoded.ids)
            # As many batches on every process, however many of its clips could not be read.
            whole = n if self.processes == 1 else self.dealt.get(bucket, self.dealt.get(None, 0))
            batches = -(-int(np.ceil(whole * max(self.settings.reuse, 1.0))) // self.batch)
            passes = -(-batches * self.batch // n)
            order = np.concatenate([rng.permutation(n) for _ in range(passes)])
            of_bucket[bucket] = list(order[: batches * self.batch].reshape(batches, self.batch))
        buckets = np.array([b for b, batches in of_bucket.items() for _ in batches])
        generator(_BUCKETS, self.seed, self.pool).shuffle(buckets)
        return [(int(b), of_bucket[int(b)].pop(0)) for b in buckets]

    def make(self, pool: int) -> dict[int, Encoded]:
        """Loads and encodes pool number `pool`. Raises `BadInput` when none of its clips can be read."""
        first, count = pool * self.settings.clips, self.settings.clips
        mine = deal_draws(self.reader, first, count, self.process, self.processes)
        say = log.debug if self.began else log.info  # at the start nothing else is heard for minutes
        say("encoding %d clips, from number %d on", len(mine), first)
        self.began = True
        self.dealt = Counter(self.reader.bucket(draw) for draw in mine)
        draws = grain.MapDataset.source(mine).map(self.reader.load)
        options = grain.ReadOptions(self.settings.threads, min(len(mine), 16 * self.settings.threads))
        of_bucket: dict[int, list[Sample]] = {}
        for sample in draws.to_iter_dataset(options):
            of_bucket.setdefault(sample.bucket, []).append(sample)
            self.beat()
        if not of_bucket:
            raise BadInput(f"none of {len(mine)} clips could be read: the data holds no file that decodes")
        return {b: self._encode(samples, b, pool) for b, samples in sorted(of_bucket.items())}

    def _encode(self, samples: list[Sample], bucket: int, pool: int) -> Encoded:
        rng = generator(_PICTURES, self.seed, pool, self.process, bucket)
        n, chunk = len(samples), self.reader.buckets[bucket].at_once(self.settings.chunk, self.ways)
        clips = stack(samples)
        numbers = draw_pictures(rng, n, self.settings.pictures, self.reader.buckets[bucket].frames)
        chunks = []
        for start in range(0, n, chunk):
            # The last chunk is filled up with its first clips, so that one program serves all.
            index = np.resize(np.arange(start, min(start + chunk, n)), chunk)
            chunks.append(self.encode(jax.tree.map(lambda x, i=index: x[i], clips.arrays), bucket, numbers[index]))
            self.beat()
        ids, length = self.tokenize(list(clips.captions))
        z, p, *given = jax.tree.map(lambda *xs: np.concatenate([np.asarray(x) for x in xs])[:n], *chunks)
        if not np.isfinite(z).all():
            raise BadInput("the VAE made NaN or infinity of a clip: its weights are broken, or the clip's pixels are")
        return Encoded(z, p, numbers, ids, length, *given)
