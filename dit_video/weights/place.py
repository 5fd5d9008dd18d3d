"""From files or the host to devices, an array at a time: read, cast or rounded to eight bits, placed, let go."""

from collections.abc import Mapping
from math import prod
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from dit_video.core.errors import BadInput
from dit_video.nn.leaves import Int8, OnHost, to_int8
from dit_video.weights.model import weight_dtype
from dit_video.weights.names import Stored, flatten, unflatten

KEPT = ("float32", "bfloat16", "float16", "int8")


def place(
    params: Mapping[Any, Any],
    where: Mapping[Any, Any] | None = None,
    keep: str | None = None,
    offload: bool = False,
) -> dict[Any, Any]:
    """A tree of arrays (NumPy's, `Stored`, or on devices already) on the default device, or as the tree of shardings
    `where` says. On the host there is never more than one array of it, as it is kept, and one layer as it is stored.

    keep: what matrices are kept as: a dtype, or "int8" (the matrices of layers in eight bits with one scale a column,
    the others in bfloat16); None keeps each array's own. offload: the matrices of layers stay in the host's memory and
    are copied to the device layer by layer, each time they are used. Raises `BadInput` for another word, and what
    reading raises.
    """
    if keep not in (None, *KEPT):
        raise BadInput(f"keep={keep!r}: choose one of {', '.join(KEPT)}")
    spots = None if where is None else flatten(where)
    out = {}
    for path, leaf in flatten(params).items():
        spot = None if spots is None else spots[path]
        layers = _in_layers(path, leaf.shape)
        if keep == "int8" and layers and not isinstance(leaf, Int8):
            leaf = to_int8(leaf if isinstance(leaf, Stored) else np.asarray(leaf))
        elif not isinstance(leaf, Int8):
            kind = weight_dtype(path, {None: leaf.dtype, "int8": "bfloat16"}.get(keep, keep))
            leaf = leaf.astype(kind) if isinstance(leaf, jax.Array) else np.asarray(leaf, kind)
        out[path] = _put(leaf, spot, offload and layers)
    return unflatten(out)


def numbers(params: Mapping[Any, Any], where: Mapping[Any, Any] | None = None) -> int:
    """How many numbers of a tree one device holds: all, or its share as the tree of shardings `where` says."""
    spots = {} if where is None else flatten(where)
    shapes = {path: leaf.shape for path, leaf in flatten(params).items()}
    return sum(prod(spots[path].shard_shape(shape) if spots else shape) for path, shape in shapes.items())


def placed(shapes: Mapping[Any, Any], where: Mapping[Any, Any], keep: str) -> dict[Any, Any]:
    """The shapes of what `place` would give, with their shardings; nothing is made."""
    spots, out = flatten(where), {}
    for path, leaf in flatten(shapes).items():
        spot, shape = spots[path], leaf.shape
        if keep == "int8" and _in_layers(path, shape):
            one_row = (*shape[:-2], 1, shape[-1])
            out[path] = Int8(jax.ShapeDtypeStruct(shape, np.int8, sharding=spot),
                             jax.ShapeDtypeStruct(one_row, np.float32, sharding=_one_row(spot, shape)))  # fmt: skip
        else:
            kind = weight_dtype(path, "bfloat16" if keep == "int8" else keep)
            out[path] = jax.ShapeDtypeStruct(shape, kind, sharding=spot)
    return unflatten(out)


def _one_row(spot: NamedSharding, shape: tuple[int, ...]) -> NamedSharding:
    """Of the scales of a matrix, which have one row."""
    axes = (*spot.spec, *(None,) * (len(shape) - len(spot.spec)))
    return NamedSharding(spot.mesh, P(*axes[:-2], None, axes[-1]))


def _in_layers(path: str, shape: tuple[int, ...]) -> bool:
    """Whether a weight is a stack of matrices: nearly all of a transformer's bytes."""
    return path.endswith("kernel") and len(shape) == 3 and ("blocks" in path or "layers" in path)


def _put(leaf: Any, spot: Any, offload: bool) -> Any:
    if isinstance(leaf, Int8):
        flat = spot and _one_row(spot, leaf.shape)
        return Int8(_put(leaf.values, spot, offload), _put(leaf.scale, flat, False))
    if offload:
        spot = SingleDeviceSharding(jax.local_devices()[0]) if spot is None else spot
        return OnHost(jax.block_until_ready(jax.device_put(leaf, spot.with_memory_kind("pinned_host"))))
    # Placing is asynchronous: without waiting, what is under way would pile up on the host.
    return jax.block_until_ready(jax.device_put(leaf, spot))
