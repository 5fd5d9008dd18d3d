"""The VAE's objective: reconstruction, its differences in time and in space, and a little KL; and the latents' statistics."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from dit_video.core.types import Latent, Video
from dit_video.models.vae import VAE


def kl(mean: Latent, logvar: Latent) -> Float[Array, ""]:
    """KL(N(mean, exp logvar) || N(0, 1)), in nats a latent number (Kingma & Welling 2013, appendix B)."""
    return 0.5 * jnp.mean(jnp.square(mean) + jnp.exp(logvar) - 1.0 - logvar)


def temporal_difference(a: Video, b: Video) -> Float[Array, ""]:
    """L1 between the changes from frame to frame; zero for stills."""
    if a.shape[1] == 1:
        return jnp.zeros(())
    return jnp.mean(jnp.abs(jnp.diff(a - b, axis=1)))


def gradient_difference(a: Video, b: Video, scales: int) -> Float[Array, ""]:
    """L1 between horizontal and vertical slopes, at full, half, quarter, ... size."""
    error, total = a - b, jnp.zeros(())
    for scale in range(scales):
        if scale:
            n, t, h, w, c = error.shape
            error = error[:, :, : h // 2 * 2, : w // 2 * 2].reshape(n, t, h // 2, 2, w // 2, 2, c).mean((3, 5))
        total += jnp.mean(jnp.abs(jnp.diff(error, axis=2))) + jnp.mean(jnp.abs(jnp.diff(error, axis=3)))
    return total / scales


@dataclass(frozen=True)
class VAEObjective:
    """Weights of the terms. Every term is a mean over its own numbers, so they do not depend on sizes: a weight of 1e-5
    for KL is what 4e-4 is where sums over pixels (41 times as many as latents) and sums over latents are added."""

    l1: float = 1.0
    l2: float = 2.0
    temporal: float = 0.5
    gradient: float = 0.5
    scales: int = 3
    kl: float = 1e-5

    def loss(
        self, graph: nnx.GraphDef[VAE], params: Any, video: Video, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Encodes, samples, decodes. Returns the weighted sum and its terms (and PSNR in dB of the unclipped video)."""
        vae = nnx.merge(graph, params)
        mean, logvar = vae.encode(video)
        z = mean + jnp.exp(0.5 * logvar) * jax.random.normal(key, mean.shape, mean.dtype)
        out = vae.decode(z, clip=False)
        error = out - video
        terms = {
            "l1": jnp.mean(jnp.abs(error)),
            "l2": jnp.mean(jnp.square(error)),
            "temporal": temporal_difference(out, video),
            "gradient": gradient_difference(out, video, self.scales),
            "kl": kl(mean, logvar),
        }
        total = sum(getattr(self, name) * value for name, value in terms.items())
        psnr = -10 * jnp.log10(terms["l2"] / 4 + 1e-12)  # pixels span 2
        return total, terms | {"psnr": psnr}


def latent_statistics(
    encode: Callable[[Video], Latent], clips: Iterable[Video]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of every latent channel over all positions of all clips, for `VAEConfig`.
    `encode` gives the raw means; the sums are kept in float64."""
    count, total, squares = 0, 0.0, 0.0
    for video in clips:
        z = np.asarray(encode(video), np.float64)
        z = z.reshape(-1, z.shape[-1])
        count, total, squares = count + len(z), total + z.sum(0), squares + np.square(z).sum(0)
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - np.square(mean), 0.0))
    return tuple(float(x) for x in mean), tuple(float(x) for x in std)
