"""From the words of a scene to a scene: what the words leave open is drawn, so that what they say can be seen.

Objects are placed such that in the first 17 frames (two seconds) they stay in sight, that one that moves has way before
it (no wall in its first 14 frames, unless it is quick), and that two do not hide each other for long.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from dit_video.core.errors import BadInput
from dit_video.data.toyworld import scene as words
from dit_video.data.toyworld.motion import scene_arrays, screen_track
from dit_video.data.toyworld.scene import Body, Scene, check

_TIMES = np.arange(17, dtype=np.float32) / np.float32(words.FPS)
_AHEAD = 14 / words.FPS  # seconds without a wall
_LEAST_SPREAD = 0.10  # of the start along the way, in units of min(height, width), even if there is a wall sooner
_TRIES = 12


def _start(rng: np.random.Generator, body: Body, height: int, width: int) -> Body:
    """The body at a place that it may have by itself, before a static camera."""
    m = min(height, width)
    sides = (width / m, height / m)
    extent = np.multiply(words.EXTENT[body.shape], words.RADIUS[body.size])
    if body.motion == "grows":
        extent = extent * words.GROWTH
    if body.motion == "spins":
        extent = np.full(4, words.RADIUS[body.size] * 1.25)
    if body.motion == "circles":
        extent = extent + words.ORBIT_RADIUS
    place = []
    for axis, side in enumerate(sides):
        low, high = extent[2 * axis] + 0.01, side - extent[2 * axis + 1] - 0.01
        if low > high:
            low = high = (low + high) / 2
        way = words.UNIT[body.direction][axis] * words.VELOCITY[body.speed] if body.motion == "moves" else 0.0
        if body.edge == "wrap" and way:  # in sight again within 17 frames, on the other side
            gap = 0.35 * words.VELOCITY[body.speed] * _TIMES[-1]
            far, near = (side / 2 + np.sign(way) * (side / 2 - gap - spread) for spread in (0.2, 0.0))
            low, high = min(far, near), max(far, near)
        elif way:
            spread = max(high - low - abs(way) * _AHEAD, min(_LEAST_SPREAD, high - low))
            low, high = (low, low + spread) if way > 0 else (high - spread, high)
        if body.motion == "bounces" and axis == 1:
            low = high = side - extent[3]
        place.append(float(rng.uniform(low, high)) / side)
    phase = float(rng.random()) if body.motion in ("bounces", "circles", "spins") else 0.0
    return Body(**(_words_of(body) | {"x": place[0], "y": place[1], "phase": phase}))


def _words_of(body: Body) -> dict[str, str]:
    return {
        name: getattr(body, name)
        for name in ("shape", "colour", "size", "motion", "direction", "speed", "edge", "turn")
    }


def hidden(scene: Scene, height: int = 64, width: int = 64) -> float:
    """How badly a scene is seen in its first 17 frames: frames in which an object's centre is near the edge or out of
    the picture, or in which two objects overlap; the first frame counts five times."""
    track = screen_track(scene_arrays(scene), _TIMES, height, width)
    bad = np.zeros(len(_TIMES))
    for i, body in enumerate(scene.bodies):
        inside = 0.0 if body.edge == "wrap" else 0.5 * track.radius[i]
        out = (
            (track.x[i] < inside)
            | (track.x[i] > width - inside)
            | (track.y[i] < inside)
            | (track.y[i] > height - inside)
        )
        bad += out * (0.5 if body.edge == "wrap" else 1.0)
    if len(scene.bodies) == 2:
        apart = np.hypot(track.x[0] - track.x[1], track.y[0] - track.y[1])
        bad += np.clip(1.3 - apart / (track.radius[0] + track.radius[1]), 0, None) * 4
    return float(bad.sum() + 4 * bad[0])


def place(rng: np.random.Generator, scene: Scene, height: int = 64, width: int = 64) -> Scene:
    """The scene with its places, phases and offsets drawn anew, to be seen well in a frame of that size."""

    def once() -> Scene:
        return Scene(
            tuple(_start(rng, body, height, width) for body in scene.bodies),
            scene.background,
            scene.light,
            scene.camera,
            scene.tones,
            scene.angle,
            float(rng.random()) if scene.background in ("checkered", "striped") else 0.0,
            float(rng.random()) if scene.camera == "handheld" else 0.0,
        )

    best = once()
    if len(scene.bodies) == 1 and scene.camera in ("static", "handheld"):
        return best
    worst = hidden(best, height, width)
    for _ in range(_TRIES):
        if worst == 0:
            break
        other = once()
        badness = hidden(other, height, width)
        if badness < worst:
            best, worst = other, badness
    return best


def _choice(rng: np.random.Generator, options: Any) -> Any:
    return options[int(rng.integers(len(options)))]


def _body(rng: np.random.Generator, given: Mapping[str, str | None], taken: tuple[str, ...], zooms: bool) -> Body:
    free = {name: value for name, value in given.items() if value is not None}
    unknown = set(free) - set(_words_of(Body("circle", "red")))
    if unknown:
        raise BadInput(
            f"An object of toyworld has no {', '.join(sorted(unknown))}; it has {', '.join(_words_of(Body('', '')))}."
        )
    direction = free.get("direction")
    apart = {"spins"} if free.get("shape") in words.ROUND else set()
    apart |= {"grows", "shrinks"} if zooms else set()
    motions = [motion for motion in words.MOTIONS if motion not in apart]
    motion = free.get("motion") or ("moves" if direction else _choice(rng, motions))
    shapes = [s for s in words.SHAPES if motion != "spins" or s not in words.ROUND]
    return Body(
        shape=free.get("shape") or _choice(rng, shapes),
        colour=free.get("colour") or _choice(rng, [c for c in words.COLOURS if c not in taken]),
        size=free.get("size") or "medium",
        motion=motion,
        direction=direction or (_choice(rng, words.DIRECTIONS) if motion == "moves" else ""),
        speed=free.get("speed") or "middle",
        edge=free.get("edge") or "bounce",
        turn=free.get("turn") or (_choice(rng, words.TURNS) if motion in words.HAS_TURN else ""),
    )


def make_scene(
    rng: np.random.Generator,
    *,
    second: Mapping[str, str | None] | None = None,
    background: str | None = None,
    light: str | None = None,
    camera: str | None = None,
    height: int = 64,
    width: int = 64,
    **first: str | None,
) -> Scene:
    """A scene of the words that are given: shape, colour, size, motion, direction, speed, edge, turn (of the first
    object; `second` has those of another), background, light, camera.

    What is left out is what a prompt means that does not say it: one object of medium size and middle speed that
    bounces off the walls, by day, before a static camera, on any plain background (on a checkered or striped one if the
    camera is not static). Shape, colour, motion and direction that are left out are drawn from what goes with the rest.
    Raises `BadInput` for words that do not exist or do not go together.
    """
    wanted = [first] if second is None else [first, second]
    colours = tuple(one["colour"] for one in wanted if one.get("colour"))
    bodies: list[Body] = []
    for one in wanted:
        taken = (*colours, *(body.colour for body in bodies), *(("white",) if background == "white" else ()))
        bodies.append(_body(rng, one, taken, (camera or "").startswith("zooms")))
    light, camera = light or "day", camera or "static"
    if background is None:
        options = words.PLAIN if camera == "static" else ("checkered", "striped")
        white = any(body.colour == "white" for body in bodies)
        options = [b for b in options if not (b == "white" and white) and not (b == "black" and light != "day")]
        background = _choice(rng, options)
    tones, angle = "", 0.0
    if background in words.PATTERNS:
        tones = _choice(rng, tuple(words.TONES))
        if background == "gradient":
            angle = _choice(rng, (0.0, 0.5, 1.0, 1.5)) * np.pi
        elif background == "striped":
            angle = _choice(rng, (-0.25, 0.0, 0.25)) * np.pi
    return place(rng, check(Scene(tuple(bodies), background, light, camera, tones, angle)), height, width)


def attributes(scene: Scene) -> dict[str, Any]:
    """The words of a scene, such that `make_scene(rng, **attributes(scene))` is another scene of the same words."""
    first, *second = (_words_of(body) for body in scene.bodies)
    rest = {"background": scene.background, "light": scene.light, "camera": scene.camera}
    return first | rest | ({"second": second[0]} if second else {})
