"""What data sheets say of accelerators: one table, every number with where it is from.

TPUs: docs.cloud.google.com/tpu/docs/{v5e, v5p, v6e, tpu7x}, "System architecture". Bandwidth of one link in one
direction: "How to Scale Your Model" (jax-ml.github.io/scaling-book), "How to Think About TPUs"; it is the sheet's
bidirectional bandwidth of a chip over its links. The clock follows from the peak: two operations for each cell of the
matrix units in a cycle. A vector unit takes four operations on 8 x 128 numbers in a cycle (the same book, appendix C,
of v5; assumed of what came after). NVIDIA: the data sheets of A100, H100, H200 (dense bfloat16, SXM); float32 is JAX's
default there, TF32, at half of that. HBM of a TPU is not the sheet's number but what the compiler lets a
program have of it: the limit that libtpu 0.0.42 names where it gives up.
"""

import math
import re
from dataclasses import dataclass

from dit_video.core.slices import Slice


@dataclass(frozen=True)
class Chip:
    """Peaks of a chip, in operations and bytes a second. A chip of two devices shares them evenly."""

    name: str
    flops: float  # bfloat16, dense
    hbm: float  # bytes that programs may have
    bandwidth: float  # of HBM
    link: float  # of one link to a neighbour, one way
    unit: int = 1  # side of a matrix unit: products are padded to multiples of it
    units: int = 1  # matrix units a core
    cores: int = 1
    devices: int = 1  # that JAX sees
    wrap: int = 0  # a side of a slice that is a multiple of it is closed to a ring; 0: links are switched
    bridge: float = 0.0  # between the two devices of a chip
    float32: float = 1.0  # times as long as of bfloat16 does a product of float32 take; a TPU rounds its factors

    @property
    def vector(self) -> float:
        """Operations of the vector units a second."""
        clock = self.flops / (2 * self.unit**2 * self.units * self.cores)
        return 4 * 8 * 128 * clock * self.cores

    @property
    def sharing(self) -> int:
        """Cores that are one device, and share a kernel only if it says what can be shared."""
        return self.cores // self.devices


GIB = 2**30
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v5e", 197e12, 15.75 * GIB, 819e9, 50e9, 128, 4, wrap=16),
        Chip("v5p", 459e12, 95.74 * GIB, 2765e9, 100e9, 128, 4, 2, wrap=4),
        Chip("v6e", 918e12, 31.25 * GIB, 1638e9, 100e9, 256, 4, wrap=16),
        Chip("tpu7x", 2307e12, 2 * 94.75 * GIB, 7380e9, 100e9, 256, 4, 2, 2, wrap=4, bridge=600e9),
        Chip("A100", 312e12, 80e9, 2039e9, 300e9, float32=2.0),
        Chip("H100", 989e12, 80e9, 3350e9, 450e9, float32=2.0),
        Chip("H200", 989e12, 141e9, 4800e9, 450e9, float32=2.0),
    )
}


@dataclass(frozen=True)
class Wiring:
    """Where each device of the mesh is, in its order, and how far the slice reaches along each side."""

    chip: Chip
    places: tuple[tuple[int, ...], ...]

    @property
    def sides(self) -> tuple[int, ...]:
        return tuple(max(at) + 1 for at in zip(*self.places, strict=True))

    def extents(self, group: tuple[int, ...]) -> list[tuple[int, float]]:
        """(devices, bytes a second out of one of them) for each side along which the members of a group differ."""
        chip, out = self.chip, []
        for i, values in enumerate(zip(*(self.places[member] for member in group), strict=True)):
            reach = len(set(values))
            ring = chip.wrap and reach == self.sides[i] and reach % chip.wrap == 0
            speed = chip.bridge if chip.bridge and i == 3 else chip.link * (2 if ring else 1) / chip.devices
            out += [(reach, speed)] * (reach > 1)
        return out

    def seconds(self, kind: str, size: float, group: tuple[int, ...]) -> float:
        """Of a collective in which a device has `size` bytes: what it has in the end (all-gather), in the beginning
        (reduce-scatter, all-to-all, all-reduce), or sends (collective-permute). Rings along all sides at once; of an
        all-to-all a quarter of a side's bytes crosses its middle ("How to Scale Your Model", "Sharded Matrices")."""
        n, extents = len(group), self.extents(group)
        if n == 1:
            return 0.0
        if kind == "collective-permute":
            return size / min(speed for _, speed in extents)
        if kind == "all-to-all":
            return max(size * reach / (4 * speed) for reach, speed in extents)
        once = size * (n - 1) / n / sum(speed for _, speed in extents)
        return 2 * once if kind == "all-reduce" else once


def wiring(chip: Chip, devices: list) -> Wiring:
    """From devices as JAX has them; those without coordinates are behind one switch."""
    return Wiring(
        chip,
        tuple((*d.coords, d.core_on_chip) if hasattr(d, "coords") else (i,) for i, d in enumerate(devices)),
    )


def chip_of(where: Slice | str) -> Chip | None:
    """Of a slice, or of a kind of device as JAX names it ("NVIDIA H200"); None for one that is not in the table."""
    if isinstance(where, Slice):
        return CHIPS[where.generation.name]
    names = {
        "v5 lite": "v5e",
        "v5p": "v5p",
        "v5": "v5p",
        "v6 lite": "v6e",
        "v6e": "v6e",
        "TPU7x": "tpu7x",
        "7x": "tpu7x",
    }
    for name, chip in {**{n: CHIPS[c] for n, c in names.items()}, **CHIPS}.items():
        if re.search(rf"(?<![\w]){re.escape(name)}(?![\w])", where):
            return chip
    return None


def padded(size: int, unit: int) -> int:
    return math.ceil(size / unit) * unit
