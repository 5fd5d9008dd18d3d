"""Where clips come from, and batches of them by bucket.

A *source* is settings (`Toyworld`, `Folder`); opened, it is a *reader*: `load(draw)` is clip number `draw` of an
endless sequence, a pure function of (settings, draw), so that any place in the data can be found again. `Loader` reads
ahead with grain, makes batches of one bucket each, and its state is small JSON.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import grain
import jax
import jax.numpy as jnp
import numpy as np

from dit_video.core.errors import BadInput
from dit_video.core.types import Video
from dit_video.data.buckets import Bucket, deal


class Sample(NamedTuple):
    """One clip on the host."""

    draw: int
    bucket: int  # index into the run's buckets
    caption: str
    arrays: Any  # what the reader's `frames` makes pixels of: a pytree without a batch axis


class Clips(NamedTuple):
    """Clips of one bucket."""

    bucket: int
    captions: tuple[str, ...]
    arrays: Any  # with a batch axis in front
    draws: tuple[int, ...]


class Reader(Protocol):
    """An opened source."""

    buckets: tuple[Bucket, ...]

    def load(self, draw: int) -> Sample | None:
        """None for a clip that cannot be read, which the reader has then named and counted."""
        ...

    def bucket(self, draw: int) -> int | None:
        """The bucket of a clip where it is known without loading it; None: only loading tells."""
        ...

    def frames(self, arrays: Any, bucket: int) -> Video:
        """Pixels in [-1, 1] of a batch of `Sample.arrays`; pure, for use inside jit."""
        ...

    def captions(self, count: int) -> list[str]:
        """Captions for a tokenizer to be trained on."""
        ...


class NoHeldOut(BadInput):
    """A source without clips to measure on: it can be trained on all the same."""


class Source(Protocol):
    """Settings of a data set."""

    @property
    def fps(self) -> float | None:
        """Frames a second of its clips; None where that is not known."""
        ...

    def open(self, buckets: Sequence[Bucket], held_out: bool = False) -> Reader:
        """`held_out`: the part that training never sees. Raises `MissingError` when there is nothing to read,
        `NoHeldOut` where there is no such part."""
        ...


def generator(*key: int) -> np.random.Generator:
    """A NumPy generator (Philox) that is a pure function of whole numbers."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([k & 0xFFFFFFFFFFFFFFFF for k in key])))


@dataclass(frozen=True)
class Toyworld:
    """Clips of the procedural world, endless. Training sees neither the held-out combinations nor the held-out
    templates; the held-out part is made of them."""

    seed: int = 0
    plain: float = 0.5  # share of scenes that a plain prompt asks for
    two: float = 0.25  # share of two objects among the others
    often: tuple[tuple[str, float], ...] = ()  # shapes and motions that training is shown so many times as often

    @property
    def fps(self) -> float:
        from dit_video.data.toyworld.scene import FPS

        return FPS

    def open(self, buckets: Sequence[Bucket], held_out: bool = False) -> "ToyworldReader":
        """Raises `BadInput` for a word that is no shape and no motion, and for shares that are none."""
        from dit_video.data.toyworld.splits import check_often

        for name in ("plain", "two"):
            if not 0 <= getattr(self, name) <= 1:
                raise BadInput(f"{name}={getattr(self, name)} is a share. Use a number from 0 to 1.")
        check_often(dict(self.often))
        return ToyworldReader(self, tuple(buckets), held_out)


class ToyworldReader:
    """Scenes by (seed, draw); pixels are made on the device."""

    def __init__(self, source: Toyworld, buckets: tuple[Bucket, ...], held_out: bool):
        self.source, self.buckets, self.held_out = source, buckets, held_out
        self.often = {} if held_out else dict(source.often)
        dealt = deal(buckets, max(16, len(buckets)))
        self.order = [dealt[i] for i in generator(source.seed).permutation(len(dealt))]

    def load(self, draw: int) -> Sample:
        from dit_video.data.toyworld.motion import scene_arrays

        which = self.bucket(draw)
        scene, caption = self.scene(draw, self.buckets[which])
        return Sample(draw, which, caption, scene_arrays(scene))

    def bucket(self, draw: int) -> int:
        return self.order[draw % len(self.order)]

    def scene(self, draw: int, bucket: Bucket) -> tuple[Any, str]:
        """The scene of a draw and its caption."""
        from dit_video.data.toyworld.captions import caption
        from dit_video.data.toyworld.splits import sample_scene

        split = "heldout" if self.held_out else "train"
        rng = generator(self.source.seed, draw, int(self.held_out))
        scene = sample_scene(rng, split, self.source.plain, self.source.two, bucket.height, bucket.width, self.often)
        return scene, caption(scene, rng, split)

    def frames(self, arrays: Any, bucket: int) -> Video:
        from dit_video.data.toyworld.render import render_batch

        b = self.buckets[bucket]
        return render_batch(arrays, b.frames, b.height, b.width)

    def captions(self, count: int) -> list[str]:
        """Of both parts: a word must not be unknown because its template is held out."""
        parts = (ToyworldReader(self.source, self.buckets, held) for held in (False, True))
        return [r.scene(draw, self.buckets[0])[1] for r in parts for draw in range(count // 2)]


def stack(samples: Sequence[Sample]) -> Clips:
    """Samples of one bucket as a batch."""
    arrays = jax.tree.map(lambda *x: np.stack(x), *(s.arrays for s in samples))
    return Clips(samples[0].bucket, tuple(s.caption for s in samples), arrays, tuple(s.draw for s in samples))


def deal_draws(reader: Reader, first: int, count: int, process: int, processes: int) -> list[int]:
    """A process's part of the draws `first .. first + count - 1`, such that the n-th of every process is of the same
    bucket: all step with the same shapes, without asking one another. Draws that do not go round are nobody's.

    Raises `BadInput` for several processes and several buckets where only loading a clip tells its bucket.
    """
    if processes > 1 and len(reader.buckets) > 1 and reader.bucket(first) is None:
        raise BadInput(
            f"{processes} processes and {len(reader.buckets)} buckets: which clip is of which bucket is not known "
            "before it is read. Encode the clips once (dit-video data build SRC OUT) and train with --data OUT."
        )
    of_bucket: dict[int | None, list[int]] = {}
    for draw in range(first, first + count):
        of_bucket.setdefault(reader.bucket(draw), []).append(draw)
    rounds = [d[i : i + processes] for d in of_bucket.values() for i in range(0, len(d) - processes + 1, processes)]
    return [one[process] for one in sorted(rounds)]


def same_processes(state: dict[str, Any], processes: int) -> None:
    """Raises `BadInput` for a state whose clips were dealt to another number of processes."""
    if (then := state.get("processes", processes)) != processes:
        raise BadInput(
            f"the checkpoint dealt its clips to {then} processes, there are {processes}: the order cannot be kept. "
            f"Start {then} again; or train on clips encoded once (dit-video data build), which any number reads alike."
        )


def to_float(frames: Any) -> Any:
    """Bytes to [-1, 1]."""
    return frames.astype(jnp.float32) / 127.5 - 1.0


class Loader:
    """Batches of `batch` clips of one bucket for ever, in the order in which buckets fill up. Every clip that is loaded
    is used. Several processes share the clips, and their n-th batches are of one bucket (`deal_draws`).

    State: the place in the process's sequence and the places that wait for their bucket to fill, which are the same on
    every process, and how many these are. It does not depend on threads.
    """

    BLOCK = 64  # draws of a process that are dealt at once

    def __init__(self, reader: Reader, batch: int, threads: int = 2, process: int = 0, processes: int = 1):
        self.reader, self.batch, self.threads, self.processes = reader, batch, threads, processes
        self.block = processes * self.BLOCK
        self.dealt = deal_draws(reader, 0, self.block, process, processes)
        again = deal_draws(reader, self.block, self.block, process, processes)
        if [draw - self.block for draw in again] != self.dealt:
            raise BadInput(
                f"{len(reader.buckets)} buckets and {processes} processes: buckets must repeat every {self.BLOCK}"
            )
        self.restore({"next": 0, "waiting": {}})

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on after the batch at which `state` was taken."""
        same_processes(state, self.processes)
        self.next = int(state["next"])
        self.waiting: dict[int, list[tuple[int, Sample]]] = {}
        for bucket, places in state["waiting"].items():
            loaded = [self._load(int(place)) for place in places]
            self.waiting[int(bucket)] = [s for s in loaded if s is not None]
        # Places in this process's sequence; None (a broken clip) is dropped by grain, the places after it stay.
        places = grain.MapDataset.range(self.next, 2**40).map(self._load)
        self.reading = iter(places.to_iter_dataset(grain.ReadOptions(self.threads, 4 * self.threads)))

    def _load(self, place: int) -> tuple[int, Sample] | None:
        block, within = divmod(place, len(self.dealt))
        sample = self.reader.load(block * self.block + self.dealt[within])
        return None if sample is None else (place, sample)

    def state(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "next": self.next,
            "waiting": {str(b): [place for place, _ in w] for b, w in sorted(self.waiting.items()) if w},
            "processes": self.processes,
        }

    def __iter__(self) -> Iterator[Clips]:
        return self

    def __next__(self) -> Clips:
        while True:
            place, sample = next(self.reading)
            self.next = place + 1
            full = self.waiting.setdefault(sample.bucket, [])
            full.append((place, sample))
            if len(full) == self.batch:
                del self.waiting[sample.bucket]
                return stack([sample for _, sample in full])
