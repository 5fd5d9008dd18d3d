"""The exact scene: words for what a caption may say, numbers for what it leaves open.

Units: lengths are in units of m = min(height, width) of the frame, positions in fractions of the frame (x to the right,
y down), times in seconds, angles in radians, clockwise as seen on the screen. Every motion is a closed form in time, so
a scene has frames for any duration and any one of them can be made alone.
"""

import json
from dataclasses import asdict, dataclass

from dit_video.core.errors import BadInput

FPS = 8.0

SHAPES = ("circle", "square", "triangle", "star", "ring")
COLOURS = ("red", "green", "blue", "yellow", "orange", "purple", "pink", "white")
SIZES = ("small", "medium", "large")
MOTIONS = ("still", "moves", "bounces", "circles", "grows", "shrinks", "spins")
DIRECTIONS = ("left", "right", "up", "down", "up-left", "up-right", "down-left", "down-right")
SPEEDS = ("slowly", "middle", "quickly")  # a caption does not say "middle"
EDGES = ("bounce", "wrap")  # what a moving object does at the walls; a caption does not say "bounce"
TURNS = ("clockwise", "counterclockwise")  # of circles and spins; a caption may leave it open
PLAIN = ("black", "grey", "white", "sky")
PATTERNS = ("gradient", "checkered", "striped")
BACKGROUNDS = PLAIN + PATTERNS
LIGHTS = ("day", "golden hour", "night")
CAMERAS = ("static", "pans left", "pans right", "zooms in", "zooms out", "handheld")

RGB = {  # of an object in daylight, before its shading; sRGB in [0, 1]
    "red": (0.88, 0.10, 0.12),
    "green": (0.12, 0.66, 0.20),
    "blue": (0.10, 0.28, 0.92),
    "yellow": (0.98, 0.86, 0.10),
    "orange": (0.98, 0.50, 0.04),
    "purple": (0.50, 0.14, 0.72),
    "pink": (1.00, 0.52, 0.76),
    "white": (0.97, 0.97, 0.97),
}
PLAIN_RGB = {
    "black": (0.04, 0.04, 0.04),
    "grey": (0.46, 0.46, 0.46),
    "white": (0.94, 0.94, 0.94),
    "sky": (0.46, 0.71, 0.92),
}
# Two tones of a pattern: nearly grey, so that an object is the only saturated thing in the picture.
TONES = {
    "slate": ((0.20, 0.22, 0.26), (0.38, 0.41, 0.46)),
    "stone": ((0.24, 0.23, 0.21), (0.44, 0.42, 0.39)),
    "fog": ((0.36, 0.38, 0.39), (0.60, 0.62, 0.63)),
    "ink": ((0.12, 0.13, 0.16), (0.28, 0.30, 0.34)),
}

RADIUS = {"small": 0.09, "medium": 0.14, "large": 0.22}  # at time 0
VELOCITY = {"slowly": 0.11, "middle": 0.24, "quickly": 0.50}  # m/s, along the direction, diagonals too
UNIT = {  # direction on the screen, y down
    "left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0),
    "up-left": (-0.5**0.5, -(0.5**0.5)), "up-right": (0.5**0.5, -(0.5**0.5)),
    "down-left": (-0.5**0.5, 0.5**0.5), "down-right": (0.5**0.5, 0.5**0.5),
}  # fmt: skip
HOP_HEIGHT = 0.46  # bounces: parabolic hops on the floor of the frame, straight up and down
HOP_PERIOD = {"slowly": 1.6, "middle": 0.9, "quickly": 0.5}
ORBIT_RADIUS = 0.22
ORBIT_PERIOD = {"slowly": 3.4, "middle": 1.8, "quickly": 0.95}
GROWTH = 2.0  # grows: the radius goes to GROWTH times its first value; shrinks: to 1/GROWTH of it; then it stays
GROWTH_TAU = {"slowly": 3.0, "middle": 1.2, "quickly": 0.4}  # of 1 - exp(-t/tau)
SPIN = {"slowly": 0.50, "middle": 1.25, "quickly": 3.0}  # rad/s; a star repeats every 1.26 rad, so < 0.63 rad a frame
PAN, ZOOM, CAMERA_TAU = 0.36, 1.5, 1.5  # a pan goes PAN units, a zoom to a factor of ZOOM or 1/ZOOM, as 1 - exp(-t/tau)
SHAKE = 0.03  # amplitude of handheld

# How far a shape of radius 1 reaches left, right, up and down of its centre when it stands upright.
EXTENT = {
    "circle": (1.0, 1.0, 1.0, 1.0),
    "square": (0.88, 0.88, 0.88, 0.88),
    "triangle": (1.04, 1.04, 1.20, 0.60),
    "star": (1.19, 1.19, 1.25, 1.01),
    "ring": (1.05, 1.05, 1.05, 1.05),
}
RING = (0.78, 0.27)  # radius of the middle line and half the width of the band, of a ring of radius 1
HAS_DIRECTION, HAS_TURN = ("moves",), ("circles", "spins")
ROUND = ("circle", "ring")  # nobody sees them spin


@dataclass(frozen=True)
class Body:
    """One object. `x`, `y`: its place at time 0 in fractions of the frame; of the orbit's centre if it circles; if it
    bounces, `y` is its place when it stands on the floor. `phase` in [0, 1): of the hop, of the orbit, or the first
    angle of a spin, in turns; 0 otherwise. `direction` only if it moves, `turn` only if it circles or spins, else "".
    """

    shape: str
    colour: str
    size: str = "medium"
    motion: str = "still"
    direction: str = ""
    speed: str = "middle"
    edge: str = "bounce"
    turn: str = ""
    x: float = 0.5
    y: float = 0.5
    phase: float = 0.0


@dataclass(frozen=True)
class Scene:
    """One or two objects, the later one in front, before a background, in a light, seen by a camera.

    `tones`: which two tones a pattern has ("" if plain). `angle`: the direction in which a gradient runs or stripes
    repeat. `offset`: where in its period a pattern begins, in [0, 1). `shake`: phase of a handheld camera in [0, 1).
    """

    bodies: tuple[Body, ...]
    background: str = "black"
    light: str = "day"
    camera: str = "static"
    tones: str = ""
    angle: float = 0.0
    offset: float = 0.0
    shake: float = 0.0


def check(scene: Scene) -> Scene:
    """The scene itself, if it is made of known words and can be told from every other; else `BadInput`."""
    problems = []

    def known(what: str, value: str, words: tuple[str, ...]) -> None:
        if value not in words:
            problems.append(f"{what} is {value!r}, not one of {', '.join(w or 'none' for w in words)}")

    if len(scene.bodies) not in (1, 2):
        problems.append(f"{len(scene.bodies)} objects; a scene has one or two")
    for body in scene.bodies:
        known("shape", body.shape, SHAPES)
        known("colour", body.colour, COLOURS)
        known("size", body.size, SIZES)
        known("motion", body.motion, MOTIONS)
        known("direction", body.direction, DIRECTIONS if body.motion in HAS_DIRECTION else ("",))
        known("speed", body.speed, SPEEDS)
        known("edge", body.edge, EDGES)
        known("turn", body.turn, TURNS if body.motion in HAS_TURN else ("",))
        if body.motion == "still" and body.speed != "middle":
            problems.append("an object that is still has no speed")
        if body.motion == "spins" and body.shape in ROUND:
            problems.append(f"nobody sees a {body.shape} spin")
        if body.edge == "wrap" and (body.motion, body.speed) != ("moves", "quickly"):
            problems.append("only an object that moves quickly reaches the walls soon enough to be seen to wrap around")
        if body.edge == "wrap" and "-" in body.direction:
            problems.append("an object that moves diagonally does not wrap around")
        if body.edge == "wrap" and scene.camera != "static":
            problems.append("an object that wraps around is seen by a static camera only")
        if body.colour == "white" and scene.background == "white":
            problems.append("a white object on a white background cannot be seen")
        if body.motion in ("grows", "shrinks") and scene.camera.startswith("zooms"):
            problems.append(f"beside a camera that {scene.camera}, an object that {body.motion} cannot be told")
    known("background", scene.background, BACKGROUNDS)
    known("tones", scene.tones, tuple(TONES) if scene.background in PATTERNS else ("",))
    known("light", scene.light, LIGHTS)
    known("camera", scene.camera, CAMERAS)
    if len({body.colour for body in scene.bodies}) < len(scene.bodies):
        problems.append("two objects have different colours")
    if scene.camera != "static" and scene.background not in ("checkered", "striped"):
        problems.append(f"a camera that is not static needs a checkered or striped background, not {scene.background}")
    if scene.light != "day" and scene.background == "black":
        problems.append("the light is not seen on a black background")
    if problems:
        raise BadInput("This scene is not made: " + "; ".join(problems) + ".")
    return scene


def count(scene: Scene) -> str:
    return "one" if len(scene.bodies) == 1 else "two"


def to_json(scene: Scene) -> str:
    return json.dumps(asdict(scene))


def from_json(text: str) -> Scene:
    """Inverse of `to_json`, to the last bit; `BadInput` if the text is not a scene."""
    try:
        fields = json.loads(text)
        return check(Scene(**(fields | {"bodies": tuple(Body(**body) for body in fields["bodies"])})))
    except (KeyError, TypeError, ValueError) as error:
        raise BadInput(
            f"This is not a scene ({error}); a scene is the JSON that `dit-video data toyworld` writes."
        ) from error
