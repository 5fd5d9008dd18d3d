"""Latents become frames piece by piece: memory knows neither the length of a clip nor, with tiles, its size.

In time the causal decoder goes on from the past that the piece before left behind, which gives the values of the whole.
In space tiles overlap and are blended, because their borders have no neighbours to see; the past of every tile waits on
the host. On a mesh every device has a part of each frame and asks its neighbours for what borders on it, which gives
the values of the whole, too (`core.mesh.over_frames`).
"""

from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, UInt8

from dit_video.core.errors import BadInput, NonFinite
from dit_video.generate.programs import Programs, to_uint8
from dit_video.models.vae import VAEConfig, spans

SLOTS = 4  # latent slots at once


@dataclass(frozen=True)
class Tiles:
    """Sides of a tile and how much neighbours share, in latent positions."""

    height: int
    width: int
    overlap: int = 4

    def __post_init__(self) -> None:
        if not 0 < self.overlap < min(self.height, self.width):
            raise BadInput(f"tiles of {self.height}x{self.width} latents cannot share {self.overlap}.")


class Strip(NamedTuple):
    """One stream of latents (t, h, w, z), normalised, and how many of its frames are not shown."""

    latents: Float[np.ndarray, "t h w z"]
    skip: int = 0  # in front
    drop: int = 0  # at the end


def how_decoded(tiles: Tiles | None, slots: int) -> dict[str, Any]:
    """For a clip's metadata: slots at once, tiles as (height, width, overlap). Both round in their own way."""
    return {"slots": slots, "tiles": tiles and [*astuple(tiles)]}


def strips_of(latents: Float[np.ndarray, "t h w z"], metadata: dict[str, Any]) -> list[Strip]:
    """The streams of saved latents, as their metadata says. Raises BadInput where it does not fit them."""
    said = metadata.get("strips") or [[len(latents), 0, 0]]
    ends = np.cumsum([count for count, *_ in said])
    if ends[-1] != len(latents):
        raise BadInput(f"{len(latents)} latent frames, but their metadata says {ends[-1]}: not one file.")
    parts = np.split(latents, ends[:-1])
    return [Strip(part, skip, drop) for part, (_, skip, drop) in zip(parts, said, strict=True)]


def piece_bytes(vae: VAEConfig, height: int, width: int, slots: int = SLOTS) -> int:
    """About what decoding `slots` slots of a latent size needs: the frames at full resolution as the widest level has
    them, several at a time, and the past of its layers."""
    base = (vae.decoder_base or vae.base) * vae.mult[0]
    pixels = height * width * (vae.factor // vae.patch) ** 2
    number = 4 if vae.dtype == "float32" else 2
    live = 6 if vae.conv == "folded" else 4  # folded convolutions hold three times the channels
    return pixels * base * number * (live * (slots + 1) * vae.stride + 4 * (vae.res_blocks + 2))


def tiles_for(
    vae: VAEConfig, height: int, width: int, memory: int | None, parts: Callable[[int, int], int] = lambda *_: 1
) -> tuple[Tiles | None, int]:
    """Tiles and slots at once, so that a piece fits into `memory` bytes on each of the devices that share it: fewer
    slots first, then smaller tiles. parts: how many share a piece of a height and width.

    Raises BadInput where not even the smallest does.
    """
    for slots in (SLOTS, 2, 1):
        if memory is None or piece_bytes(vae, height, width, slots) <= memory * parts(height, width):
            return None, slots
    side = max(height, width)
    while side > 8:
        side = max(8, side // 2)
        tiles = Tiles(min(side, height), min(side, width), min(4, min(side, height, width) - 1))
        if piece_bytes(vae, tiles.height, tiles.width, 1) <= memory * parts(tiles.height, tiles.width):
            return tiles, 1
    raise BadInput(
        f"decoding wants {piece_bytes(vae, 8, 8, 1) / 2**20:.0f} MiB at least, {memory / 2**20:.0f} are free."
    )


def starts(size: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin along a side: as evenly as can be, the last one at the end."""
    count = 1 if size <= tile else 1 + -(-(size - tile) // (tile - overlap))
    return [round(i * (size - tile) / max(count - 1, 1)) for i in range(count)]


def _ramp(length: int, before: int, after: int) -> Float[np.ndarray, "n"]:
    """Weights of a tile along a side: rising over what it shares with the tile before, falling with the one after."""
    up, down = np.arange(1, length + 1) / (before + 1), np.arange(length, 0, -1) / (after + 1)
    return np.minimum(np.minimum(up, down), 1).astype(np.float32)


def pieces(
    vae: VAEConfig, count: int, height: int, width: int, tiles: Tiles | None, slots: int
) -> list[jax.ShapeDtypeStruct]:
    """What goes through the decoder of `count` slots: the first piece, and those after it, which have one shape."""
    side = (height, width) if tiles is None else (min(tiles.height, height), min(tiles.width, width))
    lengths = [min(slots + 1, count), *([slots] if count > slots + 1 else [])]
    return [jax.ShapeDtypeStruct((1, length, *side, vae.z), np.float32) for length in lengths]


def compile_pieces(programs: Programs, vae: Any, shapes: list[jax.ShapeDtypeStruct]) -> None:
    """Compiles what decodes `pieces`, so that decoding is not that. (On a mesh it is, as everything there.)"""
    if programs.mesh is not None:
        return
    past = None
    for piece in shapes:
        ready = programs.prepare({"decode_piece": ((), programs.decode_piece, (vae, piece, past))})
        past = ready["decode_piece"].out_info[1]


def decode_frames(
    programs: Programs, vae: Any, strip: Strip, tiles: Tiles | None = None, slots: int = SLOTS
) -> Iterator[UInt8[np.ndarray, "n H W 3"]]:
    """Frames of a strip, a few at a time. Raises NonFinite with the frame."""
    latents, stride = strip.latents, programs.stride
    total = 1 + (len(latents) - 1) * stride
    shown, done = range(strip.skip, total - strip.drop), 0
    for video in _videos(programs, vae, latents, tiles, slots):
        if not np.isfinite(video).all():
            raise NonFinite(f"Non-finite pixels in decoding, from frame {done} on. Try --dtype float32.")
        first, last = max(shown.start - done, 0), min(shown.stop - done, len(video))
        done += len(video)
        if first < last:
            yield to_uint8(video[first:last])


def _videos(
    programs: Programs, vae: Any, latents: Float[np.ndarray, "t h w z"], tiles: Tiles | None, slots: int
) -> Iterator[Float[np.ndarray, "n H W 3"]]:
    """Pixels in [-1, 1] of consecutive pieces. The last piece is filled up, so that its size needs no compile; what
    follows a frame does not change it."""
    count, h, w, _ = latents.shape
    tiles = tiles or Tiles(max(h, 2), max(w, 2), 1)
    th, tw = min(tiles.height, h), min(tiles.width, w)
    corners = [(y, x) for y in starts(h, th, tiles.overlap) for x in starts(w, tw, tiles.overlap)]
    pasts: list[Any] = [None] * len(corners)
    for begin, end in spans(count, slots):
        piece = latents[begin:end]
        if begin and len(piece) < slots:
            piece = np.concatenate([piece, np.repeat(piece[-1:], slots - len(piece), axis=0)])
        frames = (end - begin) * programs.stride if begin else 1 + (end - 1) * programs.stride
        parts = []
        for n, (y, x) in enumerate(corners):
            video, past = programs.decode_next(vae, piece[None, :, y : y + th, x : x + tw], pasts[n])
            pasts[n] = past if len(corners) == 1 else jax.tree.map(np.asarray, past)
            parts.append(np.asarray(video)[0, :frames])
        yield parts[0] if len(corners) == 1 else _joined(parts, corners, (h, w), (th, tw))


def _joined(
    parts: list[np.ndarray], corners: list[tuple[int, int]], size: tuple[int, int], tile: tuple[int, int]
) -> Float[np.ndarray, "n H W 3"]:
    """Tiles laid over each other, blended where they overlap."""
    factor = parts[0].shape[1] // tile[0]
    out = np.zeros((len(parts[0]), size[0] * factor, size[1] * factor, 3), np.float32)
    total = np.zeros(out.shape[1:3], np.float32)
    sides = [sorted({corner[axis] for corner in corners}) for axis in (0, 1)]
    for part, corner in zip(parts, corners, strict=True):
        ramps = []
        for axis in (0, 1):
            near, side, length = sides[axis].index(corner[axis]), sides[axis], tile[axis]
            before = side[near - 1] + length - side[near] if near else 0
            after = side[near] + length - side[near + 1] if near + 1 < len(side) else 0
            ramps.append(_ramp(length * factor, before * factor, after * factor))
        weight = ramps[0][:, None] * ramps[1]
        (y, x), (th, tw) = (c * factor for c in corner), (t * factor for t in tile)
        out[:, y : y + th, x : x + tw] += part * weight[..., None]
        total[y : y + th, x : x + tw] += weight
    out /= total[..., None]
    return out
