"""Encodes a source of clips once, into shards that training reads (see shards.py for what stands in the folder).

The items of the source (files, or numbers of drawn clips) are dealt to shards before the first is read, in an order
that is written down. A shard is whole when its JSON stands; a build that was interrupted makes the others, and one that
finds new items appends shards for them. A file that cannot be read is named with its reason, and the build goes on;
its shard is made anew only when that is asked for.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from dit_video.core.config import to_dict
from dit_video.core.errors import BadInput, NonFinite
from dit_video.core.files import sha256
from dit_video.core.log import log
from dit_video.data.buckets import Bucket
from dit_video.data.folder import Folder, list_clips, part
from dit_video.data.loader import Reader, Sample, Toyworld, generator, stack, to_float
from dit_video.data.pool import draw_pictures
from dit_video.data.scenes import Clip, Cutting, Dropped, read_clips
from dit_video.data.shards import (
    FORMAT,
    HELD_OUT,
    MANIFEST,
    PLAN,
    TRAIN,
    Posterior,
    Record,
    pack,
    read_json,
    write_json,
    write_shard,
)
from dit_video.data.store import Store
from dit_video.data.workers import Broken, Done, Function, run

_PICTURES = 21  # what a generator is for

# (arrays of a chunk of clips, bucket, (n, P) frame numbers) -> mean and standard deviation of the raw latents of the
# clips and of those frames, each encoded alone
Encode = Callable[[Any, int, np.ndarray], tuple[Posterior, Posterior]]


@dataclass(frozen=True)
class Options:
    """What the content of the shards depends on, beside the source and the VAE."""

    cutting: Cutting = Cutting()
    pictures: int = 4  # frames of each clip that are encoded alone too, as given pictures are
    chunk: int = 16  # clips encoded at once, fewer of large ones
    items: int = 256  # items a shard
    dtype: str = "float16"  # of what is stored; its rounding is a tenth of the noise that is added

    def check(self) -> "Options":
        """Raises `BadInput` for numbers that cannot be right."""
        self.cutting.check()
        for name, low in (("pictures", 0), ("chunk", 1), ("items", 1)):
            if getattr(self, name) < low:
                raise BadInput(f"{name}={getattr(self, name)} is too small. Use {low} or more.")
        if self.dtype not in ("float16", "float32"):
            raise BadInput(f"dtype={self.dtype}: latents are stored as float16 or float32")
        return self


@dataclass(frozen=True)
class Material:
    """A source as items. `make` turns an item's name into its clips; `frames` makes pixels of their arrays."""

    items: dict[str, list[str]]  # of each part
    make: Function
    reader: Any  # has `frames(arrays, bucket)`, as a `Reader` has
    about: dict[str, Any]  # for the manifest
    workers: int = 0


class Bytes:
    """Pixels of clips that were read from files."""

    def frames(self, arrays: Any, bucket: int) -> Any:
        return to_float(arrays["frames"])


def toyworld(source: Toyworld, buckets: Sequence[Bucket], count: int, held_out: float) -> Material:
    """The first `count` clips of toyworld, and `held_out` times as many of its held-out part."""
    readers: dict[str, Reader] = {p: source.open(buckets, p == HELD_OUT) for p in (TRAIN, HELD_OUT)}
    counts = {TRAIN: count, HELD_OUT: round(count * held_out)}

    def make(item: str) -> Iterator[Clip]:
        which, _, draw = item.partition("/")
        sample = readers[which].load(int(draw))
        assert isinstance(sample, Sample), "what is drawn can be read"
        yield Clip(sample.bucket, sample.caption, sample.arrays, {"draw": sample.draw})

    items = {p: [f"{p}/{draw}" for draw in range(n)] for p, n in counts.items()}
    return Material(items, make, readers[TRAIN], to_dict(source))


def folder(source: Folder, buckets: Sequence[Bucket], cutting: Cutting, workers: int) -> Material:
    """The files of a folder, here or in an object store. Raises as `Folder.open`."""
    clips = list_clips(Store(source.path))
    names = [name for name, _ in clips]
    if twice := [a for a, b in pairwise(names) if a == b]:
        raise BadInput(f"{source.path}: {twice[0]} is named twice")
    items = {p: sorted(n for n, _ in part(clips, source.held_out, p == HELD_OUT)) for p in (TRAIN, HELD_OUT)}
    if len(clips) == 1 or source.held_out <= 0:
        items[HELD_OUT] = []
    make = partial(read_clips, source.path, dict(clips), tuple(buckets), replace(cutting, fps=source.fps).check())
    return Material(items, make, Bytes(), to_dict(source), workers)


@dataclass
class _Shard:
    """A shard in the making."""

    name: str
    items: list[str]
    left: int = 0  # items that are not done
    clips: dict[tuple[int, int], Record] = field(default_factory=dict)  # by (item, number in it)
    waiting: dict[int, list[tuple[tuple[int, int], Clip, np.ndarray]]] = field(default_factory=dict)  # by bucket
    broken: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)


class Builder:
    """One build. `vae`: name, digest and sizes of the VAE, for the manifest."""

    def __init__(
        self,
        out: Store,
        material: Material,
        buckets: Sequence[Bucket],
        encode: Encode,
        vae: dict[str, Any],
        options: Options = Options(),
    ):
        self.out, self.material, self.buckets, self.encode, self.options = (
            out,
            material,
            buckets,
            encode,
            options.check(),
        )
        self.head = {
            "format": FORMAT,
            "vae": vae,
            "source": material.about,
            "buckets": [{"frames": b.frames, "height": b.height, "width": b.width} for b in buckets],
            "options": to_dict(options),
        }

    def run(self, tick: Callable[[], None] = lambda: None, retry_broken: bool = False) -> dict[str, Any]:
        """Makes what is missing, and with `retry_broken` the shards that left out an item that could not be read;
        `tick` is called after every item. Returns the manifest. Raises `BadInput` when the folder holds a build with
        other options, and when no clip at all could be made."""
        self.out.make()
        shards = self.plan()
        missing = []
        for shard in shards:
            if self.whole(shard, retry_broken):
                for _ in shard.items:
                    tick()
            else:
                missing.append(shard)
        if len(missing) < len(shards):
            log.info("%s: %d of %d shards are there", self.out, len(shards) - len(missing), len(shards))
        self.fill(missing, tick)
        manifest = self.finish(shards)
        if broken := manifest["broken"]:
            log.warning(
                "%s: %d of the files are left out (%s ...): `broken` in %s says why of each. Mended, or within reach "
                "again, they are read with --retry_broken", self.out, len(broken), next(iter(broken)), MANIFEST,
            )  # fmt: skip
        return manifest

    def plan(self) -> list[_Shard]:
        """Which item goes where: as an earlier run wrote it down, and new shards for items that it did not know."""
        dealt: list[dict[str, Any]] = []
        if self.out.size(PLAN) is not None:
            earlier = read_json(self.out, PLAN)
            was, now = (json.loads(json.dumps(head)) for head in (earlier, self.head))
            was["vae"]["name"] = now["vae"]["name"]  # the digest says which it is
            if changed := [key for key in now if was.get(key) != now[key]]:
                raise BadInput(
                    f"{self.out} was begun with another {changed[0]}: {was.get(changed[0])} there, {now[changed[0]]} "
                    "now. Give another OUT, or what was given then."
                )
            dealt = earlier["shards"]
        known = {item for shard in dealt for item in shard["items"]}
        new = 0
        for name, items in self.material.items.items():
            items = [item for item in items if item not in known]
            number, new = sum(s["name"].startswith(f"{name}-") for s in dealt), new + len(items)
            for i in range(0, len(items), self.options.items):
                dealt.append({"name": f"{name}-{number:05d}", "items": items[i : i + self.options.items]})
                number += 1
        if new:
            write_json(self.out, PLAN, self.head | {"shards": dealt})
        return [_Shard(s["name"], s["items"], len(s["items"])) for s in dealt]

    def whole(self, shard: _Shard, retry_broken: bool = False) -> bool:
        """Whether a shard stands as it was written (by its SHA-256; in an object store by its size), and, with
        `retry_broken`, has all its items."""
        if self.out.size(f"{shard.name}.json") is None:
            return False
        try:
            about = read_json(self.out, f"{shard.name}.json")
            if retry_broken and about["broken"]:
                log.info("%s/%s is made anew: it left out %s", self.out, shard.name, ", ".join(about["broken"]))
                return False
            if about["file"] is None:
                return True
            if self.out.size(about["file"]) == about["bytes"]:
                if not self.out.here:
                    return True
                with self.out.reading(about["file"]) as file:
                    if sha256(file) == about["sha256"]:
                        return True
        except (BadInput, KeyError):
            pass  # its JSON is no longer what was written
        log.warning("%s/%s is missing or damaged: it is made anew", self.out, shard.name)
        return False

    def fill(self, shards: list[_Shard], tick: Callable[[], None]) -> None:
        """Reads the items, encodes clips in chunks as they come, writes each shard when its last item is done."""
        places = [(shard, item) for shard in shards for item in range(len(shard.items))]
        names = (shard.items[item] for shard, item in places)
        with closing(run(self.material.make, names, self.material.workers)) as results:
            self._collect(results, places, tick)

    def _collect(
        self, results: Iterator[tuple[int, Any]], places: list[tuple[_Shard, int]], tick: Callable[[], None]
    ) -> None:
        count: dict[int, int] = {}  # clips that an item has given
        for number, result in results:
            shard, item = places[number]
            name = shard.items[item]
            if isinstance(result, Clip):
                count[number] = count.get(number, -1) + 1
                self.take(shard, (item, count[number]), name, result)
            elif isinstance(result, Dropped):
                shard.dropped[result.reason] = shard.dropped.get(result.reason, 0) + 1
            elif isinstance(result, Broken):
                shard.broken[name] = result.reason
                log.warning("leaving out %s: %s", name, result.reason)
            elif isinstance(result, Done):
                tick()
                shard.left -= 1
                if shard.left == 0:
                    self.write(shard)

    def take(self, shard: _Shard, key: tuple[int, int], name: str, clip: Clip) -> None:
        digest = hashlib.sha256(f"{name}:{key[1]}".encode()).digest()
        rng = generator(_PICTURES, int.from_bytes(digest[:8]))
        pictures = draw_pictures(rng, 1, self.options.pictures, self.buckets[clip.bucket].frames)[0]
        waiting = shard.waiting.setdefault(clip.bucket, [])
        waiting.append((key, clip, pictures))
        if len(waiting) == self.buckets[clip.bucket].at_once(self.options.chunk):
            self.flush(shard, clip.bucket)

    def flush(self, shard: _Shard, bucket: int) -> None:
        """Encodes the clips that wait; a chunk that is not full is filled up, so that one program serves all."""
        waiting = shard.waiting.pop(bucket)
        full = np.resize(np.arange(len(waiting)), self.buckets[bucket].at_once(self.options.chunk))
        samples = [Sample(0, bucket, clip.caption, clip.arrays) for _, clip, _ in waiting]
        numbers = np.stack([waiting[i][2] for i in full])
        clips, pictures = self.encode(stack([samples[i] for i in full]).arrays, bucket, numbers)
        for i, (key, clip, frames) in enumerate(waiting):
            record = Record(
                bucket, clip.caption, Posterior(*(x[i] for x in clips)), Posterior(*(x[i] for x in pictures)), frames,
                clip.about,
            )  # fmt: skip
            shard.clips[key] = record

    def write(self, shard: _Shard) -> None:
        for bucket in sorted(shard.waiting):
            self.flush(shard, bucket)
        records, packed = [], []
        for key in sorted(shard.clips, key=lambda k: (shard.clips[k].bucket, k)):
            try:
                packed.append(pack(shard.clips[key], self.options.dtype))
                records.append(shard.clips[key])
            except NonFinite as error:
                shard.broken[shard.items[key[0]]] = str(error)
                log.warning("leaving out %s: %s", shard.items[key[0]], error)
        about: dict[str, Any] = {"file": None, "items": len(shard.items)}
        if records:
            about["file"] = f"{shard.name}.arrayrecord"
            with self.out.writing(about["file"]) as file:
                write_shard(file, packed)
                about |= {"sha256": sha256(file), "bytes": file.stat().st_size}
        counts = [sum(r.bucket == i for r in records) for i in range(len(self.buckets))]
        means = [r.clip.mean.astype(np.float64).reshape(-1, r.clip.mean.shape[-1]) for r in records]
        about |= {
            "counts": counts,
            "broken": shard.broken,
            "dropped": shard.dropped,
            "sums": [
                sum(len(x) for x in means),
                *(np.sum([f(x).sum(0) for x in means], 0).tolist() if means else [] for f in (np.asarray, np.square)),
            ],
            "records": [{"bucket": r.bucket, "caption": r.caption} | r.about for r in records],
        }
        write_json(self.out, f"{shard.name}.json", about)
        shard.clips.clear()

    def finish(self, shards: list[_Shard]) -> dict[str, Any]:
        """The manifest over all shards."""
        parts: dict[str, list[dict[str, Any]]] = {TRAIN: [], HELD_OUT: []}
        for shard in shards:
            parts[shard.name.rpartition("-")[0]].append(read_json(self.out, f"{shard.name}.json"))
        manifest = self.head | summary(parts)
        write_json(self.out, MANIFEST, manifest, indent=1)
        return manifest


def summary(parts: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Of a manifest, what its shards say together. parts: of each, what is told of its shards. Raises `BadInput` when
    no clip could be made."""
    abouts = [about for shards in parts.values() for about in shards]
    broken: dict[str, str] = {}
    dropped: dict[str, int] = {}
    for about in abouts:
        broken |= about["broken"]
        for reason, count in about["dropped"].items():
            dropped[reason] = dropped.get(reason, 0) + count
    keys = ("file", "sha256", "bytes", "counts")
    kept = {p: [{key: a[key] for key in keys} for a in shards if a["file"] is not None] for p, shards in parts.items()}
    if not kept[TRAIN]:
        reasons = "; ".join(f"{name}: {why}" for name, why in [*broken.items()][:3])
        raise BadInput(f"no clip could be made. Broken: {reasons or 'none'}. Left out by filters: {dropped or 'none'}")
    count, total, squares = (np.sum([about["sums"][i] for about in abouts if about["file"]], 0) for i in range(3))
    mean = total / count
    return {
        "clips": {p: int(np.sum([shard["counts"] for shard in shards])) for p, shards in kept.items()},
        "latents": {
            "mean": mean.tolist(),
            "std": np.sqrt(np.maximum(squares / count - np.square(mean), 0.0)).tolist(),
        },
        "broken": broken,
        "dropped": dropped,
        "parts": kept,
    }
