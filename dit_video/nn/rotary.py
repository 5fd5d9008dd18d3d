"""3-axis rotary positions (Su et al. 2021, RoFormer, eq. 15), computed from positions where they are used.

The numbers of a head are split between time, height and width as in Wan; each axis rotates its adjacent pairs
(x_0, x_1), (x_2, x_3), ... by `position * theta^(-2i/d)`. Attention does not see the order of a head's numbers as long
as queries and keys share it, so pairs are brought into two halves by reordering the *weights* (`halves`), and the
rotation of activations is made of contiguous pieces.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


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


def rotary(positions: Float[Array, "b L 3"], head_dim: int, theta: float = 1e4) -> Rotary:
    """Angles of tokens, in float32 and yet within 1e-6 of float64 for positions k/4 up to 1024.

    A product of float32 numbers near 1024 is wrong by 6e-5 rad. So angles are counted in turns, the frequency is split
    into 12 leading bits, whose product with such a position is exact, and a small rest, and whole turns are dropped
    before the sine is taken.
    """
    high, low, axis = [], [], []
    for n, dim in enumerate(split(head_dim)):
        turns = float(theta) ** -(np.arange(0, dim, 2, dtype=np.float64) / max(dim, 1)) / (2 * np.pi)
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
