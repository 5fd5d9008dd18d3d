"""The split: how much is held out, that training never draws it, that it draws all the rest."""

from collections import Counter

import numpy as np
import pytest

from dit_video.core.errors import BadInput
from dit_video.data.toyworld import scene as words
from dit_video.data.toyworld.draw import attributes, make_scene
from dit_video.data.toyworld.scene import Body, Scene
from dit_video.data.toyworld.splits import (
    COLOUR_BACKGROUND,
    COLOUR_SHAPE,
    SHAPE_MOTION,
    is_heldout,
    sample_scene,
)

PAIRS = {  # those that are made
    "colour x shape": {(c, s) for c in words.COLOURS for s in words.SHAPES},
    "shape x motion": {(s, m) for s in words.SHAPES for m in words.MOTIONS if m != "spins" or s not in words.ROUND},
    "colour x background": {(c, b) for c in words.COLOURS for b in words.BACKGROUNDS if (c, b) != ("white", "white")},
}
HELD = {"colour x shape": COLOUR_SHAPE, "shape x motion": SHAPE_MOTION, "colour x background": COLOUR_BACKGROUND}


@pytest.mark.parametrize("kind", PAIRS)
def test_at_least_a_tenth_is_held_out(kind):
    assert HELD[kind] <= PAIRS[kind]
    assert 0.1 <= len(HELD[kind]) / len(PAIRS[kind]) < 0.2
    for side in range(2):  # every value keeps most of its pairs for training
        left = Counter(pair[side] for pair in PAIRS[kind] - HELD[kind])
        every = Counter(pair[side] for pair in PAIRS[kind])
        assert all(left[value] >= 0.7 * every[value] for value in every)


@pytest.fixture(scope="module")
def trained() -> list[Scene]:
    rng = np.random.default_rng(0)
    return [sample_scene(rng) for _ in range(10_000)]


def pairs_of(scene: Scene):
    for body in scene.bodies:
        yield "colour x shape", (body.colour, body.shape)
        yield "shape x motion", (body.shape, body.motion)
        yield "colour x background", (body.colour, scene.background)


def test_training_never_draws_what_is_held_out_and_draws_the_rest(trained):
    seen = {kind: set() for kind in PAIRS}
    for scene in trained:
        assert not is_heldout(scene)
        for kind, pair in pairs_of(scene):
            seen[kind].add(pair)
    for kind in PAIRS:
        assert seen[kind] == PAIRS[kind] - HELD[kind]


def test_training_draws_every_value(trained):
    for name, values in (("light", words.LIGHTS), ("camera", words.CAMERAS), ("background", words.BACKGROUNDS)):
        counts = Counter(getattr(scene, name) for scene in trained)
        assert set(counts) == set(values) and min(counts.values()) > 100
    for name, values in (("size", words.SIZES), ("motion", words.MOTIONS), ("direction", ("", *words.DIRECTIONS)),
                         ("speed", words.SPEEDS), ("edge", words.EDGES), ("turn", ("", *words.TURNS))):  # fmt: skip
        counts = Counter(getattr(body, name) for scene in trained for body in scene.bodies)
        assert set(counts) == set(values) and min(counts.values()) > 50, counts


def plain(scene: Scene) -> bool:
    body = scene.bodies[0]
    return (len(scene.bodies), body.size, body.speed, scene.light, scene.camera, scene.background in words.PLAIN) == (
        1, "medium", "middle", "day", "static", True,
    )  # fmt: skip


def test_shares(trained):
    assert np.mean([plain(scene) for scene in trained]) == pytest.approx(
        0.51, abs=0.02
    )  # some others happen to be plain
    assert np.mean([len(scene.bodies) == 2 for scene in trained]) == pytest.approx(0.5 * 0.25, abs=0.01)
    rng = np.random.default_rng(1)
    assert all(plain(sample_scene(rng, plain=1.0)) for _ in range(200))
    assert all(len(sample_scene(rng, plain=0.0, two=1.0).bodies) == 2 for _ in range(50))


def test_heldout_draws_only_what_is_held_out():
    rng = np.random.default_rng(2)
    assert all(is_heldout(sample_scene(rng, "heldout")) for _ in range(500))


def test_some_words_more_often():
    rng, often = np.random.default_rng(5), {"circle": 3, "ring": 0, "bounces": 2, "moves": 0}
    bodies = [b for _ in range(3000) for b in sample_scene(rng, plain=1.0, often=often).bodies]
    shapes, motions = Counter(b.shape for b in bodies), Counter(b.motion for b in bodies)
    assert "ring" not in shapes and "moves" not in motions
    assert shapes["circle"] / len(bodies) == pytest.approx(0.5, abs=0.07)  # 3 of 6; a circle does not spin
    assert motions["bounces"] / motions["still"] == pytest.approx(2 * 3.9 / 5, rel=0.35)  # triangles do not bounce


@pytest.mark.parametrize(
    ("often", "said"),
    [
        ({"cube": 2}, "cube=2: give a shape or a motion"),
        ({"ring": -1}, "zero or more"),
        (dict.fromkeys(words.SHAPES, 0), "one of circle"),
        (dict.fromkeys(set(words.SHAPES) - set(words.ROUND), 0), "do not spin"),
        (dict.fromkeys({*words.SHAPES, *words.MOTIONS} - {"star", "circles"}, 0), "no scene of the train part"),
    ],
)
def test_words_that_cannot_be_drawn(often, said):
    with pytest.raises(BadInput, match=said):
        sample_scene(np.random.default_rng(0), often=often)


def test_same_generator_same_scene():
    draws = [[sample_scene(np.random.default_rng((3, i))) for i in range(50)] for _ in range(2)]
    assert draws[0] == draws[1] and len(set(draws[0])) == 50


def test_words_to_scene_and_back(rng):
    for _ in range(500):
        asked = attributes(sample_scene(rng, "any"))
        assert attributes(make_scene(rng, **asked)) == asked


def test_what_is_left_out_is_plain():
    rng = np.random.default_rng(4)
    scenes = [make_scene(rng, shape="circle", colour="red", motion="moves", direction="right") for _ in range(200)]
    assert all(plain(scene) for scene in scenes)
    assert {scene.background for scene in scenes} == set(words.PLAIN)
    x, y = (np.array([getattr(scene.bodies[0], name) for scene in scenes]) for name in "xy")
    assert np.std(y) > 0.15 and np.std(x) > 0.05 and (x < 0.5).all()
    assert not is_heldout(Scene((Body("circle", "red", motion="moves", direction="right"),), "grey"))
    for _ in range(100):
        make_scene(rng, shape="ring")
        make_scene(rng, colour="white", light="night")
        assert make_scene(rng, camera="zooms in", shape="star").background in ("checkered", "striped")


@pytest.mark.parametrize(
    "asked, why",
    [
        ({"shape": "ball"}, "shape is 'ball'"),
        ({"shape": "circle", "motion": "spins"}, "spin"),
        ({"colour": "red", "second": {"colour": "red"}}, "different colours"),
        ({"colour": "white", "background": "white"}, "cannot be seen"),
        ({"weight": "heavy"}, "no weight"),
    ],
)
def test_words_that_do_not_go(asked, why, rng):
    with pytest.raises(BadInput, match=why):
        make_scene(rng, **asked)
