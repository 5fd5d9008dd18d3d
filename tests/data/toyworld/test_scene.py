"""Scenes: written and read to the last bit; what cannot be told apart is not made."""

from dataclasses import replace

import numpy as np
import pytest

from dit_video.core.errors import BadInput
from dit_video.data.toyworld import scene as words
from dit_video.data.toyworld.scene import Body, Scene, check, count, from_json, to_json
from dit_video.data.toyworld.splits import sample_scene

RIGHT = Body("circle", "red", motion="moves", direction="right")


def test_json_is_exact(rng):
    for _ in range(200):
        scene = sample_scene(rng, "any", plain=0.3)
        assert from_json(to_json(scene)) == scene


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"bodies": []}', '{"bodies": [{"shape": "cube", "colour": "red"}]}'])
def test_json_that_is_no_scene(text):
    with pytest.raises(BadInput, match=r"not a scene|not made"):
        from_json(text)


@pytest.mark.parametrize(
    "scene, why",
    [
        (Scene((RIGHT,), "white", camera="pans left"), "needs a checkered or striped background"),
        (Scene((RIGHT,), "gradient", camera="zooms in", tones="fog"), "needs a checkered or striped background"),
        (Scene((Body("star", "red", motion="grows"),), "checkered", camera="zooms in", tones="fog"), "cannot be told"),
        (Scene((Body("ring", "red", motion="spins", turn="clockwise"),)), "nobody sees a ring spin"),
        (Scene((Body("star", "white"),), "white"), "cannot be seen"),
        (Scene((RIGHT,), light="night"), "not seen on a black background"),
        (Scene((RIGHT, replace(RIGHT, direction="left"))), "different colours"),
        (Scene((replace(RIGHT, edge="wrap"),)), "moves quickly"),
        (Scene((replace(RIGHT, direction=""),)), "direction"),
        (Scene((Body("star", "red", speed="slowly"),)), "has no speed"),
        (Scene((Body("star", "red", turn="clockwise"),)), "turn"),
        (Scene((RIGHT,), "striped"), "tones"),
        (Scene(()), "0 objects"),
        (Scene((Body("star", "teal"),)), "colour is 'teal'"),
    ],
)
def test_scenes_that_are_not_made(scene, why):
    with pytest.raises(BadInput, match=why):
        check(scene)


def test_word_lists_are_those_of_the_interface():
    assert words.SHAPES == ("circle", "square", "triangle", "star", "ring")
    assert words.COLOURS == ("red", "green", "blue", "yellow", "orange", "purple", "pink", "white")
    assert words.SIZES == ("small", "medium", "large")
    assert words.MOTIONS == ("still", "moves", "bounces", "circles", "grows", "shrinks", "spins")
    assert len(words.DIRECTIONS) == 8
    assert words.PLAIN == ("black", "grey", "white", "sky")
    assert words.BACKGROUNDS[4:] == ("gradient", "checkered", "striped")
    assert words.LIGHTS == ("day", "golden hour", "night")
    assert words.CAMERAS == ("static", "pans left", "pans right", "zooms in", "zooms out", "handheld")
    assert (count(Scene((RIGHT,))), count(Scene((RIGHT, RIGHT)))) == ("one", "two")


def test_values_lie_well_apart():
    for table in (words.RADIUS, words.VELOCITY, words.HOP_PERIOD, words.ORBIT_PERIOD, words.GROWTH_TAU, words.SPIN):
        steps = np.abs(np.diff(np.log(list(table.values()))))
        assert len(steps) == 2 and steps.min() > np.log(1.5)
    rgb = np.array([words.RGB[colour] for colour in words.COLOURS])
    apart = np.linalg.norm(rgb[:, None] - rgb[None], axis=-1) + 9 * np.eye(len(rgb))
    assert apart.min() > 0.35
