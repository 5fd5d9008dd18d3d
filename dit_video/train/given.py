"""What image-to-video models of Wan are given of a training clip: its first frame, or the first and the last.

As channels beside the noise and as an image encoder's tokens, by the functions that make them of a user's pictures.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from dit_video.core.errors import BadInput
from dit_video.core.types import Latent, Video
from dit_video.data.latents import Latents
from dit_video.data.toyworld.render import to_uint8
from dit_video.models.given import takes_frames, with_mask
from dit_video.models.image_encoder import ImageConfig, prepare
from dit_video.train.conditions import Conditions
from dit_video.train.encode import encode_video
from dit_video.train.experiment import Experiment
from dit_video.weights.model import Model, abstract


def check_shown(conditions: Conditions, experiment: Experiment, start: Model, name: str, scratch: bool) -> None:
    """Raises BadInput where a model that knows one time for all of a clip would be shown what sampling never shows it,
    and where an image-to-video model would lack its pictures. `scratch`: what its weights know does not count."""
    frames = takes_frames(start.dit, start.vae, name)
    if not frames and (start.expand_timesteps or scratch):
        return
    if others := conditions.known():
        raise BadInput(
            f"{name} knows one time for all of a clip, so no part of it can be known by its time: set "
            f"{', '.join(f'objective.denoise.conditions.{case}' for case in others)} to 0, and text to 1"
        )
    if frames and isinstance(experiment.data, Latents):
        raise BadInput(
            f"{experiment.data.path} holds encoded clips, and {name} is given frames of them, encoded with grey around "
            "them: train it on the clips themselves (--data FOLDER)"
        )


def encode_frames(
    graph: nnx.GraphDef, params: Any, arrays: Any, bucket: int, reader: Any, last: bool
) -> tuple[Float[Array, "n T H W M"], Float[Array, "n P Y X 3"]]:
    """Mask and latents of clips that are grey but for their first frame (and their `last`), and those frames."""
    shown, given, frames = _shown(arrays, bucket, reader, (0, -1) if last else (0,))
    return _with_mask(graph, params, encode_video(graph, params, shown)[0], given), frames


@partial(jax.jit, static_argnums=(1, 2, 3))
def _shown(
    arrays: Any, bucket: int, reader: Any, which: tuple[int, ...]
) -> tuple[Video, Bool[Array, "n T"], Float[Array, "n P Y X 3"]]:
    """Clips that are grey but for the frames `which`, where these are, and the frames alone."""
    video = reader.frames(arrays, bucket)
    given = jnp.zeros(video.shape[:2], bool).at[:, np.array(which)].set(True)
    return jnp.where(given[:, :, None, None, None], video, 0.0), given, video[:, np.array(which)]


@partial(jax.jit, static_argnums=0)
def _with_mask(graph: nnx.GraphDef, params: Any, raw: Latent, given: Bool[Array, "B F"]) -> Float[Array, "B T H W M"]:
    return with_mask(nnx.merge(graph, params).normalize(raw), given)


def look_at(cfg: ImageConfig, params: Any, frames: Float[Array, "n P Y X 3"]) -> Float[np.ndarray, "n I E"]:
    """An image encoder's tokens of the frames of each clip, one frame's behind the other's. `params` are on the host,
    and on the device only meanwhile: the step needs its memory."""
    clips = to_uint8(frames)
    pictures = np.stack([prepare(picture, cfg.size) for clip in clips for picture in clip])
    return np.asarray(_tokens(cfg, params, pictures)).reshape(len(clips), -1, cfg.width)


@partial(jax.jit, static_argnums=0)
def _tokens(cfg: ImageConfig, params: Any, pictures: Float[Array, "N Y X 3"]) -> Float[Array, "N I E"]:
    return nnx.merge(nnx.split(abstract(cfg), nnx.Param)[0], params)(pictures)
