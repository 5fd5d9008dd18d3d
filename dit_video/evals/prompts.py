"""The fixed list of prompts, each with what it asks for and a scene that does it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dit_video.data.toyworld import captions
from dit_video.data.toyworld import scene as words
from dit_video.data.toyworld.draw import make_scene
from dit_video.data.toyworld.scene import Scene
from dit_video.data.toyworld.splits import is_heldout

SUITE_SEED = 20260


@dataclass(frozen=True)
class Asked:
    """A prompt. `objects`: for each, the words that it must have; `around`: those of the whole clip (background
    "plain" is any plain one). What is not asked for is not in them. `template`, `combination`: "seen" or "unseen" in
    training."""

    prompt: str
    objects: tuple[dict[str, str], ...]
    around: dict[str, str]
    template: str
    combination: str
    scene: Scene = field(repr=False)  # one of many that do what is asked: for reference rows and first frames


def suite(count: int = 96, seed: int = SUITE_SEED, height: int = 64, width: int = 64) -> list[Asked]:
    """The prompts: the first `count` of an endless list, so a longer suite begins with the shorter one.

    Plain scenes of one object. Motions (moves once for each of its eight directions), colours and shapes come in
    shuffled rounds, so each value is as frequent as any; every third prompt is in a template that training never saw.
    """
    rng = np.random.default_rng(seed)
    kinds = [("moves", d) for d in words.DIRECTIONS] + [(m, "") for m in words.MOTIONS if m != "moves"]
    motions, colours, shapes = _rounds(rng, kinds), _rounds(rng, words.COLOURS), _rounds(rng, words.SHAPES)
    waiting: list[str] = []  # shapes that could not be had with the motion before them
    asked = []
    for i in range(count):
        motion, direction = next(motions)
        shape = _take(waiting, shapes, words.ROUND if motion == "spins" else ())
        # a generator of its own: the height and width of the frame change the places and nothing else
        own = np.random.default_rng((seed, i))
        template, spoken = ("heldout" if i % 3 == 2 else "train"), np.random.default_rng((seed, i, 1))
        given = {"shape": shape, "colour": next(colours), "motion": motion, "direction": direction or None}
        scene = make_scene(own, height=height, width=width, **given)
        prompt = captions.caption(scene, spoken, template)
        asked.append(ask(prompt, scene, "unseen" if template == "heldout" else "seen"))
    return asked


def ask(prompt: str, scene: Scene, template: str = "seen") -> Asked:
    """What a prompt asks for that was made of this scene: what it says, and what it means by not saying it."""
    said_background = _says(prompt, captions.BACKGROUND_WORDS[scene.background])
    objects = []
    for body in scene.bodies:
        wanted = {"colour": body.colour, "shape": body.shape, "size": body.size, "motion": body.motion}
        if body.direction:
            wanted["direction"] = body.direction
        if body.turn and _says(prompt, captions.TURN_WORDS[body.turn]):
            wanted["turn"] = body.turn
        if body.speed != "middle":
            wanted["speed"] = body.speed
        objects.append(wanted)
    plain = scene.background in words.PLAIN and not said_background
    around = {"count": words.count(scene), "background": "plain" if plain else scene.background,
              "light": scene.light, "camera": scene.camera}  # fmt: skip
    combination = "unseen" if _unseen(scene, said_background) else "seen"
    return Asked(prompt, tuple(objects), around, template, combination, scene)


def _unseen(scene: Scene, said_background: bool) -> bool:
    """Whether training never saw what is said; a background that is not said is the model's choice."""
    if said_background:
        return is_heldout(scene)
    backgrounds = [scene.background] if scene.background in words.PATTERNS else words.PLAIN
    return all(is_heldout(Scene(scene.bodies, background)) for background in backgrounds)


def _says(prompt: str, phrases: Sequence[str]) -> bool:
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
