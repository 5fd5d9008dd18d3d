"""Which weights a model has, in twelve hex digits, without reading tens of gigabytes each time.

A folder with a manifest and the Hub's cache say it of their files (`find.verify_files`). Of other weights it is the
hash of all arrays, which for large ones in files is kept in the user's cache and good as long as those are as they
were; and where adapters are merged, of that and of them.
"""

import hashlib
import json
import re
from math import prod
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dit_video.core.errors import BadInput
from dit_video.core.files import cache_folder, replacing
from dit_video.core.log import log
from dit_video.weights.model import Model
from dit_video.weights.names import Stored, flatten

LARGE = 2**28  # bytes from which it is worth keeping: hashing less takes a blink


def digest_of(model: Model) -> str:
    """Of all weights: the model's own where it has one."""
    return model.digest or kept_hash(model.params)


def weights_hash(weights: Any) -> str:
    """Of all arrays with their names, in the order of names. Reads them all."""
    total = hashlib.sha256()
    for path, leaf in sorted(jax.tree.leaves_with_path(weights), key=lambda item: jax.tree_util.keystr(item[0])):
        total.update(jax.tree_util.keystr(path).encode())
        total.update(np.ascontiguousarray(leaf))
    return total.hexdigest()[:12]


def kept_hash(weights: Any) -> str:
    """`weights_hash`; of large weights that all lie in files, only once, until a file changes."""
    leaves = flatten(weights)
    size = sum(prod(leaf.shape) * np.dtype(leaf.dtype).itemsize for leaf in leaves.values())
    if size < LARGE or (state := _state(leaves)) is None:
        return weights_hash(weights)
    note = cache_folder("digests") / hashlib.sha256(json.dumps(state).encode()).hexdigest()[:32]
    try:
        if re.fullmatch("[0-9a-f]{12}", found := note.read_text()):
            return found
    except (OSError, UnicodeError):
        pass
    log.info("reading %.1f GB of weights for their hash, once: %s keeps it", size / 1e9, note)
    found = weights_hash(weights)
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        with replacing(note) as partial:
            partial.write_text(found)
    except (OSError, BadInput) as error:
        log.debug("the hash is not kept: %s", error)
    return found


def _state(leaves: dict[str, Any]) -> list[Any] | None:
    """What the hash depends on: each array and where it is from, and size and times of those files. None where one is
    not as it lies in a file."""
    arrays, files = [], {}
    for path, leaf in sorted(leaves.items()):
        source = Path(leaf.source) if isinstance(leaf, Stored) else None
        if source is None or not source.exists():
            return None
        arrays.append([path, list(leaf.shape), str(leaf.dtype), leaf.source])
        if leaf.source not in files:
            found = [source] if source.is_file() else sorted(source.glob("*.safetensors"))
            about = [(str(file.resolve()), file.stat()) for file in found]
            files[leaf.source] = [[name, s.st_size, s.st_mtime_ns, s.st_ctime_ns] for name, s in about]
    return [arrays, files]


def merged_digest(base: str, part: str, lora: Any, strength: float) -> str:
    """Of the model `base` with adapters (`lora.Lora`) merged into its denoiser `part`: by what they are made of, not by
    the sum."""
    total = hashlib.sha256(json.dumps([base, part, strength]).encode())
    for path, deltas in sorted(lora.deltas.items()):
        for at, delta in sorted(deltas.items()):
            total.update(json.dumps([path, at, delta.scale]).encode())
            for name in ("down", "up", "diff"):
                if (array := getattr(delta, name)) is not None:
                    total.update(f"{name}{array.shape}".encode())
                    total.update(np.ascontiguousarray(array))
    return total.hexdigest()[:12]
