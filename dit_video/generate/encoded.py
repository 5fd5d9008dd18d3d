"""Conditions as latents: what is known of a clip, as its model wants it, on the host."""

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, UInt8

from dit_video.generate.conditions import Conditions, known_positions
from dit_video.generate.decode import piece_bytes, tiles_for
from dit_video.generate.mode import beside_noise, slots_of
from dit_video.models.given import control_latents, kept_and_made, with_mask
from dit_video.models.image_encoder import prepare

if TYPE_CHECKING:
    from dit_video.generate.pipeline import VideoPipeline
    from dit_video.generate.request import Request

AT_ONCE = 65  # frames that are encoded whole; more go through in pieces


class Encoded(NamedTuple):
    """Normalised latents. Frames count from the clip's frame 0."""

    first: Float[np.ndarray, "1 h w z"] | None = None  # frame 0
    pictures: tuple[tuple[int, Float[np.ndarray, "h w z"]], ...] = ()  # (frame, it encoded alone), frames after 0
    video: Float[np.ndarray, "t h w z"] | None = None
    known: Bool[np.ndarray, "t h w"] | None = None  # positions of `video` that stay
    history: Float[np.ndarray, "n h w z"] | None = None
    opening: Float[np.ndarray, "1 h w z"] | None = None  # the first frame before the history
    beside: Float[np.ndarray, "1 t h w M"] | None = None  # channels that stand behind the noise's
    image: Float[np.ndarray, "1 I E"] | None = None  # tokens of the image encoder
    control: Float[np.ndarray, "1 n h w M"] | None = None  # of the references, then of the clip
    references: int = 0  # latent slots of `control` before the clip's


def encode(pipe: "VideoPipeline", request: "Request") -> Encoded:
    """Latents of all that is given."""
    model, given, programs, vae = pipe.model, request.given, pipe.programs, pipe.model.vae

    def latents(frames: UInt8[np.ndarray, "T H W 3"] | Float[np.ndarray, "T H W 3"]) -> Float[np.ndarray, "t h w z"]:
        weights, size = pipe.params["vae"], (request.height // vae.factor, request.width // vae.factor)
        slots, parts = slots_of(len(frames), vae.stride), programs.parts(1, *size)
        if len(frames) <= AT_ONCE and (pipe.memory is None or piece_bytes(vae, *size, slots) / parts <= pipe.memory):
            ready = programs.prepare({"encode": ((), programs.encode, (weights, frames[None]))})
            return np.asarray(ready["encode"](weights, frames[None]))[0]
        slots = tiles_for(vae, *size, pipe.memory, partial(programs.parts, 1))[1]
        return programs.encode_stream(weights, frames, slots)

    if model.dit.vace_layers:
        video, made = (jnp.asarray(a[None]) for a in shown(given, request.num_frames, request.height, request.width))
        halves = [jnp.asarray(latents(np.asarray(half[0]))[None]) for half in kept_and_made(video, made)]
        alone = [latents(picture[None]) for picture in given.references]
        references = jnp.asarray(np.concatenate(alone)[None]) if alone else None
        control = control_latents(*halves, made, references)
        return Encoded(control=np.asarray(control), references=len(alone))
    if beside_noise(model):
        video, made = shown(given, request.num_frames, request.height, request.width)
        beside = with_mask(jnp.asarray(latents(video)[None]), jnp.asarray(made[None, :, 0, 0] == 0))
        return Encoded(beside=np.asarray(beside), image=None if model.image is None else looked_at(pipe, given))
    pictures = [(frame, latents(picture[None])) for frame, picture in given.pictures]
    known = None
    if given.keep is not None:
        known = known_positions(given.keep, vae.stride, vae.factor, max(model.dit.patch[1:]))
    return Encoded(
        first=next((latent for frame, latent in pictures if frame == 0), None),
        pictures=tuple((frame, latent[0]) for frame, latent in pictures if frame),
        video=None if given.video is None else latents(given.video),
        known=known,
        history=None if given.history is None else latents(given.history),
        opening=None if given.opening is None else latents(given.opening[None]),
    )


def shown(
    given: Conditions, frames: int, height: int, width: int
) -> tuple[Float[np.ndarray, "T H W 3"], Float[np.ndarray, "T H W"]]:
    """What is given as a video in [-1, 1], grey (zero) where nothing is; and 1 for pixels that are to be made."""
    if given.video is not None:
        made = np.ones(given.video.shape[:3], np.float32) if given.keep is None else np.float32(~given.keep)
        return np.float32(given.video) / np.float32(127.5) - 1, made
    video, made = np.zeros((frames, height, width, 3), np.float32), np.ones((frames, height, width), np.float32)
    for frame, picture in given.pictures:
        video[frame], made[frame] = np.float32(picture) / np.float32(127.5) - 1, 0
    return video, made


def looked_at(pipe: "VideoPipeline", given: Conditions) -> Float[np.ndarray, "1 I E"]:
    """The image encoder's tokens of the given pictures, as they are fitted to the clip."""
    weights, programs = pipe.params.with_room("image"), pipe.programs
    pictures = np.stack([prepare(picture, pipe.model.image.size) for _, picture in given.pictures])
    tokens = programs.prepare({"see": ((), programs.see, (weights, pictures))})["see"](weights, pictures)
    pipe.params.let_go("image")
    return np.asarray(tokens)
