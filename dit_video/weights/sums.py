"""One number for an array that any changed bit changes, on devices and on the host; and for a whole tree of them."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt32

from dit_video.weights.names import flatten

_WORDS = {4: np.uint32, 2: np.uint16}  # by bytes of an element; others are taken by their value
_AT_ONCE = 2**22  # elements on the host


def checksums(flat: Mapping[str, Any]) -> dict[str, int]:
    """One number for every array, the same for every layout on a mesh and on the host: the sum, modulo 2^32, of its
    32-bit words, each times an odd number that tells its place. A word that changes always changes the sum. Arrays that
    are not on devices are taken one after the other."""
    placed = {name: x for name, x in flat.items() if isinstance(x, jax.Array)}
    sums = {name: int(x) for name, x in jax.device_get(_on_devices(placed)).items()} if placed else {}
    return {name: sums[name] if name in sums else _on_host(np.asarray(x)) for name, x in flat.items()}


@jax.jit
def _on_devices(flat: dict[str, Array]) -> dict[str, UInt32[Array, ""]]:
    def one(x: Array) -> Array:
        kind = _WORDS.get(x.dtype.itemsize)
        words = (jax.lax.bitcast_convert_type(x, kind) if kind else x).astype(jnp.uint32)
        place = jnp.zeros(x.shape, jnp.uint32)
        for axis, size in enumerate(x.shape):
            place = place * np.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
        return jnp.sum(words * (2 * place + 1), dtype=jnp.uint32)

    return {name: one(x) for name, x in flat.items()}


def _on_host(x: np.ndarray) -> int:
    kind, words, total = _WORDS.get(x.dtype.itemsize), np.ascontiguousarray(x).reshape(-1), 0
    words = words.view(kind) if kind else words
    for start in range(0, words.size, _AT_ONCE):
        part = words[start : start + _AT_ONCE].astype(np.uint32)
        place = np.arange(start, start + part.size, dtype=np.uint64).astype(np.uint32)
        total += int(np.sum(part * (2 * place + 1), dtype=np.uint32))
    return total % 2**32


def fingerprint(params: Any) -> str:
    """Sixteen hex digits, the same for bit-identical parameters on any mesh."""
    return hashlib.sha256(json.dumps(checksums(flatten(params)), sort_keys=True).encode()).hexdigest()[:16]
