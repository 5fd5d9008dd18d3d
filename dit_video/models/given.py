"""What Wan's variants are given beside the noise, as latents: frames with a mask (image-to-video), control (VACE).

Encoding is the caller's: these take the normalised means of the VAE. Where nothing is given the pixels are zero (grey).
"""

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Bool, Float

from dit_video.core.errors import BadInput
from dit_video.core.types import Latent, Video
from dit_video.models.dit import DiTConfig
from dit_video.models.vae import VAEConfig


def takes_frames(dit: DiTConfig, vae: VAEConfig, name: str) -> bool:
    """Whether a denoiser takes given frames as channels beside the noise (`with_mask`): the first, and the last too
    where it has places for the tokens of two pictures (`image_len`). Raises `BadInput` for channels of other kinds;
    `name`: the model's, for the message."""
    both = 2 * vae.z + vae.stride
    if dit.in_channels not in (vae.z, both):
        raise BadInput(
            f"{name}: it takes {dit.in_channels} channels, its VAE has {vae.z}. Models are run and trained that take "
            f"the noise ({vae.z}), or that with a mask and given frames ({both}). Import and export work."
        )
    return dit.in_channels == both


def with_mask(latents: Latent, given: Bool[Array, "B F"]) -> Float[Array, "B T H W M"]:
    """Mask and latents, which image-to-video models of Wan 2.1 and Wan 2.2 A14B take as channels after the noise's.

    latents: of the video that has the given frames and is zero elsewhere. given: which frames those are. A latent
    slot's mask has one channel a frame, and the first slot's frame counts for all of them. Reference: `prepare_latents`
    of `WanImageToVideoPipeline`. Raises `BadInput` when frames and slots do not belong together.
    """
    (B, T, H, W, _), F = latents.shape, given.shape[1]
    if T > 1 and (F - 1) % (T - 1):
        raise BadInput(f"{F} frames do not make {T} latent slots: the first slot holds one, the others equally many")
    stride = (F - 1) // (T - 1) if T > 1 else 4
    mask = jnp.concatenate([jnp.repeat(given[:, :1], stride, 1), given[:, 1:]], 1).reshape(B, T, 1, 1, stride)
    return jnp.concatenate([jnp.broadcast_to(mask, (B, T, H, W, stride)).astype(latents.dtype), latents], -1)


def kept_and_made(video: Video, mask: Float[Array, "B F Y X"]) -> tuple[Video, Video]:
    """The two videos that VACE encodes apart: what stays (mask 0) and what is to be made (mask 1), grey elsewhere
    (2503.07598, 3.2, concept decoupling)."""
    made = (mask > 0.5)[..., None]
    return jnp.where(made, 0.0, video), jnp.where(made, video, 0.0)


def control_latents(
    kept: Latent, made: Latent, mask: Float[Array, "B F Y X"], references: Float[Array, "B R H W C"] | None = None
) -> Float[Array, "B N H W M"]:
    """Control latents of VACE: both videos of `kept_and_made`, encoded, and the mask, whose pixels become channels.

    mask: 1 where the video is to be made. references: pictures, each encoded alone, that stand before the video, the
    last one first; the denoiser's latents have as many frames more, which are dropped in the end. Reference:
    `prepare_video_latents` and `prepare_masks` of `WanVACEPipeline`. Raises `BadInput` when sizes do not agree.
    """
    (_, T, H, W, _), (_, F, Y, X) = kept.shape, mask.shape
    factor = Y // H
    if (H * factor, W * factor) != (Y, X):
        raise BadInput(f"mask of {Y} x {X} pixels for latents of {H} x {W}: it must be a multiple, the same both ways")
    frames = np.floor((np.arange(T) + 0.5) * (F / T)).astype(int)  # nearest, as the reference picks them
    pixels = rearrange(mask[:, frames], "B T (H h) (W w) -> B T H W (h w)", h=factor, w=factor)
    control = jnp.concatenate([kept, made, pixels.astype(kept.dtype)], -1)
    if references is None:
        return control
    first = jnp.pad(references[:, ::-1], ((0, 0),) * 4 + ((0, control.shape[-1] - references.shape[-1]),))
    return jnp.concatenate([first, control], 1)
