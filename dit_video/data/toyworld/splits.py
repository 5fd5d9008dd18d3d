"""What training never sees, defined once: combinations of words here, templates of captions in `captions`."""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from dit_video.core.errors import BadInput
from dit_video.data.toyworld import scene as words
from dit_video.data.toyworld.draw import make_scene
from dit_video.data.toyworld.scene import Scene

# Every value stands in at most two pairs of a list, so training sees it in all its other pairs.
COLOUR_SHAPE = frozenset(
    {("green", "star"), ("purple", "square"), ("pink", "triangle"), ("orange", "ring"), ("white", "circle")}
)  # 5 of 40
SHAPE_MOTION = frozenset(
    {("triangle", "bounces"), ("star", "circles"), ("ring", "grows"), ("square", "shrinks")}
)  # 4 of the 33 that there are: a circle and a ring do not spin
COLOUR_BACKGROUND = frozenset(
    {
        ("orange", "checkered"),
        ("blue", "striped"),
        ("green", "gradient"),
        ("pink", "sky"),
        ("purple", "grey"),
        ("yellow", "black"),
    }
)  # 6 of 55: white on white is not made

Split = Literal["train", "heldout", "any"]


def is_heldout(scene: Scene) -> bool:
    """Whether one of its objects has a combination that training never sees."""
    return any(_held_out(body.colour, body.shape, body.motion, scene.background) for body in scene.bodies)


def _held_out(colour: str, shape: str, motion: str, background: str) -> bool:
    held = (colour, shape) in COLOUR_SHAPE or (shape, motion) in SHAPE_MOTION
    return held or (colour, background) in COLOUR_BACKGROUND


def _pick(rng: np.random.Generator, options: Any, p: Any = None) -> Any:
    if p is None:
        return options[int(rng.integers(len(options)))]
    return options[int(np.searchsorted(np.cumsum(p), rng.random() * sum(p), side="right"))]


# Moves has eight directions, so it is drawn as often as three other motions.
_MOTION_WEIGHT = {"moves": 3.0}
_DRAWS = 10_000  # that are rejected before it is said that there is no such scene


def check_often(often: Mapping[str, float]) -> None:
    """Raises BadInput for what is no shape and no motion, and for weights that nothing can be drawn with."""
    known = (*words.SHAPES, *words.MOTIONS)
    for word, times in often.items():
        if word not in known or not (isinstance(times, int | float) and 0 <= times < float("inf")):
            raise BadInput(
                f"often: {word}={times}: give a shape or a motion ({', '.join(known)}) and how many times as often as "
                "others of its kind it is drawn, zero or more."
            )
    for kind in (words.SHAPES, words.MOTIONS):
        if not any(often.get(word, 1) for word in kind):
            raise BadInput(f"often: one of {', '.join(kind)} must be drawn.")
    if often.get("spins", 1) and not any(often.get(s, 1) for s in words.SHAPES if s not in words.ROUND):
        raise BadInput(f"often: {' and '.join(words.ROUND)} do not spin: draw another shape, or spins=0 too.")


def _body_words(rng: np.random.Generator, plain: bool, often: Mapping[str, float]) -> dict[str, str]:
    motion = _pick(rng, words.MOTIONS, [_MOTION_WEIGHT.get(m, 1.0) * often.get(m, 1.0) for m in words.MOTIONS])
    shapes = [shape for shape in words.SHAPES if motion != "spins" or shape not in words.ROUND]
    weights = [often.get(shape, 1.0) for shape in shapes] if not often.keys().isdisjoint(words.SHAPES) else None
    one = {"shape": _pick(rng, shapes, weights), "colour": _pick(rng, words.COLOURS), "motion": motion}
    if motion in words.HAS_DIRECTION:
        one["direction"] = _pick(rng, words.DIRECTIONS)
    if not plain:
        one["size"] = _pick(rng, words.SIZES, [3, 4, 3])
        if motion != "still":
            one["speed"] = _pick(rng, words.SPEEDS, [3, 4, 3])
        if one.get("speed") == "quickly" and motion == "moves" and "-" not in one["direction"] and rng.random() < 0.3:
            one["edge"] = "wrap"
    return one


def room_for_two(first: dict[str, str], second: dict[str, str]) -> bool:
    """Whether they can be placed without hiding each other for long: at most one is large, that one does not grow or
    circle, and if it moves the other keeps its place."""
    large = [(one, other) for one, other in ((first, second), (second, first)) if one["size"] == "large"]
    return len(large) < 2 and not any(
        one["motion"] in ("grows", "circles")
        or (one["motion"] == "moves" and other["motion"] in ("moves", "circles", "grows"))
        for one, other in large
    )


def sample_scene(
    rng: np.random.Generator,
    split: Split = "train",
    plain: float = 0.5,
    two: float = 0.25,
    height: int = 64,
    width: int = 64,
    often: Mapping[str, float] | None = None,
) -> Scene:
    """A scene of the world, or of one side of the split.

    plain: share of scenes that a plain prompt asks for (one medium object on a plain background, by day, before a
    static camera, at middle speed). two: share of two objects among the others. Both shares hold exactly, whatever the
    split rejects: what is rejected is drawn again of the same kind. often: how many times as often as others of its
    kind a shape or a motion is drawn.
    """
    often = often or {}
    if often:
        check_often(often)
    is_plain, has_two = rng.random() < plain, rng.random() < two
    for _ in range(_DRAWS):
        scene = _sample(rng, is_plain, has_two, height, width, split, often)
        if scene is not None:
            return scene
    raise BadInput(f"often={often}: no scene of the {split} part is made of these alone.")


def _sample(
    rng: np.random.Generator,
    plain: bool,
    two: bool,
    height: int,
    width: int,
    split: Split,
    often: Mapping[str, float],
) -> Scene | None:
    bodies = [_body_words(rng, plain, often)]
    if two and not plain:
        bodies.append(_body_words(rng, plain, often))
        if bodies[0]["colour"] == bodies[1]["colour"] or not room_for_two(*bodies):
            return None
    background, light, camera = _pick(rng, words.PLAIN), "day", "static"
    if not plain:
        background = _pick(rng, words.BACKGROUNDS, [2, 2, 2, 2, 3, 4, 4])
        light = _pick(rng, words.LIGHTS, [3, 1, 1])
        if background in ("checkered", "striped") and rng.random() < 0.6:
            camera = _pick(rng, words.CAMERAS[1:])
        if background == "black":
            light = "day"
        if any(one.get("edge") == "wrap" for one in bodies):
            camera = "static"
        if camera.startswith("zooms") and any(one["motion"] in ("grows", "shrinks") for one in bodies):
            return None
    if background == "white" and any(one["colour"] == "white" for one in bodies):
        return None
    if split != "any":
        heldout = any(_held_out(one["colour"], one["shape"], one["motion"], background) for one in bodies)
        if heldout != (split == "heldout"):
            return None
    second = bodies[1] if len(bodies) == 2 else None
    return make_scene(
        rng, second=second, background=background, light=light, camera=camera, height=height, width=width, **bodies[0]
    )
