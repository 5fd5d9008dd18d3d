"""TPU slices by name: `v5p:4x4x4` is 64 chips on 16 hosts. What schedulers call them, and which shapes there are.

Facts from Google's documentation ("TPU configurations" of Cloud TPU, "Plan TPUs in GKE"); the names of GKE agree with
those that XPK uses.
"""

import difflib
import math
import re
from dataclasses import dataclass

from dit_video.core.errors import BadInput

FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")  # v5e and v6e: all there are
SMALL = ("2x2x1", "2x2x2", "2x2x4", "2x4x4")  # v5p and tpu7x: below one cube of 4x4x4; above, whole cubes


@dataclass(frozen=True)
class Generation:
    """A kind of TPU. `cloud` is its name in the Cloud TPU API, whose number counts `cloud_unit` a chip; None: only GKE
    has it. `devices` are what JAX sees of a chip."""

    name: str
    flat: bool
    gke: str
    machine: str
    cloud: str | None
    cloud_unit: int = 1
    runtime: str = ""
    devices: int = 1
    cubes: int = 0  # the largest slice, in cubes of 64 chips


GENERATIONS = {
    g.name: g
    for g in (
        Generation("v5e", True, "tpu-v5-lite-podslice", "ct5lp-hightpu", "v5litepod", 1, "v2-alpha-tpuv5-lite"),
        Generation("v5p", False, "tpu-v5p-slice", "ct5p-hightpu", "v5p", 2, "v2-alpha-tpuv5", cubes=96),
        Generation("v6e", True, "tpu-v6e-slice", "ct6e-standard", "v6e", 1, "v2-alpha-tpuv6e"),
        Generation("tpu7x", False, "tpu7x", "tpu7x-standard", None, devices=2, cubes=144),
    )
}
PATTERN = re.compile(rf"\b({'|'.join(GENERATIONS)}):(\d+(?:x\d+)+)\b")


@dataclass(frozen=True)
class Slice:
    """Chips that are wired together: `Slice(GENERATIONS["v5e"], (4, 4))`."""

    generation: Generation
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.generation.name}:{self.topology}"

    @property
    def topology(self) -> str:
        return "x".join(map(str, self.shape))

    @property
    def chips(self) -> int:
        return math.prod(self.shape)

    @property
    def chips_per_host(self) -> int:
        """Four; a slice that one host can hold is on one: 1 chip, and 2x4 of the flat kinds."""
        return self.chips if self.chips == 1 or (self.generation.flat and self.chips == 8) else 4

    @property
    def hosts(self) -> int:
        return self.chips // self.chips_per_host

    @property
    def devices(self) -> int:
        """What `jax.device_count()` says."""
        return self.chips * self.generation.devices

    @property
    def machine(self) -> str:
        """The machine type of its hosts in GKE."""
        return f"{self.generation.machine}-{self.chips_per_host}t"

    @property
    def cloud_type(self) -> str | None:
        """The accelerator type of the Cloud TPU API: `v5p-64` has 32 chips, `v6e-64` has 64."""
        generation = self.generation
        return generation.cloud and f"{generation.cloud}-{self.chips * generation.cloud_unit}"


def parse_slice(text: str) -> Slice:
    """`v5p:4x4x4`. Raises `BadInput` for a kind or a shape that there is not, with the nearest."""
    name, _, topology = text.strip().lower().partition(":")
    if name not in GENERATIONS:
        near = difflib.get_close_matches(name, GENERATIONS, n=1) or [*GENERATIONS]
        raise BadInput(f"topology {text!r}: unknown TPU {name!r}. Did you mean {' or '.join(near)}, as in v5e:4x4?")
    generation = GENERATIONS[name]
    if not re.fullmatch(r"\d+(x\d+)*", topology):
        raise BadInput(f"topology {text!r}: give the kind and the shape, as in {name}:{example(generation)}.")
    shape = tuple(int(side) for side in topology.split("x"))
    chips = math.prod(shape)
    if generation.flat:
        if topology not in FLAT:
            near = [known for known in FLAT if math.prod(map(int, known.split("x"))) == chips] or [*FLAT]
            raise BadInput(f"topology {text!r}: {name} has no such slice. Use {', '.join(near)}.")
    elif topology not in (*SMALL, *(["1x1x1"] if name == "tpu7x" else [])):
        cubes = len(shape) == 3 and all(side and side % 4 == 0 for side in shape)
        if not cubes or chips > 64 * generation.cubes or list(shape) != sorted(shape):
            raise BadInput(
                f"topology {text!r}: {name} has no such slice. Use {', '.join(SMALL)}, or three multiples of 4, the "
                f"smallest first, up to {64 * generation.cubes} chips, as in {name}:4x4x8."
            )
    return Slice(generation, shape)


def example(generation: Generation) -> str:
    return "4x4" if generation.flat else "2x2x2"


def find_slice(text: str) -> Slice | None:
    """The first slice that a text names, such as the docstring of an experiment; None where it names none."""
    match = PATTERN.search(text)
    return parse_slice(match[0]) if match else None
