"""The fixed lists of prompts: even over the world, in templates and phrases that training never says."""

import json
import re
from collections import Counter
from dataclasses import replace
from hashlib import sha256
from importlib.resources import files

import numpy as np
import pytest

from dit_video.data.toyworld import captions
from dit_video.data.toyworld import scene as words
from dit_video.data.toyworld.captions import caption
from dit_video.data.toyworld.splits import is_heldout, sample_scene
from dit_video.evals.phrases import PHRASES
from dit_video.evals.prompts import ask, suite


def test_suite_is_fixed_and_grows_at_its_end(asked):
    for kind in ("plain", "world"):
        long = [one.prompt for one in suite(42, kind)]
        assert [one.prompt for one in suite(20, kind)] == long[:20]
        assert [one.prompt for one in suite(20, kind, height=48, width=80)] == long[:20]
        assert len(set(long)) == 42
    # a change of the list makes scores of another day incomparable: it is one that must be meant
    assert long[1] == "look, a large rose pink five-pointed shape quickly moves in a circle clockwise at night"


def test_plain_suite_has_every_value_and_a_third_of_unseen_templates(asked):
    wanted = [one.objects[0] for one in asked]
    assert Counter(one.template for one in asked) == {"seen": 28, "unseen": 14}
    assert {w["motion"] for w in wanted} == set(words.MOTIONS)
    assert {w.get("direction", "") for w in wanted} == {"", *words.DIRECTIONS}
    assert set(Counter(w["colour"] for w in wanted).values()) == {5, 6}
    shapes = Counter(w["shape"] for w in wanted)
    assert set(shapes) == set(words.SHAPES)
    assert max(shapes.values()) - min(shapes.values()) <= 1
    assert all(
        (one.around["light"], one.around["camera"], one.around["count"]) == ("day", "static", "one") for one in asked
    )


def test_asked_is_what_the_prompt_says(asked):
    scene = next(one.scene for one in asked if one.objects[0]["motion"] == "spins")
    turn = scene.bodies[0].turn
    assert "turn" not in ask("a blue star spins", scene).objects[0]
    assert ask(f"a blue star spins {turn}", scene).objects[0]["turn"] == turn
    on_grey = replace(scene, background="grey")
    assert ask("a blue star spins", on_grey).around["background"] == "plain"
    assert ask("a blue star spins on a gray background", on_grey).around["background"] == "grey"
    spoken = caption(on_grey, np.random.default_rng(0))
    assert ask(spoken, on_grey).objects[0]["colour"] == scene.bodies[0].colour


@pytest.fixture(scope="module")
def world():
    return suite(400)


def test_world_asks_for_every_value_twenty_times(world):
    counts = Counter(pair for one in world for wanted in one.objects for pair in set(wanted.items()))
    counts.update(pair for one in world for pair in one.around.items())
    tables = {
        "colour": words.COLOURS, "shape": words.SHAPES, "size": words.SIZES, "motion": words.MOTIONS,
        "direction": words.DIRECTIONS, "speed": ("slowly", "quickly"), "count": ("one", "two"),
        "background": (*words.BACKGROUNDS, "plain"), "light": words.LIGHTS, "camera": words.CAMERAS,
    }  # fmt: skip
    rare = {(name, value): counts[name, value] for name, values in tables.items() for value in values}
    assert min(rare.values()) >= 20, {pair: n for pair, n in rare.items() if n < 20}
    assert counts["count", "two"] >= 100
    assert max(counts["colour", colour] for colour in words.COLOURS) <= 1.15 * 534 / 8
    assert len({one.prompt for one in world}) == 400


def test_world_is_spoken_as_training_never_is(world):
    assert Counter(one.template for one in world) == {"unseen": 300, "seen": 100}
    assert Counter(one.phrases for one in world) == {"unseen": 200, "seen": 200}
    for one in world:
        assert (one.phrases == "unseen") == any(phrase in one.prompt.lower() for phrase in PHRASES), one.prompt
        assert (one.combination == "unseen") <= is_heldout(one.scene)


def test_heldout_combinations_only():
    assert all(one.combination == "unseen" and is_heldout(one.scene) for one in suite(40, heldout=True))
    assert {one.combination for one in suite(20, "plain", heldout=True)} == {"unseen"}


def test_new_phrases_are_new_and_made_of_known_words():
    templates = re.sub(r"{\w+}", " ", " ".join((*captions.ONE["train"], *captions.TWO["train"])))
    text = f"{templates} {captions.WRAP_WORDS} " + " ".join(map(str, captions.TRAINING))
    known = set(re.findall("[a-z]+", text.lower()))
    assert set(re.findall("[a-z]+", " ".join(PHRASES))) <= known
    rng = np.random.default_rng(0)
    spoken = [caption(sample_scene(rng, "any", plain=0.3), rng).lower() for _ in range(1500)]
    assert [text for text in spoken if any(phrase in text for phrase in PHRASES)] == []


def test_free_prompts_are_as_they_were_written():
    written = files("dit_video.evals").joinpath("free_prompts.json").read_text("utf-8")
    # a change of the list makes scores of another day incomparable
    assert sha256(written.encode()).hexdigest() == "2cd6848a6c67e47af706911d225419657d6345b5b79d835781a680ab3634cbed"
    stored = json.loads(written)
    asked = suite(100, "free")
    assert [one.prompt for one in asked] == [row["prompt"] for row in stored]
    assert len(asked) == 100
    tables = {"colour": words.COLOURS, "shape": words.SHAPES, "motion": words.MOTIONS, "background": words.BACKGROUNDS,
              "size": words.SIZES, "direction": words.DIRECTIONS, "speed": words.SPEEDS, "light": words.LIGHTS,
              "camera": words.CAMERAS, "count": ("one", "two")}  # fmt: skip
    for one in asked:
        for name, value in [*one.around.items(), *(pair for wanted in one.objects for pair in wanted.items())]:
            assert value in tables[name], one.prompt
        for wanted, body in zip(one.objects, one.scene.bodies if one.scene else (), strict=False):
            assert all(getattr(body, name) == value for name, value in wanted.items())
    # of these nothing in the world does all: rings that spin, cameras that are seen to move before one colour, ...
    assert sum(one.scene is None for one in asked) == 8
