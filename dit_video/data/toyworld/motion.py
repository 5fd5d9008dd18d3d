"""Scenes as arrays of one fixed size, and where everything is at a given time, in closed form.

The same code runs on NumPy (to place objects when a scene is drawn, to check a clip) and on JAX (to render).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from dit_video.data.toyworld import scene as words
from dit_video.data.toyworld.scene import Body, Scene

TAU = 2 * np.pi


class BodyArrays(NamedTuple):
    """Objects; the axes in front are free. Lengths in units of m = min(height, width), angles in radians."""

    shape: Int[np.ndarray, "*n"]  # index into SHAPES
    rgb: Float[np.ndarray, "*n 3"]
    start: Float[np.ndarray, "*n 2"]  # x, y in fractions of the frame
    velocity: Float[np.ndarray, "*n 2"]
    reach: Float[np.ndarray, "*n 4"]  # left, right, up, down, at time 0
    wrap: Float[np.ndarray, "*n"]  # 1: comes back in on the other side; 0: bounces off the walls
    hop: Float[np.ndarray, "*n 3"]  # height, period in seconds, phase in turns
    orbit: Float[np.ndarray, "*n 3"]  # radius, angular velocity, first angle
    size: Float[np.ndarray, "*n 3"]  # radius at time 0, what it gains for ever as a factor of it, time constant
    spin: Float[np.ndarray, "*n 2"]  # first angle, angular velocity


class SceneArrays(NamedTuple):
    """One scene; stacked along a first axis, a batch. Of two bodies the second is in front; one that is not there has
    radius 0."""

    bodies: BodyArrays  # with an axis of 2
    pattern: Int[np.ndarray, "*n"]  # 0 plain, then 1 + index into PATTERNS
    tones: Float[np.ndarray, "*n 2 3"]
    stripe: Float[np.ndarray, "*n 2"]  # angle, offset in periods
    light: Int[np.ndarray, "*n"]  # index into LIGHTS
    camera: Float[np.ndarray, "*n 4"]  # distance of the pan, log of the zoom, amplitude and phase of the shake


def body_arrays(body: Body) -> BodyArrays:
    """Arrays of one object, without axes in front."""
    radius, speed, motion = words.RADIUS[body.size], body.speed, body.motion
    turn = -1.0 if body.turn == "counterclockwise" else 1.0
    velocity = np.multiply(words.UNIT[body.direction], words.VELOCITY[speed]) if motion == "moves" else (0, 0)
    gain = {"grows": words.GROWTH - 1, "shrinks": 1 / words.GROWTH - 1}.get(motion, 0)
    orbit = (words.ORBIT_RADIUS, turn * TAU / words.ORBIT_PERIOD[speed], TAU * body.phase)
    return BodyArrays(
        shape=np.int32(words.SHAPES.index(body.shape)),
        rgb=np.float32(words.RGB[body.colour]),
        start=np.float32([body.x, body.y]),
        velocity=np.float32(velocity),
        reach=np.float32(words.EXTENT[body.shape]) * np.float32(radius),
        wrap=np.float32(body.edge == "wrap"),
        hop=np.float32([words.HOP_HEIGHT * (motion == "bounces"), words.HOP_PERIOD[speed], body.phase]),
        orbit=np.float32(orbit if motion == "circles" else (0, 0, 0)),
        size=np.float32([radius, gain, words.GROWTH_TAU[speed]]),
        spin=np.float32((TAU * body.phase, turn * words.SPIN[speed]) if motion == "spins" else (0, 0)),
    )


_NOBODY = body_arrays(Body("circle", "white"))._replace(size=np.float32([0, 0, 1]))
_ZOOM = {"zooms in": np.log(words.ZOOM), "zooms out": -np.log(words.ZOOM)}
_PAN = {"pans right": words.PAN, "pans left": -words.PAN}


def scene_arrays(scene: Scene) -> SceneArrays:
    """Arrays of one scene, without axes in front."""
    bodies = [body_arrays(body) for body in scene.bodies] + [_NOBODY] * (2 - len(scene.bodies))
    plain = scene.background in words.PLAIN
    tones = (words.PLAIN_RGB[scene.background],) * 2 if plain else words.TONES[scene.tones]
    camera = scene.camera
    shake = words.SHAKE if camera == "handheld" else 0
    return SceneArrays(
        bodies=BodyArrays(*(np.stack(field) for field in zip(*bodies, strict=True))),
        pattern=np.int32(0 if plain else 1 + words.PATTERNS.index(scene.background)),
        tones=np.float32(tones),
        stripe=np.float32([scene.angle, scene.offset]),
        light=np.int32(words.LIGHTS.index(scene.light)),
        camera=np.float32([_PAN.get(camera, 0), _ZOOM.get(camera, 0), shake, scene.shake]),
    )


def pack(scenes: Sequence[Scene]) -> SceneArrays:
    """A batch of scenes as arrays with a first axis of len(scenes)."""
    each = [scene_arrays(scene) for scene in scenes]
    bodies = BodyArrays(*(np.stack(field) for field in zip(*(one.bodies for one in each), strict=True)))
    rest = (np.stack(field) for field in list(zip(*each, strict=True))[1:])
    return SceneArrays(bodies, *rest)


class Track(NamedTuple):
    """Where objects are, in pixels; the axis of time is the last one of n."""

    x: Any
    y: Any
    radius: Any
    angle: Any


def _fold(start: Any, travel: Any, before: Any, after: Any, side: Any, wrap: Any, xp: Any) -> Any:
    """Place after a way of `travel` from `start`, in a room of [0, side], of an object that reaches `before` to the one
    and `after` to the other wall. Bounce: a triangle wave. Wrap: modulo, so wide that the object is out of sight
    when it changes sides."""
    low, room = before, xp.maximum(side - before - after, 1e-6)
    start = xp.clip(start, low, low + room)
    bounced = low + room - xp.abs((start + travel - low) % (2 * room) - room)
    return xp.where(wrap > 0, (start + travel + after) % (side + before + after) - after, bounced)


def world_track(bodies: BodyArrays, times: Any, height: int, width: int, xp: Any = np) -> Track:
    """Track in the world, that is, on the screen of a static camera.

    bodies: fields (*n,) and (*n, k). times: (T,), seconds. Returns fields (*n, T), pixels.
    """
    m = float(min(height, width))

    def part(field: Any, i: int) -> Any:
        return field[..., i, None]

    x, y = (
        _fold(
            part(bodies.start, i) * (side / m), part(bodies.velocity, i) * times, part(bodies.reach, 2 * i),
            part(bodies.reach, 2 * i + 1), side / m, bodies.wrap[..., None], xp,
        )
        for i, side in enumerate((width, height))
    )  # fmt: skip
    hop = (times / part(bodies.hop, 1) + part(bodies.hop, 2)) % 1.0
    orbit = part(bodies.orbit, 2) + part(bodies.orbit, 1) * times
    x = x + part(bodies.orbit, 0) * xp.cos(orbit)
    y = y + part(bodies.orbit, 0) * xp.sin(orbit) - part(bodies.hop, 0) * 4 * hop * (1 - hop)
    radius = part(bodies.size, 0) * (1 + part(bodies.size, 1) * (1 - xp.exp(-times / part(bodies.size, 2))))
    return Track(x * m, y * m, radius * m, part(bodies.spin, 0) + part(bodies.spin, 1) * times)


def view(camera: Any, times: Any, height: int, width: int, xp: Any = np) -> tuple[Any, Any, Any]:
    """The camera's magnification and how far it has gone to the right and down, in pixels; 1, 0, 0 at time 0.

    camera: (*n, 4). times: (T,). Returns three of (*n, T).
    """
    m = float(min(height, width))
    far = 1 - xp.exp(-times / words.CAMERA_TAU)
    amplitude, phase = camera[..., 2, None], camera[..., 3, None]

    def wave(hertz: float, turns: float) -> Any:
        return xp.sin(TAU * (hertz * times + turns * phase)) - xp.sin(TAU * turns * phase)

    right = camera[..., 0, None] * far + amplitude * (wave(0.9, 1.0) + 0.6 * wave(1.9, 3.0))
    down = amplitude * (wave(1.1, 2.0) + 0.6 * wave(2.1, 5.0))
    return xp.exp(camera[..., 1, None] * far), right * m, down * m


def screen_track(scene: SceneArrays, times: Any, height: int, width: int, xp: Any = np) -> Track:
    """Track on the screen. scene: one, or a batch. Returns fields (*n, 2, T), pixels; an absent object has radius 0."""
    world = world_track(scene.bodies, times, height, width, xp)
    zoom, right, down = (a[..., None, :] for a in view(scene.camera, times, height, width, xp))
    return Track(
        (world.x - right - width / 2) * zoom + width / 2,
        (world.y - down - height / 2) * zoom + height / 2,
        world.radius * zoom,
        world.angle,
    )
