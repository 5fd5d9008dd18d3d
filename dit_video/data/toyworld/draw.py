"""From the words of a scene to a scene: what the words leave open is drawn, so that what they say can be seen.

Objects are placed such that in the first 17 frames (two seconds) they stay in sight, that one that moves has way before
it (no wall in its first 14 frames, unless it is quick), and that two do not hide each other for long.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from dit_video.core.errors import BadInput
from dit_video.data.toyworld import scene as words
from dit_video.data.toyworld.motion import TAU, SceneArrays, scene_arrays, screen_track
from dit_video.data.toyworld.scene import Body, Scene, check

_TIMES = np.arange(17, dtype=np.float32) / np.float32(words.FPS)
_AHEAD = 14 / words.FPS  # seconds without a wall
_LEAST_SPREAD = 0.10  # of the start along the way, in units of min(height, width), even if there is a wall sooner
_TRIES = 24
_WORDS = ("shape", "colour", "size", "motion", "direction", "speed", "edge", "turn")


def _starts(rng: np.random.Generator, body: Body, height: int, width: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """n places (n, 2) and phases (n,) that the body may have by itself, before a static camera."""
    m = min(height, width)
    extent = [reach * words.RADIUS[body.size] for reach in words.EXTENT[body.shape]]
    if body.motion == "grows":
        extent = [reach * words.GROWTH for reach in extent]
    if body.motion == "spins":
        extent = [words.RADIUS[body.size] * 1.25] * 4
    if body.motion == "circles":
        extent = [reach + words.ORBIT_RADIUS for reach in extent]
    lows, highs = [], []
    for axis, side in enumerate((width / m, height / m)):
        low, high = extent[2 * axis] + 0.01, side - extent[2 * axis + 1] - 0.01
        if low > high:
            low = high = (low + high) / 2
        way = words.UNIT[body.direction][axis] * words.VELOCITY[body.speed] if body.motion == "moves" else 0.0
        if body.edge == "wrap" and way:  # so near the wall that it is back in sight within 17 frames
            near = 0.35 * words.VELOCITY[body.speed] * float(_TIMES[-1])
            low, high = (side - near - 0.2, side - near) if way > 0 else (near, near + 0.2)
        elif way:
            spread = max(high - low - abs(way) * _AHEAD, min(_LEAST_SPREAD, high - low))
            low, high = (low, low + spread) if way > 0 else (high - spread, high)
        if body.motion == "bounces" and axis == 1:
            low = high = side - extent[3]
        lows.append(low / side)
        highs.append(high / side)
    phase = rng.random(n) if body.motion in ("bounces", "circles", "spins") else np.zeros(n)
    return rng.uniform(lows, highs, (n, 2)), phase


def _words_of(body: Body) -> dict[str, str]:
    return {name: getattr(body, name) for name in _WORDS}


def hidden(scene: Scene, height: int = 64, width: int = 64) -> float:
    """How badly a scene is seen in its first 17 frames: frames in which an object's centre is near the edge or out of
    the picture, or in which two objects overlap; the first frame counts five times."""
    return float(_hidden(scene_arrays(scene), len(scene.bodies), height, width))


def _hidden(arrays: SceneArrays, bodies: int, height: int, width: int) -> np.ndarray:
    """`hidden` of arrays with any axes in front."""
    track = screen_track(arrays, _TIMES, height, width)
    x, y, radius = (a[..., :bodies, :] for a in track[:3])
    wrap = arrays.bodies.wrap[..., :bodies, None] > 0
    inside = np.where(wrap, 0.0, 0.5 * radius)
    out = (x < inside) | (x > width - inside) | (y < inside) | (y > height - inside)
    bad = (out * np.where(wrap, 0.5, 1.0)).sum(-2)
    if bodies == 2:
        apart = np.hypot(x[..., 0, :] - x[..., 1, :], y[..., 0, :] - y[..., 1, :])
        bad = bad + 5 * np.clip(1.1 - apart / radius.sum(-2), 0, None)
    return bad.sum(-1) + 4 * bad[..., 0]


def place(rng: np.random.Generator, scene: Scene, height: int = 64, width: int = 64) -> Scene:
    """The scene with its places, phases and offsets drawn anew, to be seen well in a frame of that size: the first of
    several draws that is seen without fault, or else the best."""
    offset = float(rng.random()) if scene.background in ("checkered", "striped") else 0.0
    scene = replace(scene, offset=offset, shake=float(rng.random()) if scene.camera == "handheld" else 0.0)
    n = 1 if len(scene.bodies) == 1 and scene.camera in ("static", "handheld") else _TRIES
    starts, phases = zip(*(_starts(rng, body, height, width, n) for body in scene.bodies), strict=True)
    best = 0
    if n > 1:
        arrays = scene_arrays(scene)
        gone = [np.zeros((n, 2))] * (2 - len(starts))
        own = arrays.bodies
        phase = np.stack([*phases, *(nobody[:, 0] for nobody in gone)], 1)
        orbit = np.broadcast_to(own.orbit, (n, 2, 3)).copy()
        orbit[..., 2] = TAU * phase
        hop = np.broadcast_to(own.hop, (n, 2, 3)).copy()
        hop[..., 2] = phase
        own = own._replace(start=np.stack([*starts, *gone], 1), orbit=orbit, hop=hop)
        best = int(_hidden(arrays._replace(bodies=own), len(starts), height, width).argmin())
    bodies = (
        replace(body, x=float(start[best, 0]), y=float(start[best, 1]), phase=float(phase[best]))
        for body, start, phase in zip(scene.bodies, starts, phases, strict=True)
    )
    return replace(scene, bodies=tuple(bodies))


def _choice(rng: np.random.Generator, options: Any) -> Any:
    return options[int(rng.integers(len(options)))]


def _body(rng: np.random.Generator, given: Mapping[str, str | None], taken: tuple[str, ...], zooms: bool) -> Body:
    free = {name: value for name, value in given.items() if value is not None}
    unknown = set(free) - set(_WORDS)
    if unknown:
        raise BadInput(f"An object of toyworld has no {', '.join(sorted(unknown))}; it has {', '.join(_WORDS)}.")
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
