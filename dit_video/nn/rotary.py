"""3-axis rotary positions (Su et al. 2021, RoFormer, eq. 15), computed from positions where they are used.

The numbers of a head are split between time, height and width as in Wan; each axis rotates its adjacent pairs
(x_0, x_1), (x_2, x_3), ... by `position * theta^(-2i/d)`. Attention does not see the order of a head's numbers as long
as queries and keys share it, so pairs are brought into two halves by reordering the *weights* (`halves`), and the
rotation of activations is made of contiguous pieces.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dit_video.core.errors import BadInput


class Rotary(NamedTuple):
    """Cosine and sine of every token's angles, float32; the batch axis is 1 when all clips share positions."""

    cos: Float[Array, "b L half"]
    sin: Float[Array, "b L half"]


def split(head_dim: int) -> tuple[int, int, int]:
    """How many numbers of a head turn with time, height and width: 44, 42, 42 of 128."""
    side = 2 * (head_dim // 6)
    return head_dim - 2 * side, side, side


def grid_positions(grid: tuple[int, int, int]) -> Float[Array, "1 L 3"]:
    """(time, height, width) of every patch of a grid, in the order of `patchify`."""
    axes = jnp.meshgrid(*(jnp.arange(n, dtype=jnp.float32) for n in grid), indexing="ij")
    return jnp.stack(axes, -1).reshape(1, -1, 3)


def frame_positions(position: Float[Array, "B E"], grid: tuple[int, int]) -> Float[Array, "B L 3"]:
    """The same of E single frames that stand at any rotary time, fractional or negative."""
    B, E = position.shape
    h, w = grid
    time = jnp.broadcast_to(position[:, :, None, None], (B, E, h, w))
    plane = jnp.broadcast_to(grid_positions((1, h, w)).reshape(1, 1, h, w, 3)[..., 1:], (B, E, h, w, 2))
    return jnp.concatenate([time[..., None].astype(jnp.float32), plane], -1).reshape(B, -1, 3)


def frequencies(dim: int, theta: float) -> Float[np.ndarray, "half"]:
    """theta^(-2i/dim), radians a position, float64."""
    return float(theta) ** -(np.arange(0, dim, 2, dtype=np.float64) / max(dim, 1))


def riflex(f: Float[np.ndarray, "half"], trained: int, slots: int) -> Float[np.ndarray, "half"]:
    """RIFLEx (Zhao et al. 2025, arXiv 2502.15894): the frequency that makes a model repeat itself, whose period
    is nearest to the trained length, is lowered until 0.9 of its period is the new length. The others stay."""
    k = int(np.argmin(np.abs(2 * np.pi / f - trained)))
    f = f.copy()
    f[k] = min(f[k], 0.9 * 2 * np.pi / slots)
    return f


def ntk(f: Float[np.ndarray, "half"], trained: int, slots: int) -> Float[np.ndarray, "half"]:
    """NTK-aware scaling (as in Peng et al. 2023, arXiv 2309.00071, 3.1): theta grows by s^(d/(d-2)), s = slots /
    trained, so that the lowest frequency is divided by s and the highest one stays."""
    i = np.arange(len(f))
    return f * (slots / trained) ** -(i / max(len(f) - 1, 1))


METHODS = {"riflex": riflex, "ntk": ntk}


@dataclass(frozen=True)
class Stretch:
    """How time's frequencies change for a clip of `slots` latent frames, more than the `trained` ones."""

    method: Literal["riflex", "ntk"]
    trained: int
    slots: int

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise BadInput(f"rotary method {self.method!r} is unknown. Use {' or '.join(METHODS)}.")
        if not 1 <= self.trained <= self.slots:
            raise BadInput(f"rotary: {self.slots} latent frames are no more than the {self.trained} of training.")

    def __call__(self, f: Float[np.ndarray, "half"]) -> Float[np.ndarray, "half"]:
        return METHODS[self.method](f, self.trained, self.slots)


def rotary(
    positions: Float[Array, "b L 3"], head_dim: int, theta: float = 1e4, stretch: Stretch | None = None
) -> Rotary:
    """Angles of tokens, time's frequencies changed by `stretch`.

    In float32 and yet within 1e-6 of float64 for positions k/4 up to 1024: a product of float32 numbers near 1024 is
    wrong by 6e-5 rad. So angles are counted in turns, the frequency is split
    into 12 leading bits, whose product with such a position is exact, and a small rest, and whole turns are dropped
    before the sine is taken.
    """
    high, low, axis = [], [], []
    for n, dim in enumerate(split(head_dim)):
        radians = frequencies(dim, theta)
        turns = (stretch(radians) if stretch and n == 0 and dim else radians) / (2 * np.pi)
        mantissa, exponent = np.frexp(turns)
        coarse = np.ldexp(np.round(mantissa * 2**12) / 2**12, exponent)
        high.append(coarse)
        low.append(turns - coarse)
        axis += [n] * len(turns)
    f_high, f_low = (np.concatenate(f).astype(np.float32) for f in (high, low))
    p = positions.astype(jnp.float32)[..., np.asarray(axis)]
    whole = p * f_high
    angle = (2 * np.pi) * ((whole - jnp.round(whole)) + p * f_low)
    return Rotary(jnp.cos(angle), jnp.sin(angle))


def halves(weight: Float[Array, "*rest D"], heads: int) -> Float[Array, "*rest D"]:
    """Reorders the columns of a query or key weight: each head's even numbers first, then its odd ones."""
    *rest, D = weight.shape
    return weight.reshape(*rest, heads, D // heads // 2, 2).swapaxes(-1, -2).reshape(*rest, D)


def rotate(x: Float[Array, "B L n K"], table: Rotary) -> Float[Array, "B L n K"]:
    """Turns queries or keys whose weights went through `halves`; float32 inside, the dtype of `x` outside."""
    cos, sin = table.cos[:, :, None, None], table.sin[:, :, None, None]
    sin = jnp.concatenate([-sin, sin], -2)
    pair = x.astype(jnp.float32).reshape(*x.shape[:-1], 2, x.shape[-1] // 2)
    # The other half by reversal: its gradient is a reversal again, where slices would come back as padding.
    return (pair * cos + pair[..., ::-1, :] * sin).reshape(x.shape).astype(x.dtype)
