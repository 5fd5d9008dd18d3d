"""Frames to words: right on renders of known scenes, and not to be fooled by clips that are none."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from dit_video.core.errors import BadInput
from dit_video.data.toyworld import render as renderer
from dit_video.data.toyworld import scene as words
from dit_video.data.toyworld.draw import make_scene
from dit_video.data.toyworld.motion import pack, screen_track
from dit_video.data.toyworld.splits import sample_scene
from dit_video.evals import ground as grounds
from dit_video.evals import outline
from dit_video.evals.measure import measure
from dit_video.evals.prompts import ask
from dit_video.evals.score import mark
from tests.evals.conftest import rendered


def one(**given):
    """A plain scene and its clip."""
    scene = make_scene(np.random.default_rng(3), **given)
    return scene, rendered([scene])[0]


def right(scenes, clips):
    """Share of right marks by attribute, and which clips had a wrong one."""
    marks = [mark(measure(clip), ask("", scene)) for scene, clip in zip(scenes, clips, strict=True)]
    names = {name for m in marks for name in m}
    wrong = [i for i, m in enumerate(marks) if not m["all"][0][1]]
    return {name: np.mean([ok for m in marks for _, ok in m.get(name, [])]) for name in names}, wrong


def degraded(clip, level, rng):
    """Blurred, noisy, flickering and off in its tint, about as a video autoencoder leaves a clip at level 1."""
    soft = ndimage.gaussian_filter(clip.astype(np.float32), (0.25 * level, 0.8 * level, 0.8 * level, 0))
    tint = rng.uniform(1 - 0.04 * level, 1 + 0.04 * level, 3)
    noise = rng.normal(0, 5 * level, soft.shape) + rng.normal(0, 3 * level, (len(soft), 1, 1, 3))
    return np.clip(np.round(soft * tint + noise), 0, 255).astype(np.uint8)


def test_suite_of_renders_is_read_right(asked, readings):
    marks = [mark(reading, one) for reading, one in zip(readings, asked, strict=True)]
    assert [one.prompt for one, m in zip(asked, marks, strict=True) if not m["all"][0][1]] == []


@pytest.mark.parametrize(("height", "width", "frames"), [(80, 48, 17), (48, 80, 33)])
def test_other_sizes_and_lengths(height, width, frames):
    rng = np.random.default_rng(height)
    scenes = [sample_scene(rng, "any", 1.0, height=height, width=width) for _ in range(12)]
    share, wrong = right(scenes, rendered(scenes, frames, height, width))
    assert min(share.values()) >= 0.99, (share, wrong)


def test_after_what_an_autoencoder_does(asked, clips):
    rng = np.random.default_rng(0)
    chosen = range(0, 42, 2)
    marks = [mark(measure(degraded(clips[i], 1.0, rng)), asked[i]) for i in chosen]
    assert np.mean([m["all"][0][1] for m in marks]) >= 0.95


def test_worse_pictures_score_worse(asked, clips):
    rng = np.random.default_rng(0)
    scores = []
    for level in (0.0, 4.0, 8.0):
        marks = [mark(measure(degraded(clips[i], level, rng)), asked[i]) for i in range(0, 42, 3)]
        scores.append(np.mean([m["all"][0][1] for m in marks]))
    assert scores[0] == 1.0
    assert scores[0] > scores[1] >= scores[2]
    assert scores[2] < 0.35


def test_whole_world():
    """Two objects, patterns, lights and cameras."""
    rng = np.random.default_rng(11)
    scenes = [sample_scene(rng, "any", 0.0, 0.3) for _ in range(32)]
    share, wrong = right(scenes, rendered(scenes))
    assert min(share[name] for name in ("background", "light", "camera", "count")) >= 0.9, (share, wrong)
    assert min(share[name] for name in ("colour", "shape", "motion", "direction")) >= 0.85, (share, wrong)


def test_numbers_are_those_of_the_scene():
    scene, clip = one(shape="square", colour="red", motion="moves", direction="down-right")
    seen = measure(clip).objects[0]
    track = screen_track(pack([scene]), np.arange(17) / words.FPS, 64, 64)
    np.testing.assert_allclose(seen.track * 64, np.stack([track.x[0, 0], track.y[0, 0]], -1), atol=0.4)
    np.testing.assert_allclose(seen.radius, words.RADIUS["medium"], rtol=0.05)
    assert seen.rate == pytest.approx(words.VELOCITY["middle"], rel=0.08)
    assert seen.area == pytest.approx(np.full(17, outline.AREA["square"] * words.RADIUS["medium"] ** 2), rel=0.1)


def test_angle_follows_a_spin():
    _, clip = one(shape="triangle", colour="blue", motion="spins", turn="counterclockwise", speed="quickly")
    seen = measure(clip).objects[0]
    assert (seen.motion, seen.turn, seen.speed) == ("spins", "counterclockwise", "quickly")
    step = np.angle(np.exp(3j * np.diff(seen.angle))) / 3
    np.testing.assert_allclose(step, -words.SPIN["quickly"] / words.FPS, atol=0.03)


@pytest.mark.parametrize("shape", words.SHAPES)
def test_distance_is_the_renderers(shape):
    x, y = np.meshgrid(np.linspace(-1.5, 1.5, 31), np.linspace(-1.5, 1.5, 31))
    i = words.SHAPES.index(shape)
    normals = renderer._NORMALS[i] + 0.3
    along = [np.cos(n) * x + np.sin(n) * y - o for n, o in zip(normals, renderer._OFFSETS[i], strict=True)]
    theirs = renderer._distance(i, np.float32(1), along, np.hypot(x, y))
    np.testing.assert_allclose(outline.distance(shape, x, y, 0.3), theirs, atol=1e-5)
    area = (np.asarray(theirs) < 0).mean() * 3.1**2  # 31 points of 0.1 a side
    assert outline.AREA[shape] == pytest.approx(area, rel=0.05)


def test_frozen_clip_does_not_move(asked, clips):
    moving = [i for i in range(0, 42, 2) if asked[i].objects[0]["motion"] != "still"]
    frozen = [measure(np.repeat(clips[i][:1], 17, 0)) for i in moving]
    assert {reading.objects[0].motion for reading in frozen if reading.readable} == {"still"}
    assert not any(mark(r, asked[i])["motion"][0][1] for r, i in zip(frozen, moving, strict=True))


def test_shuffled_frames_do_not_move(asked, clips):
    rng = np.random.default_rng(1)
    moving = [i for i in range(1, 42, 2) if asked[i].objects[0]["motion"] != "still"]
    marks = [mark(measure(clips[i][rng.permutation(17)]), asked[i]) for i in moving]
    assert np.mean([m["motion"][0][1] for m in marks]) <= 0.05


def test_looped_clip_does_not_move(asked, clips):
    """The first half, twice."""
    moving = [i for i in range(0, 42, 2) if asked[i].objects[0]["motion"] in ("moves", "grows", "shrinks")]
    marks = [mark(measure(clips[i][[*range(9), *range(8)]]), asked[i]) for i in moving]
    assert np.mean([m["motion"][0][1] for m in marks]) <= 0.1


def test_backwards_is_the_other_direction():
    _, clip = one(shape="circle", colour="green", motion="moves", direction="left")
    assert measure(clip).objects[0].direction == "left"
    assert measure(clip[::-1]).objects[0].direction == "right"


def spliced(first, second):
    """The first clip up to its middle, then the second."""
    return np.concatenate([first[:8], second[8:]])


def test_what_changes_or_vanishes_is_unreadable():
    scene, clip = one(shape="circle", colour="red", motion="still", background="grey")
    body = scene.bodies[0]

    def other(**change):
        return rendered([replace(scene, bodies=(replace(body, **change),))])[0]

    empty = np.full_like(clip, clip[0, 0, 0])
    twice = np.where(np.abs(clip.astype(int) - clip[0, 0, 0]).max(-1, keepdims=True) > 20, clip, np.roll(clip, 30, 2))
    assert measure(clip).readable
    for bad, reason in (
        (spliced(clip, other(shape="square")), "changes its shape"),
        (spliced(clip, other(colour="blue")), "changes its colour"),
        (spliced(clip, other(colour="pink")), "changes its colour"),
        (spliced(clip, empty), "vanishes"),
        (empty, "no object"),
        (twice, "in pieces"),
        (np.random.default_rng(0).integers(0, 256, clip.shape, dtype=np.uint8), ""),
    ):
        reading = measure(bad)
        assert not reading.readable, reason
        assert reason in reading.reason


def two(x, **change):
    """A red circle, or what it is changed to, beside a blue square in the middle; and the same without it."""
    scene = make_scene(
        np.random.default_rng(3), shape="circle", colour="red", motion="still", background="grey",
        second={"shape": "square", "colour": "blue", "motion": "still"},
    )  # fmt: skip
    first, second = scene.bodies
    first, second = replace(first, x=x, y=0.5, **change), replace(second, x=0.6, y=0.5)
    return rendered([replace(scene, bodies=(first, second)), replace(scene, bodies=(second,))])


@pytest.mark.parametrize("x", [0.2, 0.36, 0.42], ids=["apart", "touching", "overlapping"])
def test_one_of_two_that_vanishes_or_flashes_is_seen(x):
    both, alone = two(x)
    assert measure(both).readable
    for bad in (spliced(both, alone), spliced(alone, both)):
        reading = measure(bad)
        assert "vanishes" in reading.faults, reading
    for flash in (2, 5):
        assert "vanishes" in measure(np.concatenate([alone[:6], both[6 : 6 + flash], alone[6 + flash :]])).faults


def test_one_that_goes_behind_the_other_is_there():
    """The last body is drawn in front."""
    behind, _ = two(0.2, size="small", motion="moves", direction="right")
    assert measure(behind).readable


@pytest.mark.parametrize("light", words.LIGHTS)
def test_the_light_is_read_though_tints_are_off(light):
    """Dark tones by day hold every colour that others have at night, but not only two of them."""
    rng, scenes = np.random.default_rng(11), []
    for tones in words.TONES:
        scene, _ = one(shape="circle", colour="red", motion="still", background="striped", light=light)
        scenes.append(replace(scene, tones=tones))
    for clip in rendered(scenes, frames=2).astype(np.float32):
        for _ in range(4):
            spoilt = np.clip(clip * rng.uniform(0.96, 1.04, 3) + rng.normal(0, 3, (2, 1, 1, 3)), 0, 255)
            assert grounds.find(np.float32(np.round(spoilt) / 255), 8.0).light == light


def test_jump_is_no_motion():
    """An object that stands here and then there does not stand still, nor move."""
    scene, clip = one(shape="star", colour="yellow", motion="still", background="black")
    body = scene.bodies[0]
    there = replace(body, x=body.x + (0.3 if body.x < 0.5 else -0.3))
    assert measure(spliced(clip, rendered([replace(scene, bodies=(there,))])[0])).objects[0].motion == "unclear"


@pytest.mark.filterwarnings("error")
def test_an_object_that_is_hardly_in_the_picture_and_once_not_at_all():
    """Cut off in every frame and gone in one: its size is sought, and nothing is divided by its area there."""
    scene, _ = one(shape="star", colour="yellow", motion="still", background="black", size="large")
    (body,) = scene.bodies
    clip = rendered([replace(scene, bodies=(replace(body, x=0.03),))])[0]
    clip[5] = 10
    seen = measure(clip).objects
    assert seen and np.isfinite(seen[0].radius).all() and not seen[0].seen[5]


def test_one_frame_has_no_motion():
    _, clip = one(shape="ring", colour="pink", motion="moves", direction="up", background="black")
    reading = measure(clip[:1])
    seen = reading.objects[0]
    assert (reading.readable, seen.shape, seen.colour, seen.motion) == (True, "ring", "pink", "unclear")


def test_refuses_what_is_no_clip():
    with pytest.raises(BadInput, match="uint8"):
        measure(np.zeros((3, 8, 8, 3), np.float32))
