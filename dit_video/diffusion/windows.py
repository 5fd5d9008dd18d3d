"""Windows over time: the velocity of a long clip from the velocities of short pieces of it, blended at every step.

Each latent slot takes the weighted mean of the windows that see it (MultiDiffusion, Bar-Tal et al. 2023, arXiv
2302.08113, eq. 5; over time as in Gen-L-Video, 2305.18264). Windows have one size, so one compiled program visits all,
and what lies in memory at once is one window: `blended` works on NumPy arrays as on JAX's, and gives slots away as
soon as no later window sees them.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from dit_video.core.errors import BadInput
from dit_video.core.types import Latent

NoiseOrder = Literal["fresh", "shared", "rescheduled"]


@dataclass(frozen=True)
class Windows:
    """Where windows of `length` slots begin. On a ring the slot after the last is the first."""

    slots: int
    length: int
    starts: tuple[int, ...]
    overlap: int
    ring: bool = False

    def places(self, i: int) -> Int[np.ndarray, "W"]:
        """The slots of window i, in order."""
        return (self.starts[i] + np.arange(self.length)) % self.slots

    def weights(self) -> Float[np.ndarray, "N W"]:
        """The part that each window has in each of its slots: it rises over the overlap, and all sum to one."""
        ramp = np.minimum(np.arange(1, self.length + 1), np.arange(self.length, 0, -1))
        ramp = np.minimum(ramp, self.overlap + 1).astype(np.float64)
        total = np.zeros(self.slots)
        for i in range(len(self.starts)):
            total[self.places(i)] += ramp
        return np.stack([ramp / total[self.places(i)] for i in range(len(self.starts))]).astype(np.float32)


def layout(slots: int, length: int, overlap: int, ring: bool = False) -> Windows:
    """Windows that cover all slots, neighbours sharing `overlap` of them (the last two more, where it does not divide).

    A clip no longer than a window is one window. A ring has two at least, so that no slot is only ever at an edge.
    Raises BadInput where windows would not advance.
    """
    length = min(length, slots)
    if not 0 <= overlap < max(length, 2):
        raise BadInput(f"windows of {length} latent frames cannot overlap by {overlap}. Use 0 to {length - 1}.")
    stride = max(1, length - overlap)
    if ring:
        count = max(2, -(-slots // stride))
        starts = tuple(round(i * slots / count) for i in range(count))
        return Windows(slots, length, tuple(dict.fromkeys(starts)), overlap, ring)
    starts = (*range(0, slots - length, stride), slots - length)
    return Windows(slots, length, starts, overlap)


def blended(velocities: Iterable[Latent], windows: Windows) -> Iterator[tuple[int, Latent]]:
    """(first slot, velocity) of consecutive pieces that are complete, while the windows' velocities come in, in order.

    When a piece comes out, no window that is still to come sees its slots: they may be overwritten.
    """
    weights = windows.weights()
    ends = (*windows.starts[1:], windows.slots)
    total: Any = None  # on a ring: all slots
    carried: Any = None  # else: the slots from this window's start on that earlier windows saw
    for i, v in enumerate(velocities):
        v = v * weights[i][:, None, None, None].astype(v.dtype)
        join = np.concatenate if isinstance(v, np.ndarray) else jnp.concatenate
        if windows.ring:
            rest = join([v, (0 * v[:, :1]).repeat(windows.slots - windows.length, axis=1)], axis=1)
            roll = np.roll if isinstance(v, np.ndarray) else jnp.roll
            rest = roll(rest, windows.starts[i], axis=1)
            total = rest if total is None else total + rest
            continue
        if carried is not None:
            n = carried.shape[1]
            v = join([v[:, :n] + carried, v[:, n:]], axis=1)
        done = ends[i] - windows.starts[i]
        yield windows.starts[i], v[:, :done]
        carried = v[:, done:]
    if windows.ring:
        yield 0, total


def noise_order(slots: int, length: int, order: NoiseOrder, seed: int) -> Int[np.ndarray, "slots"]:
    """Which frame of noise each slot starts from.

    `fresh`: its own. `shared`: every stretch of `length` slots has that of the first. `rescheduled`: the same frames in
    a new order each time (FreeNoise, Qiu et al. 2023, arXiv 2310.15169, 4.1): windows agree in what they show without
    repeating how it moves.
    """
    if order not in ("fresh", "shared", "rescheduled"):
        raise BadInput(f"noise order {order!r} is unknown. Use fresh, shared or rescheduled.")
    if order == "fresh":
        return np.arange(slots)
    rng = np.random.default_rng(seed)
    runs = [np.arange(length)]
    while sum(map(len, runs)) < slots:
        runs.append(np.arange(length) if order == "shared" else rng.permutation(length))
    return np.concatenate(runs)[:slots]
