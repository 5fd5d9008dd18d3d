"""Weights that are not stored as they are used. Each is a tree of arrays that gives the weight under `[...]`.

Modules read a weight as `param[...]`, so a parameter may hold one of these in place of an array; nothing else in a
model knows. In the scan over layers every array is cut along its leading axis, and the weight of one layer at a time is
made, inside the layer.
"""

from dataclasses import dataclass
from functools import partial
from types import EllipsisType
from typing import Any

import jax
import numpy as np
from jaxtyping import Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Int8:
    """Eight bits a weight and one scale a column (output channel): w = values * scale."""

    values: Any  # int8 (*rest, in, out)
    scale: Any  # (*rest, 1, out)

    def __getitem__(self, index: EllipsisType) -> Array:
        return self.values[...].astype(self.scale.dtype) * self.scale

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class OnHost:
    """A weight that lies in the host's memory and is copied to the device where it is used."""

    array: Any

    def __getitem__(self, index: EllipsisType) -> Array:
        return jax.device_put(self.array, jax.memory.Space.Device)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape


@partial(jax.tree_util.register_dataclass, data_fields=("weight", "a", "b"), meta_fields=("scale",))
@dataclass(frozen=True)
class Adapted:
    """A frozen weight and a product of low rank beside it (LoRA, Hu et al. 2021): w = weight + scale * a b."""

    weight: Any  # (*rest, in, out), or one of these trees
    a: Any  # (*rest, in, r)
    b: Any  # (*rest, r, out)
    scale: float

    def __getitem__(self, index: EllipsisType) -> Array:
        weight = jax.lax.stop_gradient(self.weight[...])
        return weight + (self.scale * self.a @ self.b).astype(weight.dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.weight.shape


def to_int8(weight: Any, scale_dtype: Any = np.float32) -> Int8:
    """Rounds a weight (*rest, in, out) on the host, a matrix at a time, each asked for when its turn comes
    (`weight[at]`). The largest magnitude of a column is 127."""
    *rest, rows, columns = weight.shape
    values = np.empty((*rest, rows, columns), np.int8)
    scale = np.empty((*rest, 1, columns), scale_dtype)
    for at in np.ndindex(*rest):
        matrix = np.asarray(weight[at], np.float32)
        scale[at] = np.maximum(np.abs(matrix).max(-2, keepdims=True), np.finfo(np.float32).tiny) / 127
        values[at] = np.clip(np.round(matrix / scale[at].astype(np.float32)), -127, 127)
    return Int8(values, scale)
