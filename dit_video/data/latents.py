"""Clips that were encoded before: a source of latents, and batches of them.

    dit-video data build toyworld latents --count 20000
    dit-video train toyworld --data latents

A latent is drawn anew each time it is read, `z = mean + std * noise`. Step `s` of a run is a pure function of the
shards, the seed and `s`: which bucket, which clips, which noise. So every host takes its rows of the same batch without
asking the others, and a run goes on with the very same clips on any number of hosts, whatever threads it reads with.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from dit_video.core.errors import BadInput, MissingError
from dit_video.core.files import beside, cache_folder
from dit_video.core.log import log
from dit_video.core.types import Video
from dit_video.data.buckets import Bucket
from dit_video.data.folder import Folder
from dit_video.data.loader import NoHeldOut, Sample, Toyworld, generator, stack
from dit_video.data.pool import OTHER_DATA, Encoded, Tokenize
from dit_video.data.shards import (
    HELD_OUT,
    MANIFEST,
    PLAN,
    TRAIN,
    Posterior,
    open_shard,
    read_json,
    read_manifest,
    unpack,
)
from dit_video.data.store import Store

_BATCH, _ORDER, _NOISE = 11, 12, 13  # what a generator is for
OPEN = 256  # shards that are open at once
DAMAGED = 0.01  # part of the clips that may be unreadable before a run ends


@dataclass(frozen=True)
class Latents:
    """Settings. `path`: what `dit-video data build` made, here or in an object store (its shards are copied here, once,
    to `cache`; None: the user's cache folder). `noise`: 1 draws from the posterior, 0 takes its mean."""

    path: str = "latents"
    seed: int = 0
    noise: float = 1.0
    cache: str | None = None

    @property
    def fps(self) -> float | None:
        """Of the clips that were encoded. None for clips of several rates, and where nothing (finished) is there."""
        try:
            return _rate(read_manifest(Store(self.path)).get("source", {}))
        except (BadInput, MissingError, OSError):
            return None  # `open` says what is wrong

    def open(self, buckets: Sequence[Bucket], held_out: bool = False) -> "LatentReader":
        """Raises `MissingError` when nothing (finished) is there, `BadInput` when it has no clips for the buckets, and
        of these `NoHeldOut` when that is so of the held-out part."""
        return LatentReader(self, tuple(buckets), held_out)


def _rate(source: dict[str, Any]) -> float | None:
    """Frames a second of what a manifest names as its source."""
    if "merged" in source:
        rates = {_rate(one) for one in source["merged"]}
        return rates.pop() if len(rates) == 1 else None
    toyworld = source.get("class", "").endswith(":Toyworld")
    return Toyworld().fps if toyworld else source.get("fps")


def source_at(path: str) -> Latents | Folder:
    """The source that a folder is: latents where a build left its files, else clips to be read."""
    store = Store(path)
    built = any(store.size(name) is not None for name in (MANIFEST, PLAN))
    return Latents(path) if built else Folder(path)


def _told(sizes: Iterable[tuple[int, int, int]]) -> str:
    return ", ".join("{}x{}x{}".format(*size) for size in sizes)


class LatentReader:
    """Shards of one part. Clip number `draw` is clip `draw % total`, with the noise of `draw`."""

    def __init__(self, source: Latents, buckets: tuple[Bucket, ...], held_out: bool):
        self.source, self.buckets, self.store = source, buckets, Store(source.path)
        self.manifest = read_manifest(self.store)
        part = HELD_OUT if held_out else TRAIN
        self.shards: list[dict[str, Any]] = self.manifest["parts"][part]
        if not self.shards:
            if held_out:
                raise NoHeldOut(
                    f"{self.store} has no held-out clips (a larger --held_out builds some, of several files)"
                )
            raise BadInput(f"{self.store} has no clips to train on: build with a smaller --held_out")
        self._check_sizes()
        wanted = {(b.frames, b.height, b.width): i for i, b in reversed(list(enumerate(buckets)))}
        stored = [(b["frames"], b["height"], b["width"]) for b in self.manifest["buckets"]]
        self.places: dict[int, list[tuple[int, int]]] = {}  # of a run's bucket: (shard, record) of each clip
        left_out = {}
        for number, shard in enumerate(self.shards):
            first = 0
            for bucket, count in enumerate(shard["counts"]):
                if count and stored[bucket] in wanted:
                    places = self.places.setdefault(wanted[stored[bucket]], [])
                    places += [(number, first + i) for i in range(count)]
                elif count:
                    left_out[stored[bucket]] = left_out.get(stored[bucket], 0) + count
                first += count
        if not self.places and held_out:
            raise NoHeldOut(
                f"{self.store} has held-out clips of {_told(left_out)} alone, and the experiment no such bucket"
            )
        if not self.places:
            raise BadInput(
                f"{self.store} holds clips of {_told(stored)}, and the experiment's buckets are none of these"
            )
        if left_out and not held_out:
            log.warning("%s: %d clips are of no bucket of the experiment", self.store, sum(left_out.values()))
        self.places = dict(sorted(self.places.items()))
        self.first = dict(zip(self.places, np.cumsum([0, *map(len, self.places.values())]).tolist(), strict=False))
        self.total = sum(map(len, self.places.values()))
        self.open: dict[int, Any] = {}
        self.lock = Lock()
        self.damaged: set[int] = set()
        if not held_out:
            log.info("%d clips in %d shards of %s", self.total, len(self.shards), self.store)

    def _check_sizes(self) -> None:
        for shard in self.shards:
            size = self.store.size(shard["file"])
            if size != shard["bytes"]:
                what = "is missing" if size is None else f"has {size} bytes instead of {shard['bytes']}"
                raise BadInput(
                    f"{self.store}/{shard['file']} {what}: run `dit-video data build` again, it is made anew"
                )

    def check_vae(self, digest: str, name: str) -> None:
        """Raises `BadInput` when the latents are those of another encoder."""
        made = self.manifest["vae"]
        if made["digest"] != digest:
            raise BadInput(
                f"{self.store} was encoded with the VAE {made['digest']} ({made['name']}), this run has {digest} "
                f"({name}). Train against that one (--vae {made['name']}), or build again with --model {name}."
            )

    def load(self, draw: int) -> Sample | None:
        """None, named and counted, for a record that is damaged. Raises `BadInput` when many are."""
        index = draw % self.total
        bucket = self.bucket(draw)
        shard, record = self.places[bucket][index - self.first[bucket]]
        try:
            found = unpack(self._shard(shard).read([record])[0])
        except (RuntimeError, IndexError, ValueError) as error:
            self._count(index, f"{self.shards[shard]['file']}, record {record}: {str(error).partition(';')[0]}")
            return None
        rng = generator(_NOISE, self.source.seed, draw)
        arrays = {
            "latents": self._draw(found.clip, rng),
            "pictures": self._draw(found.pictures, rng),
            "picture_frames": found.picture_frames,
        }
        return Sample(draw, bucket, found.caption, arrays)

    def bucket(self, draw: int) -> int:
        return max(b for b, first in self.first.items() if first <= draw % self.total)

    def _draw(self, posterior: Posterior, rng: np.random.Generator) -> np.ndarray:
        z = rng.standard_normal(posterior.mean.shape, np.float32)
        z *= np.float32(self.source.noise)
        z *= posterior.std
        z += posterior.mean
        return z

    def _count(self, index: int, what: str) -> None:
        with self.lock:
            if index not in self.damaged:
                self.damaged.add(index)
                log.warning("a damaged clip is left out (%d of %d): %s", len(self.damaged), self.total, what)
        if len(self.damaged) > max(1, DAMAGED * self.total):
            raise BadInput(f"{len(self.damaged)} damaged clips in {self.store}: run `dit-video data build` again")

    def _shard(self, number: int) -> Any:
        with self.lock:
            if number not in self.open:
                while len(self.open) >= OPEN:
                    self.open.pop(next(iter(self.open)))
                self.open[number] = open_shard(self._here(self.shards[number]))
            return self.open[number]

    def _here(self, shard: dict[str, Any]) -> Path:
        """The shard's file here; of an object store a copy, checked once, under the name of its content. Raises as
        `Store.copy`."""
        if self.store.here:
            return Path(self.store.path(shard["file"]))
        root = Path(self.source.cache) if self.source.cache else cache_folder("shards")
        copy = root / f"{shard['sha256']}.arrayrecord"
        if not copy.is_file():
            copy.parent.mkdir(parents=True, exist_ok=True)
            partial = beside(copy)
            try:
                self.store.copy(shard["file"], partial, shard["sha256"])
                os.replace(partial, copy)
            except BadInput as error:
                raise BadInput(f"{error}. Run `dit-video data build` again: it is made anew") from None
            finally:
                partial.unlink(missing_ok=True)
        return copy

    def frames(self, arrays: Any, bucket: int) -> Video:
        raise BadInput(
            f"{self.store} holds latents, and pixels are wanted: train a VAE on toyworld or a folder of clips"
        )

    def captions(self, count: int) -> list[str]:
        """Of both parts: a word must not be unknown because its clip is held out."""
        texts: list[str] = []
        for shard in (s for part in (HELD_OUT, TRAIN) for s in self.manifest["parts"][part]):
            if len(texts) >= count:
                break
            about = read_json(self.store, Path(shard["file"]).stem + ".json")
            texts += [r["caption"] for r in about["records"] if r["caption"]]
        if not texts:
            raise BadInput(f"{self.store}: no clip has a caption, and a new tokenizer needs some")
        return [texts[i % len(texts)] for i in range(count)]


class EncodedStream:
    """Batches of one bucket for ever, as those of a `PoolStream`: `(bucket, Encoded, rng)`, where `rng` belongs to the
    batch and is the same on every process. Buckets come in proportion to their clips; of each bucket's clips one
    permutation follows the other. State: how many clips of each bucket all processes have used."""

    def __init__(
        self,
        reader: LatentReader,
        normalise: Callable[[np.ndarray], np.ndarray],
        tokenize: Tokenize,
        batch: int,
        seed: int,
        process: int = 0,
        processes: int = 1,
        threads: int = 2,
    ):
        self.reader, self.normalise, self.tokenize, self.seed = reader, normalise, tokenize, seed
        self.whole, self.rows = batch * processes, range(process * batch, (process + 1) * batch)
        self.threads = ThreadPoolExecutor(threads, "latents")
        self.orders: dict[tuple[int, int], np.ndarray] = {}
        self.restore({"used": {}})

    def state(self) -> dict[str, Any]:
        return {"used": {str(bucket): count for bucket, count in self.used.items()}}

    def restore(self, state: dict[str, Any]) -> None:
        """Raises `BadInput` for the state of another source, or of other buckets."""
        used = state.get("used")
        if used is None or not set(used) <= {str(b) for b in self.reader.places}:
            raise BadInput(OTHER_DATA)
        self.used = {bucket: int(used.get(str(bucket), 0)) for bucket in self.reader.places}

    def __iter__(self) -> Iterator[tuple[int, Encoded, np.random.Generator]]:
        return self

    def __next__(self) -> tuple[int, Encoded, np.random.Generator]:
        places, done = self.reader.places, sum(self.used.values())
        # The bucket that is furthest behind its part.
        behind = {b: len(places[b]) / self.reader.total * (done + self.whole) - n for b, n in self.used.items()}
        bucket = max(behind, key=lambda b: behind[b])
        first = self.used[bucket]
        self.used[bucket] += self.whole
        samples = list(self.threads.map(lambda row: self._load(bucket, first + row), self.rows))
        clips = stack(samples)
        z, pictures = (self.normalise(clips.arrays[name]) for name in ("latents", "pictures"))
        encoded = Encoded(z, pictures, clips.arrays["picture_frames"], *self.tokenize(list(clips.captions)))
        return bucket, encoded, generator(_BATCH, self.seed, done)

    def _load(self, bucket: int, place: int) -> Sample:
        """The clip at a place of the bucket's endless sequence; of a damaged one the next that can be read."""
        count = len(self.reader.places[bucket])
        for later in range(place, place + count):
            epoch, within = divmod(later, count)
            index = int(self._order(bucket, epoch)[within])
            sample = self.reader.load(epoch * self.reader.total + self.reader.first[bucket] + index)
            if sample is not None:
                return sample
        raise BadInput(f"every clip of bucket {bucket} of {self.reader.store} is damaged: `dit-video data build` again")

    def _order(self, bucket: int, epoch: int) -> np.ndarray:
        order = self.orders.get((bucket, epoch))
        if order is None:
            order = generator(_ORDER, self.seed, epoch, bucket).permutation(len(self.reader.places[bucket]))
            kept = {key: o for key, o in self.orders.items() if key[0] != bucket or key[1] >= epoch - 1}
            self.orders = kept | {(bucket, epoch): order}
        return order
