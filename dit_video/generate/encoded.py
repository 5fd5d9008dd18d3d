"""Conditions as latents: what is known of a clip, on the host."""

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8

from dit_video.generate.conditions import Conditions, known_positions
from dit_video.generate.programs import Programs

if TYPE_CHECKING:
    from dit_video.weights.model import Model


AT_ONCE = 65  # frames that are encoded whole; more go through in pieces


class Encoded(NamedTuple):
    """Normalised latents. Frames count from the clip's frame 0."""

    first: Float[np.ndarray, "1 h w z"] | None = None  # frame 0
    pictures: tuple[tuple[int, Float[np.ndarray, "h w z"]], ...] = ()  # (frame, it encoded alone), frames after 0
    video: Float[np.ndarray, "t h w z"] | None = None
    known: Bool[np.ndarray, "t h w"] | None = None  # positions of `video` that stay
    history: Float[np.ndarray, "n h w z"] | None = None
    opening: Float[np.ndarray, "1 h w z"] | None = None  # the first frame before the history


def encode(programs: Programs, vae: Any, model: "Model", given: Conditions) -> Encoded:
    """Latents of all that is given."""

    def latents(frames: UInt8[np.ndarray, "T H W 3"] | None) -> Float[np.ndarray, "t h w z"] | None:
        if frames is None:
            return None
        if len(frames) > AT_ONCE:
            return programs.encode_stream(vae, frames)
        ready = programs.prepare({"encode": ((), programs.encode, (vae, frames[None]))})
        return np.asarray(ready["encode"](vae, frames[None]))[0]

    alone = [(frame, latents(picture[None])) for frame, picture in given.pictures]
    known = None
    if given.keep is not None:
        known = known_positions(given.keep, model.vae.stride, model.vae.factor, max(model.dit.patch[1:]))
    return Encoded(
        first=next((latent for frame, latent in alone if frame == 0), None),
        pictures=tuple((frame, latent[0]) for frame, latent in alone if frame),
        video=latents(given.video),
        known=known,
        history=latents(given.history),
        opening=None if given.opening is None else latents(given.opening[None]),
    )
