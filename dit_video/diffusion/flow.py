"""Rectified flow: the path from data to noise, the time that training draws, and what is learnt.

`x_t = (1 - t) * data + t * noise`, t = 1 is noise, velocity = noise - data. Other projects' sigmas and timesteps are
converted at the border. A position whose time is zero is known: it is data, stands still, and bears no loss.
"""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from dit_video.core.errors import BadInput
from dit_video.core.types import Latent, Time

TimeField = Float[Array, "B T H W 1"]


def warp(t, shift: float):
    """Moves times towards noise for shift > 1: s t / (1 + (s - 1) t) (Esser et al. 2024, arXiv 2403.03206, eq. 23)."""
    return shift * t / (1 + (shift - 1) * t)


@dataclass(frozen=True)
class RectifiedFlow:
    """The straight path (Liu et al., arXiv 2209.03003) and the distribution of its times in training.

    `shift` reaches training through `sample_time` and sampling through the schedule, so that both see one path.
    `mean` and `std` belong to the logit-normal distribution, before the shift; a mean above 0 leans towards noise.
    `part`: the times that are drawn, for a denoiser that makes a part of the steps; their distribution is cut to it.
    `least`: below this time a velocity's error counts by (t / least)^2, as the error that it makes in the data. Late
    in sampling that is small, and a model that puts out data would spend itself on it.
    """

    shift: float = 3.0
    time: Literal["logit_normal", "uniform"] = "logit_normal"
    mean: float = 0.0
    std: float = 1.0
    least: float = 0.0
    part: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        if not self.shift > 0 or not self.std > 0:
            raise BadInput(f"RectifiedFlow: shift={self.shift} and std={self.std} must be above zero.")
        if not 0 <= self.least < 1:
            raise BadInput(f"RectifiedFlow: least={self.least} must be in [0, 1).")
        if not 0 <= self.part[0] < self.part[1] <= 1:
            raise BadInput(f"RectifiedFlow: part={self.part} must be two times that rise, in 0..1.")
        if self.time not in ("logit_normal", "uniform"):
            raise BadInput(f"RectifiedFlow: time={self.time!r} is unknown. Use logit_normal or uniform.")

    def warp(self, t):
        return warp(t, self.shift)

    def sample_time(self, key: PRNGKeyArray, n: int) -> Float[Array, "n"]:
        """One time in (0, 1] a clip, or in its `part`, as training draws it."""
        low, high = (edge / (self.shift - (self.shift - 1) * edge) for edge in self.part)  # before `warp`
        if self.time == "uniform":
            t = high - (high - low) * jax.random.uniform(key, (n,))
        elif (low, high) == (0, 1):
            t = jax.nn.sigmoid(self.mean + self.std * jax.random.normal(key, (n,)))
        else:
            edges = ((jax.scipy.special.logit(edge) - self.mean) / self.std for edge in (low, high))
            t = jax.nn.sigmoid(self.mean + self.std * jax.random.truncated_normal(key, *edges, (n,)))
        return jnp.clip(self.warp(t), *self.part)

    def add_noise(self, data: Latent, noise: Latent, t: TimeField) -> Latent:
        """x_t, with a time for each position: where it is zero, the data."""
        return (1 - t) * data + t * noise

    def velocity_target(self, data: Latent, noise: Latent) -> Latent:
        """dx_t / dt, the same for all t."""
        return noise - data


def training_time(t: Float[Array, "B"], known: Bool[Array, "B T H W"]) -> Time:
    """The time of a batch: `t` of its clip for what is unknown, zero for what is known."""
    return Time(jnp.stack([t, jnp.zeros_like(t)], axis=1), known.astype(jnp.int32))


def flow_loss(predicted: Latent, target: Latent, time: Time, least: float = 0.0) -> Float[Array, ""]:
    """Mean squared error over all positions of the batch, where known ones count as zero; `least` as `RectifiedFlow`'s.

    A weight depends on its own position's time alone. Nothing is divided by how much of a batch is unknown, so the
    loss of a batch is the mean of the losses of its parts, whatever the mesh or the accumulation.
    """
    t = time.field(predicted.shape)
    error = jnp.square(predicted.astype(jnp.float32) - target.astype(jnp.float32))
    if least:
        error = error * jnp.square(jnp.minimum(t / least, 1.0))
    return jnp.mean(jnp.where(t > 0, error, 0.0))
