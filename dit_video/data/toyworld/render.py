"""Scenes to pixels: elementwise mathematics only, so that one jitted call renders a batch on any device.

Shapes are signed distances. A polygon of five sides or fewer is the largest of its distances to five lines; a
five-pointed star lies inside at least four of the five lines of its pentagram, so it is the second largest.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from dit_video.data.toyworld import scene as words
from dit_video.data.toyworld.motion import SceneArrays, Track, pack, screen_track, view

__all__ = ["SceneArrays", "frame_times", "pack", "render", "render_at", "render_batch", "to_uint8"]

# Normals of the lines of each upright shape (angles, clockwise from the right) and their distance from the centre.
_AWAY = 1e3  # of a line that a shape does not have
_LINES = {
    "square": ([0, 90, 180, 270, 0], [0.88, 0.88, 0.88, 0.88, _AWAY]),
    "triangle": ([90, 210, 330, 0, 0], [0.60, 0.60, 0.60, _AWAY, _AWAY]),
    "star": ([270, 342, 54, 126, 198], [1.25 * np.cos(np.radians(72))] * 5),
}
_NORMALS = np.radians([_LINES.get(shape, _LINES["square"])[0] for shape in words.SHAPES])
_OFFSETS = np.float32([_LINES.get(shape, _LINES["square"])[1] for shape in words.SHAPES])
_CIRCLE, _STAR, _RING = (words.SHAPES.index(shape) for shape in ("circle", "star", "ring"))

PERIOD = np.float32([1.0, 1.0, 0.42, 0.34])  # of plain, gradient, checkered, striped, in units of min(height, width)
# Of day, golden hour, night: the tint, how much darker the corners are, how much lighter the left is than the right.
TINT = np.float32([[1.0, 1.0, 1.0], [1.08, 0.94, 0.72], [0.50, 0.57, 0.76]])
VIGNETTE, SIDE = np.float32([0.0, 0.0, 0.40]), np.float32([0.0, 0.18, 0.0])


def frame_times(frames: int, fps: float = words.FPS) -> Float[np.ndarray, " T"]:
    """Times of the first frames, in seconds."""
    return np.arange(frames, dtype=np.float32) / np.float32(fps)


class _Lines(NamedTuple):
    """Of one object at all times: normals (5, T), distances (5, T), in pixels."""

    x: Array
    y: Array
    offset: Array


def _lines(shape: Array, radius: Array, angle: Array) -> _Lines:
    normals = jnp.asarray(_NORMALS, jnp.float32)[shape][:, None] + angle
    return _Lines(jnp.cos(normals), jnp.sin(normals), jnp.asarray(_OFFSETS)[shape][:, None] * radius)


def _distance(shape: Array, radius: Array, along: list[Array], away: Array) -> Array:
    """Signed distance in pixels, negative inside. along: distances (T, H, W) to the five lines; away: to the centre."""
    largest, second = along[0], jnp.float32(-1e9)
    for d in along[1:]:
        second = jnp.maximum(second, jnp.minimum(largest, d))
        largest = jnp.maximum(largest, d)
    ring = jnp.abs(away - words.RING[0] * radius) - words.RING[1] * radius
    polygon = jnp.where(shape == _STAR, second, largest)
    return jnp.where(shape == _CIRCLE, away - radius, jnp.where(shape == _RING, ring, polygon))


def _smooth(x: Array) -> Array:
    """Smoothstep of [0, 1]."""
    x = jnp.clip(x, 0, 1)
    return x * x * (3 - 2 * x)


def _background(scene: SceneArrays, times: Array, x: Array, y: Array, height: int, width: int) -> Array:
    """Share of the second tone, (T, H, W); the pattern stands still in the world, a gradient on the screen."""
    m, middle_x, middle_y = float(min(height, width)), width / 2, height / 2
    zoom, right, down = (a[:, None, None] for a in view(scene.camera, times, height, width, jnp))
    period = jnp.asarray(PERIOD)[scene.pattern] * m
    world_x, world_y = (x - middle_x) / zoom + right, (y - middle_y) / zoom + down
    cos, sin, offset = jnp.cos(scene.stripe[0]), jnp.sin(scene.stripe[0]), scene.stripe[1]

    def edges(u: Array) -> Array:
        """A square wave of -1 and 1, smooth over a pixel."""
        u = u / period + offset
        return 2 * jnp.clip((0.25 - jnp.abs(u - jnp.floor(u) - 0.5)) * (period * zoom), -0.5, 0.5)

    across = edges(world_x * cos + world_y * sin)
    checkered = across * edges(world_y * cos - world_x * sin)
    ramp = ((x - middle_x) * cos / width + (y - middle_y) * sin / height) / (jnp.abs(cos) + jnp.abs(sin)) + 0.5
    square = jnp.where(scene.pattern == 2, checkered, across) / 2 + 0.5
    return jnp.where(scene.pattern == 1, jnp.broadcast_to(ramp, square.shape), square)


def _body(scene: SceneArrays, track: Track, i: int, x: Array, y: Array) -> tuple[Array, Array, Array, Array]:
    """Of object i: its shadow's and its own opacity, its shade as a factor of its colour, its highlight; (T, H, W)."""
    shape, present = scene.bodies.shape[i], scene.bodies.size[i, 0] > 0
    radius = jnp.maximum(track.radius[i], 1e-3)
    lines = _lines(shape, radius, track.angle[i])
    x, y, r = x - track.x[i][:, None, None], y - track.y[i][:, None, None], radius[:, None, None]
    normals = [(lines.x[k][:, None, None], lines.y[k][:, None, None]) for k in range(5)]
    along = [nx * x + (ny * y - lines.offset[k][:, None, None]) for k, (nx, ny) in enumerate(normals)]
    d = _distance(shape, r, along, jnp.sqrt(x * x + y * y))
    cover = jnp.where(present, _smooth(0.5 - d / 1.3), 0.0)
    right, down = 0.14 * r, 0.20 * r
    along = [d - (nx * right + ny * down) for d, (nx, ny) in zip(along, normals, strict=True)]
    cast = _distance(shape, r, along, jnp.sqrt((x - right) ** 2 + (y - down) ** 2))
    shadow = jnp.where(present, 0.30 * _smooth(0.5 - cast / (0.5 * r)), 0.0)
    u, v = x / r, y / r
    shade = (0.98 - 0.06 * u - 0.10 * v) * (0.78 + 0.22 * _smooth(0.5 - d / (0.22 * r)))
    shine = 0.34 / (1 + 7 * ((u + 0.36) ** 2 + (v + 0.42) ** 2)) ** 2
    return shadow, cover, shade, shine


def render_at(scene: SceneArrays, times: Float[Array, " T"], height: int, width: int) -> Float[Array, "T H W 3"]:
    """Frames of one scene at any times, in seconds, each by itself; pixels in [-1, 1]. For use inside jit and vmap."""
    times = jnp.asarray(times, jnp.float32)
    y = (jnp.arange(height, dtype=jnp.float32) + 0.5)[None, :, None]
    x = (jnp.arange(width, dtype=jnp.float32) + 0.5)[None, None, :]
    track = screen_track(scene, times, height, width, jnp)
    share = _background(scene, times, x, y, height, width)
    bodies = [_body(scene, track, i, x, y) for i in range(2)]
    u, v = x / width - 0.5, y / height - 0.5
    vignette, side = jnp.asarray(VIGNETTE)[scene.light], jnp.asarray(SIDE)[scene.light]
    exposure = (1 - vignette * 2 * (u * u + v * v)) * (1 - side * (u + 0.5))
    tint = jnp.asarray(TINT)[scene.light]

    def channel(c: int) -> Array:
        colour = scene.tones[0, c] + (scene.tones[1, c] - scene.tones[0, c]) * share
        for i, (shadow, cover, shade, shine) in enumerate(bodies):
            own = jnp.minimum(scene.bodies.rgb[i, c] * shade, 1.0)
            colour = colour * (1 - shadow)
            colour = colour + (own + (1 - own) * shine - colour) * cover
        return 2 * jnp.clip(colour * tint[c] * exposure, 0, 1) - 1

    return jnp.stack([channel(c) for c in range(3)], -1)


@partial(jax.jit, static_argnames=("frames", "height", "width"))
def render(scene: SceneArrays, frames: int = 17, height: int = 64, width: int = 64) -> Float[Array, "T H W 3"]:
    """The first frames of one scene at 8 frames a second, pixels in [-1, 1]."""
    return render_at(scene, jnp.asarray(frame_times(frames)), height, width)


@partial(jax.jit, static_argnames=("frames", "height", "width"))
def render_batch(scenes: SceneArrays, frames: int = 17, height: int = 64, width: int = 64) -> Float[Array, "B T H W 3"]:
    """`render` of a batch, as `pack` makes it."""
    times = jnp.asarray(frame_times(frames))
    return jax.vmap(lambda scene: render_at(scene, times, height, width))(scenes)


def to_uint8(video: Float[Array, "*n 3"]) -> np.ndarray:
    """Pixels in [-1, 1] as bytes."""
    return np.asarray(jnp.round((jnp.clip(video, -1, 1) + 1) * 127.5)).astype(np.uint8)
