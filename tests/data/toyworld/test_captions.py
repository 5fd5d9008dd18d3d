"""Captions: canonical sentences to the letter; every caption says its scene; held-out templates are new in form."""

import re

import numpy as np
import pytest

from dit_video.data.toyworld import captions
from dit_video.data.toyworld import scene as words
from dit_video.data.toyworld.captions import ONE, TWO, canonical, caption, vocabulary
from dit_video.data.toyworld.draw import attributes
from dit_video.data.toyworld.scene import Body, Scene
from dit_video.data.toyworld.splits import sample_scene
from tests.data.toyworld.templates import speaks_in


@pytest.mark.parametrize(
    "asked, sentence",
    [
        ({"shape": "circle", "colour": "red", "motion": "moves", "direction": "right"}, "a red circle moves right"),
        ({"shape": "star", "colour": "orange", "motion": "still"}, "an orange star stays still"),
        ({"shape": "ring", "colour": "blue", "motion": "circles"}, "a blue ring moves in a circle"),
        (
            {"shape": "square", "colour": "pink", "size": "large", "motion": "moves", "direction": "up-left",
             "speed": "quickly", "background": "striped", "light": "night", "camera": "zooms in"},
            "a large pink square moves up and left quickly on a striped background at night, the camera zooms in",
        ),
        ({"shape": "ring", "colour": "red", "motion": "still", "light": "night"}, "a red ring stays still at night"),
        (
            {"shape": "star", "colour": "red", "motion": "spins", "camera": None,
             "second": {"shape": "disc", "colour": "blue", "motion": "grows"} | {"shape": "circle"}},
            "a red star spins and a blue circle grows",
        ),
    ],
)  # fmt: skip
def test_canonical(asked, sentence):
    assert canonical(asked) == sentence


def test_canonical_of_a_scene_and_of_its_words(rng):
    for _ in range(100):
        scene = sample_scene(rng, "any")
        assert canonical(attributes(scene)) == canonical(scene, background=True)


def test_templates_are_many_and_apart():
    assert len(ONE["train"]) >= 30 and len(TWO["train"]) >= 12
    assert len(ONE["heldout"]) >= 8 and len(TWO["heldout"]) >= 4
    for grammar in (ONE, TWO):
        every = (*grammar["train"], *grammar["heldout"])
        assert len(set(every)) == len(every)


def test_no_word_means_two_things():
    tables = (captions.SHAPE_WORDS, captions.COLOUR_WORDS, captions.SIZE_WORDS, captions.VERBS,
              captions.DIRECTION_WORDS, captions.SPEED_WORDS, captions.BACKGROUND_WORDS, captions.LIGHT_WORDS,
              captions.CAMERA_WORDS)  # fmt: skip
    seen = [word for table in tables for options in table.values() for word in options if word]
    assert len(seen) == len(set(seen))
    assert list(captions.SHAPE_WORDS) == list(words.SHAPES) and list(captions.VERBS) == list(words.MOTIONS)


def said(text: str, options) -> bool:
    return any(option.lower() in text for option in options)


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_a_caption_says_its_scene(split):
    rng = np.random.default_rng(2)
    for _ in range(1000):
        scene = sample_scene(rng, "any", plain=0.3)
        text = caption(scene, rng, split).lower()
        assert "{" not in text and "  " not in text and " ," not in text and " ." not in text, text
        for body in scene.bodies:
            assert said(text, captions.COLOUR_WORDS[body.colour]), text
            assert said(text, captions.SHAPE_WORDS[body.shape]), text
            assert said(text, [form for verb in captions.VERBS[body.motion] for form in verb]), text
            assert body.size == "medium" or said(text, captions.SIZE_WORDS[body.size]), text
            assert not body.direction or said(text, captions.DIRECTION_WORDS[body.direction]), text
            assert body.speed == "middle" or said(text, captions.SPEED_WORDS[body.speed]), text
            assert body.edge == "bounce" or said(text, [way for ways in captions.WRAP_WORDS for way in ways]), text
        assert scene.background in words.PLAIN or said(text, captions.BACKGROUND_WORDS[scene.background]), text
        assert scene.light == "day" or said(text, captions.LIGHT_WORDS[scene.light]), text
        assert scene.camera == "static" or said(text, captions.CAMERA_WORDS[scene.camera]), text


def test_a_plain_caption_says_no_more():
    """What is plain is mostly unsaid, and nothing that is not there is said."""
    rng = np.random.default_rng(3)
    unsaid = 0
    for _ in range(500):
        scene = sample_scene(rng, plain=1.0)
        text = caption(scene, rng).lower()
        for table in (captions.COLOUR_WORDS, captions.SHAPE_WORDS):
            own = {scene.bodies[0].colour, scene.bodies[0].shape}
            wrong = [w for name, options in table.items() if name not in own for w in options]
            spoken = text.split("background")[0] if scene.background in text else text
            assert not (vocabulary(spoken.replace("in a circle", "").replace(scene.background, "")) & set(wrong)), text
        unsaid += "background" not in text and "against" not in text and "front" not in text
    assert 300 < unsaid < 450


def test_heldout_templates_use_known_words():
    """Their own words, and their slots for words of a scene, all stand in templates of training."""
    every = {split: " ".join((*ONE[split], *TWO[split])) for split in ("train", "heldout")}
    slots = {split: set(re.findall(r"{\w+}", text)) for split, text in every.items()}
    own = {split: vocabulary(re.sub(r"{\w+}", " ", text)) for split, text in every.items()}
    assert slots["heldout"] <= slots["train"] and "{doing2}" in slots["train"]
    assert own["heldout"] <= own["train"], own["heldout"] - own["train"]


@pytest.mark.parametrize("bodies", [1, 2])
def test_training_never_speaks_in_heldout_templates(bodies):
    """Each held-out template is met by captions of its own, and by none of training."""
    rng, heldout = np.random.default_rng(4), (ONE, TWO)[bodies - 1]["heldout"]
    drawn = (sample_scene(rng, "any", plain=0.0, two=float(bodies - 1)) for _ in range(600))
    scenes = [scene for scene in drawn if len(scene.bodies) == bodies]
    assert len(scenes) > 500
    own = [caption(scene, rng, "heldout") for scene in scenes[:200]]
    assert [text for text in own if not speaks_in(text, heldout)] == []
    assert all(any(speaks_in(text, [template]) for text in own) for template in heldout)
    assert [text for text in (caption(scene, rng) for scene in scenes) if speaks_in(text, heldout)] == []


def test_plain_form_is_frequent_and_dressed_in_many_ways():
    rng = np.random.default_rng(5)
    scene = Scene((Body("circle", "red", motion="moves", direction="right", x=0.3),))
    texts = [caption(scene, rng) for _ in range(4000)]
    share = np.mean([text.lower().strip(".!") == "a red circle moves right" for text in texts])
    assert 0.04 < share < 0.25
    plain, loud = "a red circle moves right", "A RED CIRCLE MOVES RIGHT"
    assert {plain, loud, f"A{plain[1:]}", f"A{plain[1:]}.", "The red circle moves right."} <= set(texts)
    assert len(set(texts)) > 1500


def test_same_generator_same_caption():
    scene = sample_scene(np.random.default_rng(0))
    assert caption(scene, np.random.default_rng(7)) == caption(scene, np.random.default_rng(7))
