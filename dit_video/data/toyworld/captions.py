"""Scenes to sentences: a grammar with many templates and synonyms, and the one canonical sentence of a scene.

A caption says whatever differs from the plain scene, and sometimes what does not. Held-out templates are sentences that
training never sees; their words it does see (function words too), so they ask for structure and not for vocabulary.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from dit_video.data.toyworld import scene as words
from dit_video.data.toyworld.scene import Body, Scene

Verb = tuple[str, str]  # "moves", "moving"

# The first word of each list is the canonical one.
SHAPE_WORDS = {
    "circle": ("circle", "disc", "disk"),
    "square": ("square", "box"),
    "triangle": ("triangle", "three-sided shape"),
    "star": ("star", "five-pointed star"),
    "ring": ("ring", "hoop", "doughnut"),
}
COLOUR_WORDS = {
    "red": ("red", "crimson", "scarlet"),
    "green": ("green", "emerald"),
    "blue": ("blue", "cobalt"),
    "yellow": ("yellow", "lemon-yellow"),
    "orange": ("orange", "tangerine"),
    "purple": ("purple", "violet"),
    "pink": ("pink", "rose-pink"),
    "white": ("white", "snow-white"),
}
SIZE_WORDS = {
    "small": ("small", "little", "tiny"),
    "medium": ("medium", "medium-sized"),
    "large": ("large", "big", "huge"),
}
VERBS: dict[str, tuple[Verb, ...]] = {
    "still": (
        ("stays still", "staying still"),
        ("does not move", "not moving"),
        ("stands still", "standing still"),
        ("remains in place", "remaining in place"),
        ("rests", "resting"),
    ),
    "moves": (
        ("moves", "moving"),
        ("glides", "gliding"),
        ("drifts", "drifting"),
        ("travels", "travelling"),
        ("slides", "sliding"),
        ("goes", "going"),
    ),
    "bounces": (
        ("bounces", "bouncing"),
        ("bounces up and down", "bouncing up and down"),
        ("hops", "hopping"),
        ("hops up and down", "hopping up and down"),
    ),
    "circles": (
        ("moves in a circle", "moving in a circle"),
        ("travels in a circle", "travelling in a circle"),
        ("goes round in circles", "going round in circles"),
        ("moves along a circular path", "moving along a circular path"),
    ),
    "grows": (
        ("grows", "growing"),
        ("gets bigger", "getting bigger"),
        ("becomes larger", "becoming larger"),
        ("expands", "expanding"),
    ),
    "shrinks": (
        ("shrinks", "shrinking"),
        ("gets smaller", "getting smaller"),
        ("becomes smaller", "becoming smaller"),
        ("contracts", "contracting"),
    ),
    "spins": (
        ("spins", "spinning"),
        ("rotates", "rotating"),
        ("spins around", "spinning around"),
        ("turns in place", "turning in place"),
    ),
}
DIRECTION_WORDS = {
    "left": ("left", "to the left", "leftwards", "from right to left", "towards the left"),
    "right": ("right", "to the right", "rightwards", "from left to right", "towards the right"),
    "up": ("up", "upwards", "towards the top", "straight up"),
    "down": ("down", "downwards", "towards the bottom", "straight down"),
    "up-left": ("up and left", "up and to the left", "diagonally up and left", "to the upper left", "up-left"),
    "up-right": ("up and right", "up and to the right", "diagonally up and right", "to the upper right", "up-right"),
    "down-left": (
        "down and left",
        "down and to the left",
        "diagonally down and left",
        "to the lower left",
        "down-left",
    ),
    "down-right": (
        "down and right",
        "down and to the right",
        "diagonally down and right",
        "to the lower right",
        "down-right",
    ),
}
SPEED_WORDS = {"slowly": ("slowly", "at a slow pace"), "middle": ("",), "quickly": ("quickly", "fast", "rapidly")}
TURN_WORDS = {"clockwise": ("clockwise",), "counterclockwise": ("counterclockwise", "anticlockwise")}
WRAP_WORDS = (
    ("and wraps around", "and comes back on the other side"),
    ("and wrapping around", "and coming back on the other side"),
)
BACKGROUND_WORDS = {
    "black": ("on a black background", "against black", "in front of a black wall"),
    "grey": ("on a grey background", "against grey", "on a gray background", "in front of a grey wall"),
    "white": ("on a white background", "against white", "in front of a white wall"),
    "sky": ("on a sky background", "against the sky", "in front of the sky"),
    "gradient": ("on a gradient background", "against a smooth gradient", "in front of a gradient"),
    "checkered": ("on a checkered background", "against a checkerboard", "in front of a chequered wall"),
    "striped": ("on a striped background", "against stripes", "in front of a striped wall"),
}
LIGHT_WORDS = {
    "day": ("by day", "in daylight"),
    "golden hour": ("at golden hour", "during the golden hour", "in golden evening light"),
    "night": ("at night", "by night", "in the dark of night"),
}
CAMERA_WORDS = {
    "static": ("the camera is static", "static camera", "fixed camera"),
    "pans left": ("the camera pans left", "the camera is panning to the left", "camera panning left"),
    "pans right": ("the camera pans right", "the camera is panning to the right", "camera panning right"),
    "zooms in": ("the camera zooms in", "the camera is zooming in", "camera zooming in"),
    "zooms out": ("the camera zooms out", "the camera is zooming out", "camera zooming out"),
    "handheld": ("handheld camera", "the camera is handheld", "shaky handheld camera"),
}


class Lexicon(NamedTuple):
    """Words for the words of a scene. The first of each list is the canonical one."""

    shape: Mapping[str, Sequence[str]]
    colour: Mapping[str, Sequence[str]]
    size: Mapping[str, Sequence[str]]
    motion: Mapping[str, Sequence[Verb]]
    direction: Mapping[str, Sequence[str]]
    speed: Mapping[str, Sequence[str]]
    turn: Mapping[str, Sequence[str]]
    background: Mapping[str, Sequence[str]]
    light: Mapping[str, Sequence[str]]
    camera: Mapping[str, Sequence[str]]


TRAINING = Lexicon(
    SHAPE_WORDS, COLOUR_WORDS, SIZE_WORDS, VERBS, DIRECTION_WORDS, SPEED_WORDS, TURN_WORDS, BACKGROUND_WORDS,
    LIGHT_WORDS, CAMERA_WORDS,
)  # fmt: skip

# {a}: "a red circle"; {the}: "the red circle"; {np}: "red circle"; {does}: "moves right"; {doing}: "moving right".
# {where}: background and light, after the sentence (" on a grey background at night") or nothing; {camera}: the same
# (", the camera pans left"); {first}: all of it in front ("At night, on stripes, "), or nothing.
CANONICAL = "{a} {does}{where}{camera}"
ONE = {
    "train": (
        CANONICAL,
        "{np} {does}{where}{camera}",
        "{the} {does}{where}{camera}",
        "{a} {doing}{where}{camera}",
        "{np} {doing}{where}{camera}",
        "{a} is {doing}{where}{camera}",
        "{a} that {does}{where}{camera}",
        "{a} that is {doing}{where}{camera}",
        "{np}, {doing}{where}{camera}",
        "one {np} {does}{where}{camera}",
        "a single {np} {doing}{where}{camera}",
        "{first}{a} {does}",
        "{first}{the} is {doing}",
        "{first}there is {a} {doing}",
        "{first}we see {a} that {does}",
        "there is {a} that {does}{where}{camera}",
        "we see {a} {doing}{where}{camera}",
        "we see how {a} {does}{where}{camera}",
        "you can see {a} {doing}{where}{camera}",
        "{a} can be seen {doing}{where}{camera}",
        "show {a} {doing}{where}{camera}",
        "show me {a} that {does}{where}{camera}",
        "show how {the} {does}{where}{camera}",
        "a video of {a} {doing}{where}{camera}",
        "a video of {a} that {does}{where}{camera}",
        "a short video shows {a} {doing}{where}{camera}",
        "a clip of {a} {doing}{where}{camera}",
        "a clip in which {a} {does}{where}{camera}",
        "in this clip, {a} {does}{where}{camera}",
        "in the video {the} {does}{where}{camera}",
        "an animation of {a} {doing}{where}{camera}",
        "animation: {a} {does}{where}{camera}",
        "a scene with {a} {doing}{where}{camera}",
        "a scene in which {the} {does}{where}{camera}",
        "here is {a} {doing}{where}{camera}",
        "this is {a} that {does}{where}{camera}",
        "{a} and nothing else, {doing}{where}{camera}",
        "{a}; it {does}{where}{camera}",
        "{a}. It is {doing}{where}{camera}",
        "look at {the} as it {does}{where}{camera}",
    ),
    "heldout": (
        "a short clip of {a} that is {doing}{where}{camera}",
        "here {the} {does}{where}{camera}",
        "in this video we see {a} {doing}{where}{camera}",
        "this is a video of {a}; it {does}{where}{camera}",
        "show a scene in which {a} is {doing}{where}{camera}",
        "you can see how {the} {does}{where}{camera}",
        "look, {a} {does}{where}{camera}",
        "{first}you see {a} as it {does}",
        "there is one {np} and it is {doing}{where}{camera}",
        "an animation in which {a} can be seen {doing}{where}{camera}",
    ),
}
TWO = {
    "train": (
        "{a} {does} and {b} {does2}{where}{camera}",
        "{np} {does} and {np2} {does2}{where}{camera}",
        "{a} {does} while {b} {does2}{where}{camera}",
        "while {a} {does}, {b} {does2}{where}{camera}",
        "{a} {doing} and {b} {doing2}{where}{camera}",
        "{np} {doing}, {np2} {doing2}{where}{camera}",
        "{a} {does}, {b} {does2}{where}{camera}",
        "{the} {does} and {the2} {does2}{where}{camera}",
        "{a} that {does} and {b} that {does2}{where}{camera}",
        "two shapes: {a} {doing} and {b} {doing2}{where}{camera}",
        "two objects, {a} that {does} and {b} that {does2}{where}{camera}",
        "{first}{a} {does} and {b} {does2}",
        "{first}there is {a} {doing} and {b} {doing2}",
        "we see {a} {doing} and {b} {doing2}{where}{camera}",
        "show {a} that {does} and {b} that {does2}{where}{camera}",
        "a video of {a} {doing} and {b} {doing2}{where}{camera}",
        "a clip in which {a} {does} while {b} {does2}{where}{camera}",
        "an animation of two shapes: {np} {doing}, {np2} {doing2}{where}{camera}",
        "in this clip, {a} {does} and {b} {does2}{where}{camera}",
        "a scene with {a} {doing} and {b} {doing2}{where}{camera}",
    ),
    "heldout": (
        "a video of two objects: {a} {does}, {b} {does2}{where}{camera}",
        "{a} is {doing} while {b} is {doing2}{where}{camera}",
        "in this clip we see {a} that {does} and {b} that {does2}{where}{camera}",
        "{first}while {a} {does}, {the2} {does2}",
    ),
}
# How often training takes the first templates of a list; the others share what is left.
_OFTEN_ONE, _OFTEN_TWO = (0.20, 0.08, 0.08, 0.05), (0.20, 0.08, 0.08)
_SYNONYM = 0.4  # how often a word is not the canonical one

Split = Literal["train", "heldout"]


class _Speaker:
    """Chooses among words; without a generator it takes the canonical ones and says only what is not plain."""

    def __init__(self, rng: np.random.Generator | None, synonym: float = 0.0, lexicon: Lexicon = TRAINING):
        self.rng, self.synonym, self.lexicon = rng, synonym, lexicon

    def chance(self, p: float) -> bool:
        return self.rng is not None and self.rng.random() < p

    def word(self, options: Sequence[Any]) -> Any:
        if self.rng is None or len(options) == 1 or not self.chance(self.synonym):
            return options[0]
        return options[1 + int(self.rng.integers(len(options) - 1))]

    def noun(self, body: Body) -> str:
        size = body.size != "medium" or self.chance(0.04)
        parts = [self.word(self.lexicon.size[body.size])] if size else []
        parts += [self.word(self.lexicon.colour[body.colour]), self.word(self.lexicon.shape[body.shape])]
        return " ".join(parts)

    def verb(self, body: Body) -> tuple[str, str]:
        forms = self.word(self.lexicon.motion[body.motion])
        direction = self.word(self.lexicon.direction[body.direction]) if body.direction else ""
        turn = self.word(self.lexicon.turn[body.turn]) if body.turn and self.chance(0.25) else ""
        speed = self.word(self.lexicon.speed[body.speed])
        before = " ".join(filter(None, (direction, turn, speed)))
        if direction and speed.endswith("ly") and self.chance(0.3):
            before = f"{speed} {direction}"
        ends = [self.word(ways) if body.edge == "wrap" else "" for ways in WRAP_WORDS]
        does, doing = (" ".join(filter(None, (form, before, end))) for form, end in zip(forms, ends, strict=True))
        if speed.endswith("ly") and not direction and body.edge != "wrap" and self.chance(0.2):
            rest = " ".join(filter(None, ("", turn)))
            does, doing = f"{speed} {forms[0]}{rest and ' ' + rest}", f"{speed} {forms[1]}{rest and ' ' + rest}"
        return does, doing

    def around(self, scene: Scene, said: bool | None) -> tuple[list[str], str]:
        """Background and light, and camera. said: whether a plain background is said; None: sometimes."""
        places = []
        if scene.background in words.PATTERNS or (self.chance(0.25) if said is None else said):
            places.append(self.word(self.lexicon.background[scene.background]))
        if scene.light != "day" or self.chance(0.04):
            places.append(self.word(self.lexicon.light[scene.light]))
        camera = self.word(self.lexicon.camera[scene.camera]) if scene.camera != "static" or self.chance(0.04) else ""
        return places, camera


def article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _say(speaker: _Speaker, template: str, scene: Scene, said: bool | None) -> str:
    places, camera = speaker.around(scene, said)
    if speaker.chance(0.3):
        places.reverse()
    slots = {
        "where": "".join(f" {place}" for place in places),
        "camera": f", {camera}" if camera else "",
        "first": "".join(f"{part}, " for part in (*places, *([camera] if camera else []))),
    }
    for body, a, number in zip(scene.bodies, ("a", "b"), ("", "2"), strict=False):
        noun = speaker.noun(body)
        slots[a], slots[f"np{number}"], slots[f"the{number}"] = article(noun), noun, f"the {noun}"
        slots[f"does{number}"], slots[f"doing{number}"] = speaker.verb(body)
    return template.format(**slots)


def _dress(rng: np.random.Generator, sentence: str) -> str:
    """Case and punctuation as people type them."""
    kind = rng.random()
    if kind < 0.40:
        return sentence
    if kind < 0.47:
        return sentence.lower()
    if kind < 0.50:
        return sentence.upper()
    capital = sentence[0].upper() + sentence[1:]
    return (
        capital if kind < 0.62 else f"{capital}." if kind < 0.95 else f"{capital}!" if kind < 0.97 else f"{sentence}."
    )


def caption(
    scene: Scene,
    rng: np.random.Generator,
    split: Split = "train",
    lexicon: Lexicon = TRAINING,
    background: bool | None = None,
) -> str:
    """A sentence for a scene, in a template of the split. One in five of training is canonical in its words too.
    background: whether it says which plain background it is; None: sometimes."""
    grammar, often = (ONE, _OFTEN_ONE) if len(scene.bodies) == 1 else (TWO, _OFTEN_TWO)
    templates = grammar[split]
    i = int(rng.integers(len(templates)))
    if split == "train":
        frequent = np.searchsorted(np.cumsum(often), rng.random(), side="right")
        i = int(frequent) if frequent < len(often) else int(rng.integers(len(often), len(templates)))
    plain_words = rng.random() < 0.25
    speaker = _Speaker(rng, 0.0 if plain_words else _SYNONYM, lexicon)
    return _dress(rng, _say(speaker, templates[i], scene, background))


def canonical(scene: Scene | Mapping[str, Any], background: bool = False) -> str:
    """The canonical sentence of a scene or of the words of one (as `draw.attributes` gives them; what is left out or
    None is not said): "a red circle moves right". It says what is not plain, and with `background` also which plain
    background it is."""
    if not isinstance(scene, Scene):
        first = {name: value for name, value in scene.items() if value is not None}
        second = [Body(**first.pop("second"))] if "second" in first else []
        around = {name: first.pop(name) for name in ("background", "light", "camera") if name in first}
        background = background or around.get("background") in words.PLAIN
        scene = Scene((Body(**first), *second), **around)
    template = CANONICAL if len(scene.bodies) == 1 else TWO["train"][0]
    return _say(_Speaker(None), template, scene, background)


def vocabulary(text: str) -> set[str]:
    """Words of a sentence, in lower case."""
    return set(re.findall(r"[a-z][a-z-]*", text.lower()))
