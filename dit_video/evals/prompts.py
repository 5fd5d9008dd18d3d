"""The fixed lists of prompts, each with what it asks for and a scene that does it.

`plain`: one medium object, by day, before a static camera. `world`: everything that the world has. `free`: a hundred
that somebody wrote who had not read the grammar, in free_prompts.json; they stay as they are.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

import numpy as np

from dit_video.core.errors import BadInput
from dit_video.data.toyworld import captions
from dit_video.data.toyworld import scene as words
from dit_video.data.toyworld.draw import make_scene
from dit_video.data.toyworld.scene import Body, Scene, check
from dit_video.data.toyworld.splits import is_heldout, room_for_two
from dit_video.evals.phrases import HELDOUT, PHRASES

KINDS = ("world", "plain", "free")
SUITE_SEED = 20260
_CANDIDATES = 16  # scenes of the world from which the one is taken that evens out how often each value was asked
# The attributes that are evened out, and how many values each has; a motion counts once for each of its directions.
_KINDS = [("moves", d) for d in words.DIRECTIONS] + [(m, "") for m in words.MOTIONS if m != "moves"]
_VALUES = {
    "shape": len(words.SHAPES), "colour": len(words.COLOURS), "size": len(words.SIZES), "kind": len(_KINDS),
    "speed": len(words.SPEEDS), "turn": len(words.TURNS), "background": len(words.BACKGROUNDS),
    "light": len(words.LIGHTS), "camera": len(words.CAMERAS),
}  # fmt: skip
_WORDS = ("shape", "colour", "size", "motion", "direction", "speed", "turn")
# Of four prompts one is as in training, one in a template that training never saw, two in such a template and in
# phrases that training never saw.
_SPOKEN = (("train", captions.TRAINING), ("heldout", captions.TRAINING), ("heldout", HELDOUT), ("heldout", HELDOUT))


@dataclass(frozen=True)
class Asked:
    """A prompt. `objects`: for each, the words that it must have; `around`: those of the whole clip (background
    "plain" is any plain one). What is not asked for is not in them. `template`, `phrases`, `combination`: "seen" or
    "unseen" in training, "" where nobody knows."""

    prompt: str
    objects: tuple[dict[str, str], ...]
    around: dict[str, str]
    template: str
    combination: str
    # one of many that do what is asked: for reference rows and first frames; None if nothing of this world does
    scene: Scene | None = field(repr=False)
    phrases: str = "seen"

    @property
    def number(self) -> str:
        return "one" if len(self.objects) == 1 else "two"


def suite(
    count: int, kind: str = "world", height: int = 64, width: int = 64, heldout: bool = False, seed: int = SUITE_SEED
) -> list[Asked]:
    """The first `count` prompts of a list that does not end (the free ones do), so a longer suite begins with the
    shorter one, in every size of the frame. heldout: only combinations of words that training never saw."""
    if kind == "free":
        return _free(height, width)[:count]
    return (_plain if kind == "plain" else _world)(count, height, width, heldout, seed)


def _plain(count: int, height: int, width: int, heldout: bool, seed: int) -> list[Asked]:
    """Motions (moves once for each of its eight directions), colours and shapes come in shuffled rounds, so each value
    is as frequent as any; every third prompt is in a template that training never saw."""
    rng = np.random.default_rng(seed)
    motions, colours, shapes = _rounds(rng, _KINDS), _rounds(rng, words.COLOURS), _rounds(rng, words.SHAPES)
    waiting: list[str] = []  # shapes that could not be had with the motion before them
    asked: list[Asked] = []
    while len(asked) < count:
        i = len(asked)
        motion, direction = next(motions)
        shape = _take(waiting, shapes, words.ROUND if motion == "spins" else ())
        # a generator of its own: the height and width of the frame change the places and nothing else
        own = np.random.default_rng((seed, i))
        template, spoken = ("heldout" if i % 3 == 2 else "train"), np.random.default_rng((seed, i, 1))
        given = {"shape": shape, "colour": next(colours), "motion": motion, "direction": direction or None}
        scene = make_scene(own, height=height, width=width, **given)
        prompt = captions.caption(scene, spoken, template)
        one = ask(prompt, scene, "unseen" if template == "heldout" else "seen")
        if not heldout or one.combination == "unseen":
            asked.append(one)
    return asked


def _world(count: int, height: int, width: int, heldout: bool, seed: int) -> list[Asked]:
    """Scenes drawn over all words that go together, a third of them with two objects; of several draws the one whose
    words were asked least often so far, so that values are about as frequent as they can be."""
    rng, counts = np.random.default_rng((seed, 7)), Counter[tuple[str, str]]()
    two, spoken = _rounds(rng, (False, False, True)), _rounds(rng, range(len(_SPOKEN)))
    asked = []
    for i in range(count):
        has_two, drawn = next(two), []
        while len(drawn) < _CANDIDATES:
            words_of = _draw(rng, has_two)
            if words_of is not None and (not heldout or _heldout_whatever_is_said(words_of)):
                drawn.append(words_of)
        chosen = min(drawn, key=lambda one: _frequency(one, counts))
        counts.update(_values(chosen))
        own, speech = np.random.default_rng((seed, i, 2)), np.random.default_rng((seed, i, 3))
        scene = make_scene(own, height=height, width=width, **chosen)
        template, lexicon = _SPOKEN[next(spoken)]
        said = bool(speech.random() < 0.85)
        prompt = captions.caption(scene, speech, template, lexicon, said)
        while lexicon is HELDOUT and not _says(prompt, PHRASES):
            prompt = captions.caption(scene, speech, template, lexicon, said)
        asked.append(ask(prompt, scene, "unseen" if template == "heldout" else "seen", lexicon is HELDOUT))
    return asked


def _draw(rng: np.random.Generator, two: bool) -> dict[str, Any] | None:
    """Words for `make_scene`, each drawn evenly; None if they do not go together."""

    def pick(options: Sequence[str]) -> str:
        return options[int(rng.integers(len(options)))]

    bodies = []
    for _ in range(1 + two):
        motion, direction = _KINDS[int(rng.integers(len(_KINDS)))]
        one = {"shape": pick(words.SHAPES), "colour": pick(words.COLOURS), "size": pick(words.SIZES), "motion": motion}
        if direction:
            one["direction"] = direction
        if motion in words.HAS_TURN:
            one["turn"] = pick(words.TURNS)
        one["speed"] = pick(words.SPEEDS) if motion != "still" else "middle"
        bodies.append(one)
    background = pick(words.BACKGROUNDS)
    light, camera = pick(words.LIGHTS), pick(words.CAMERAS) if background in ("checkered", "striped") else "static"
    tones = "slate" if background in words.PATTERNS else ""
    try:
        check(Scene(tuple(Body(**one) for one in bodies), background, light, camera, tones))
    except BadInput:
        return None
    if two and not room_for_two(*bodies):
        return None
    second = {"second": bodies[1]} if two else {}
    return bodies[0] | second | {"background": background, "light": light, "camera": camera}


def _values(given: dict[str, Any]) -> list[tuple[str, str]]:
    bodies = [given, *([given["second"]] if "second" in given else [])]
    own = [
        (name, body[name]) for body in bodies for name in ("shape", "colour", "size", "speed", "turn") if name in body
    ]
    own += [("kind", body["motion"] + body.get("direction", "")) for body in bodies]
    return own + [(name, given[name]) for name in ("background", "light", "camera")]


def _frequency(given: dict[str, Any], counts: Counter[tuple[str, str]]) -> float:
    """How often its values were asked, each against how many values there are."""
    return float(np.mean([(counts[name, value] * _VALUES[name]) ** 2 for name, value in _values(given)]))


def _heldout_whatever_is_said(given: dict[str, Any]) -> bool:
    """Whether the objects' own words are a combination that training never saw: the prompt may leave out the
    background."""
    bodies = [given, *([given["second"]] if "second" in given else [])]
    plain = Scene(tuple(Body(**{name: one[name] for name in _WORDS if name in one}) for one in bodies), "none")
    return is_heldout(plain)


def _free(height: int, width: int) -> list[Asked]:
    """As they were written. A value that is not given is not asked for."""
    asked = []
    for i, row in enumerate(json.loads(files("dit_video.evals").joinpath("free_prompts.json").read_text("utf-8"))):
        objects = [{name.replace("color", "colour"): value for name, value in one.items()} for one in row["objects"]]
        around = {name: row[name] for name in ("background", "light", "camera") if name in row}
        second = {"second": objects[1]} if len(objects) > 1 else {}
        try:
            rng = np.random.default_rng((SUITE_SEED, i, 4))
            scene = make_scene(rng, height=height, width=width, **objects[0], **second, **around)
        except BadInput:
            scene = None
        around["count"] = "two" if second else "one"
        asked.append(Asked(row["prompt"], tuple(objects), around, "", "", scene, ""))
    return asked


def ask(prompt: str, scene: Scene, template: str = "seen", new_phrases: bool = False) -> Asked:
    """What a prompt asks for that was made of this scene: what it says, and what it means by not saying it."""
    said_background = _says(prompt, _phrases("background", scene.background))
    objects = []
    for body in scene.bodies:
        wanted = {"colour": body.colour, "shape": body.shape, "size": body.size, "motion": body.motion}
        if body.direction:
            wanted["direction"] = body.direction
        if body.turn and _says(prompt, _phrases("turn", body.turn)):
            wanted["turn"] = body.turn
        if body.speed != "middle":
            wanted["speed"] = body.speed
        objects.append(wanted)
    plain = scene.background in words.PLAIN and not said_background
    around = {"count": words.count(scene), "background": "plain" if plain else scene.background,
              "light": scene.light, "camera": scene.camera}  # fmt: skip
    combination = "unseen" if _unseen(scene, said_background) else "seen"
    phrases = "unseen" if new_phrases else "seen"
    return Asked(prompt, tuple(objects), around, template, combination, scene, phrases)


def _phrases(name: str, value: str) -> list[str]:
    return [phrase for lexicon in (captions.TRAINING, HELDOUT) for phrase in getattr(lexicon, name)[value]]


def _unseen(scene: Scene, said_background: bool) -> bool:
    """Whether training never saw what is said; a background that is not said is the model's choice."""
    if said_background:
        return is_heldout(scene)
    backgrounds = [scene.background] if scene.background in words.PATTERNS else words.PLAIN
    return all(is_heldout(Scene(scene.bodies, background)) for background in backgrounds)


def _says(prompt: str, phrases: Sequence[str] | frozenset[str]) -> bool:
    return any(phrase in prompt.lower() for phrase in phrases)


def _rounds(rng: np.random.Generator, values: Sequence[Any]) -> Iterator[Any]:
    """All values in random order, then all again, for ever."""
    while True:
        for i in rng.permutation(len(values)):
            yield values[i]


def _take(waiting: list[str], values: Iterator[str], refused: Sequence[str]) -> str:
    """The next value that is not refused; those that are wait for the next turn."""
    for i, value in enumerate(waiting):
        if value not in refused:
            return waiting.pop(i)
    while (value := next(values)) in refused:
        waiting.append(value)
    return value
