"""Raw latents of training clips, in memory that grows neither with how many there are nor with their length."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from dit_video.core.types import Latent, Video
from dit_video.data.buckets import AT_ONCE
from dit_video.models.vae import spans

Posterior = tuple[Float[Array, "n T H W z"], Float[Array, "n T H W z"]]  # mean and log-variance, raw
Pictures = tuple[Float[Array, "n P H W z"], Float[Array, "n P H W z"]]


def encode_clips(
    graph: nnx.GraphDef, params: Any, arrays: Any, bucket: int, reader: Any, numbers: Any
) -> tuple[Posterior, Pictures]:
    """Latents of whole clips, and of the frames `numbers` (n, P), each encoded alone.

    The VAE's weights are an argument, not constants of the program.
    """
    video, alone = _pixels(arrays, bucket, reader, numbers)
    clips = encode_video(graph, params, video)
    n, pictures = numbers.shape
    if pictures == 0:
        return clips, jax.tree.map(lambda z: jnp.zeros((n, 0, *z.shape[2:]), z.dtype), clips)
    if _pixels_of(alone) > AT_ONCE:  # one of each clip
        parts = [encode_video(graph, params, alone[:, i : i + 1]) for i in range(pictures)]
        return clips, jax.tree.map(lambda *z: jnp.concatenate(z, 1), *parts)
    encoded = encode_video(graph, params, alone.reshape(n * pictures, 1, *alone.shape[2:]))
    return clips, jax.tree.map(lambda z: z.reshape(n, pictures, *z.shape[2:]), encoded)


def encode_video(graph: nnx.GraphDef, params: Any, video: Video) -> tuple[Latent, Latent]:
    """As `VAE.encode`; where a device would have more than `AT_ONCE` pixels, a piece of time after the other, each of
    as many latent slots as that holds."""
    if _pixels_of(video) <= AT_ONCE:
        return _encode(graph, params, video)
    cfg, frames = nnx.merge(graph, params).cfg, video.shape[1]
    cfg.latent_shape(*video.shape[1:4])
    length = max(1, AT_ONCE * frames // (_pixels_of(video) * cfg.stride)) * cfg.stride
    pieces, past = [], None
    for begin, end in spans(frames, length):
        mean, logvar, past = _encode_piece(graph, params, video[:, begin:end], past)
        pieces.append((mean, logvar))
    return jax.tree.map(lambda *z: jnp.concatenate(z, 1), *pieces)


def _pixels_of(video: jax.Array) -> int:
    """On one device."""
    clips, frames, height, width, _ = video.sharding.shard_shape(video.shape)
    return clips * frames * height * width


@partial(jax.jit, static_argnums=(1, 2))
def _pixels(arrays: Any, bucket: int, reader: Any, numbers: Any) -> tuple[Video, Float[Array, "n P H W 3"]]:
    """Clips, and of each the frames of these numbers."""
    frames = reader.frames(arrays, bucket)
    return frames, jnp.take_along_axis(frames, numbers[:, :, None, None, None], axis=1)


@partial(jax.jit, static_argnums=0)
def _encode(graph: nnx.GraphDef, params: Any, video: Video) -> tuple[Latent, Latent]:
    return nnx.merge(graph, params).encode(video)


@partial(jax.jit, static_argnums=0)
def _encode_piece(graph: nnx.GraphDef, params: Any, video: Video, past: Any) -> tuple[Latent, Latent, Any]:
    return nnx.merge(graph, params).encode_piece(video, past)
