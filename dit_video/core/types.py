"""The alphabet of shapes: B batch, T frames, H height, W width, C channels; arrays are channels-last.

Pixels are float in [-1, 1] inside and uint8 outside. Latents are normalised by the VAE's stored mean and std.
Rotary time is counted in latent slots: pixel frame `f` has time `f / 4`, because latent slot 0 holds frame 0 alone and
slot `k` holds frames `4k-3 .. 4k`. A single picture that is encoded alone and belongs to frame `f` takes time `f / 4`.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Video = Float[Array, "B F Y X 3"]  # frames and pixels; a Latent of the same clip has fewer, under other letters
Latent = Float[Array, "B T H W C"]


class Time(NamedTuple):
    """Flow time of each latent position, as few distinct values and an index into them: a known position has time
    zero, the rest share one value, so the denoiser embeds two numbers a clip instead of one a token."""

    values: Float[Array, "B K"]
    index: Int[Array, "B T H W"] | None = None  # None: every position takes values[:, 0]

    def field(self, shape: tuple[int, ...]) -> Float[Array, "B T H W 1"]:
        """The time of every position of a latent of `shape` (B, T, H, W, C)."""
        if self.index is None:
            return jnp.broadcast_to(self.values[:, :1, None, None, None], (*shape[:4], 1))
        flat = self.index.reshape(shape[0], -1)
        return jnp.take_along_axis(self.values, flat, axis=1).reshape(*shape[:4], 1)


class Text(NamedTuple):
    """An encoded prompt: the real rows only (rows past `length` are zero)."""

    rows: Float[Array, "B S E"]
    length: Int[Array, "B"]


class Extra(NamedTuple):
    """Given pictures (last frame, keyframes) and the sink: whole latent frames, known (t = 0), appended as tokens."""

    latents: Float[Array, "B E H W C"]
    position: Float[Array, "B E"]  # rotary time in latent slots, counted from slot 0 of the grid
