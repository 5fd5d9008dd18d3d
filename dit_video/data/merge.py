"""Encoded clips of several builds as one folder.

Shards are taken as they are: linked where the file system can, else copied. The manifest is made over all of them, and
last, so that an interrupted merge is none; the same line makes it anew.
"""

import os
import shutil
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from dit_video.core.errors import BadInput
from dit_video.data.build import summary
from dit_video.data.shards import FORMAT, HELD_OUT, MANIFEST, PLAN, TRAIN, read_json, read_manifest, write_json
from dit_video.data.store import Store


def merge(out: Store, sources: Sequence[Store]) -> dict[str, Any]:
    """The clips of all sources in `out`, in their order. Returns the manifest.

    Raises `MissingError` for a source that is no finished build, `BadInput` for latents of different VAEs, for sizes
    that come in another order, and where `out` is a build already.
    """
    roots = [source.root for source in sources]
    if len(set(roots)) < len(roots):
        raise BadInput(f"{', '.join(roots)}: the same folder twice would show its clips twice as often")
    if out.root in roots or any(out.size(name) is not None for name in (MANIFEST, PLAN)):
        raise BadInput(f"{out} holds encoded clips already. Merge into a new folder.")
    manifests = [read_manifest(source) for source in sources]
    vae = manifests[0]["vae"]
    for source, manifest in zip(sources, manifests, strict=True):
        if manifest["vae"]["digest"] != vae["digest"]:
            raise BadInput(
                f"{source} was encoded with the VAE {manifest['vae']['digest']}, {sources[0]} with {vae['digest']}: "
                "latents of two VAEs do not mix. Build one of them again."
            )
    buckets = _sizes(sources, manifests)
    out.make()
    parts: dict[str, list[dict[str, Any]]] = {TRAIN: [], HELD_OUT: []}
    for source, manifest in zip(sources, manifests, strict=True):
        places = [buckets.index(bucket) for bucket in manifest["buckets"]]
        for part, shards in parts.items():
            for shard in manifest["parts"][part]:
                name = f"{part}-{len(shards):05d}"
                about = read_json(source, f"{Path(shard['file']).stem}.json")
                about |= {"file": f"{name}.arrayrecord", "counts": _placed(shard["counts"], places, len(buckets))}
                about["records"] = [r | {"bucket": places[r["bucket"]]} for r in about["records"]]
                _take(source, shard["file"], out, about["file"])
                write_json(out, f"{name}.json", about)
                shards.append(about)
    head = {"format": FORMAT, "vae": vae, "source": {"merged": [m["source"] for m in manifests]}, "buckets": buckets}
    made = head | summary(parts)
    write_json(out, MANIFEST, made, indent=1)
    return made


def _sizes(sources: Sequence[Store], manifests: Sequence[dict[str, Any]]) -> list[dict[str, int]]:
    """All buckets. In a shard clips lie in their order, so that each source must have them in the same."""
    buckets: list[dict[str, int]] = []
    for source, manifest in zip(sources, manifests, strict=True):
        buckets += [bucket for bucket in manifest["buckets"] if bucket not in buckets]
        places = [buckets.index(bucket) for bucket in manifest["buckets"]]
        if any(later <= before for before, later in pairwise(places)):
            sizes = ", ".join("{frames}x{height}x{width}".format(**bucket) for bucket in manifest["buckets"])
            raise BadInput(f"{source} has its sizes in another order ({sizes}). Name it first, or build it again.")
    return buckets


def _placed(counts: Sequence[int], places: Sequence[int], of: int) -> list[int]:
    out = [0] * of
    for place, count in zip(places, counts, strict=True):
        out[place] = count
    return out


def _take(source: Store, name: str, out: Store, to: str) -> None:
    """A file of one store in another. Raises `BadInput` (`MissingError` from an object store) where it is missing."""
    with source.reading(name) as file, out.writing(to) as new:
        try:
            os.link(file.resolve(strict=True), new)
        except FileNotFoundError:
            raise BadInput(f"{source}/{name} is missing: run `dit-video data build` again, it is made anew") from None
        except OSError:  # another file system, or one that has no links
            shutil.copyfile(file, new)
