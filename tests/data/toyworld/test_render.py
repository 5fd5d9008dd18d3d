"""Pixels: areas, colours, places and edges as computed by hand; two scenes of different words never look the same."""

from collections import defaultdict
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dit_video.core.errors import BadInput
from dit_video.data.toyworld import scene as words
from dit_video.data.toyworld.motion import pack, scene_arrays, screen_track
from dit_video.data.toyworld.render import frame_times, render, render_at, render_batch, to_uint8
from dit_video.data.toyworld.scene import Body, Scene, check
from dit_video.data.toyworld.splits import sample_scene

pytestmark = pytest.mark.usefixtures("optimized")


def unit(video):
    """[-1, 1] to [0, 1]."""
    return (np.asarray(video) + 1) / 2


def test_shapes_ranges_and_sizes(rng):
    scenes = pack([sample_scene(rng, "any", plain=0.2) for _ in range(8)])
    for frames, height, width in ((17, 64, 64), (1, 80, 48), (5, 48, 80), (2, 37, 50)):
        video = render_batch(scenes, frames, height, width)
        assert video.shape == (8, frames, height, width, 3) and video.dtype == jnp.float32
        assert float(video.min()) >= -1 and float(video.max()) <= 1
        assert float(video.max()) - float(video.min()) > 1


def test_a_batch_is_its_scenes_and_a_clip_its_frames(rng):
    scenes = [sample_scene(rng, "any", plain=0.0, two=0.5) for _ in range(6)]
    batch = np.asarray(render_batch(pack(scenes), 17, 64, 64))
    for i in (0, 5):
        np.testing.assert_allclose(render(scene_arrays(scenes[i]), 17, 64, 64), batch[i], atol=2e-4)
    alone = jax.jit(lambda s: render_at(s, frame_times(17)[13:14], 64, 64))(scene_arrays(scenes[3]))
    np.testing.assert_allclose(alone[0], batch[3, 13], atol=2e-4)
    longer = np.asarray(render_batch(pack(scenes), 33, 64, 64))
    np.testing.assert_allclose(longer[:, :17], batch, atol=2e-4)


AREA = {
    "circle": np.pi,
    "square": 4 * 0.88**2,
    "triangle": 3 * 3**0.5 * 0.60**2,
    "star": 1.1226 * 1.25**2,  # of the pentagram in a unit circle
    "ring": 4 * np.pi * words.RING[0] * words.RING[1],
}


@pytest.mark.parametrize("shape", words.SHAPES)
@pytest.mark.parametrize("size", words.SIZES)
def test_area_and_extent(shape, size):
    """Of a blue object on black: the blue of a pixel over the blue of the object is how much of it is covered."""
    scene = Scene((Body(shape, "blue", size=size, x=0.5, y=0.5),))
    frame = unit(render(scene_arrays(scene), 1, 256, 256))[0]
    inside = frame[..., 2] > 0.4
    r = words.RADIUS[size] * 256
    assert inside.sum() == pytest.approx(AREA[shape] * r * r, rel=0.05)
    rows, columns = np.nonzero(inside)
    found = np.array([128 - columns.min(), columns.max() + 1 - 128, 128 - rows.min(), rows.max() + 1 - 128])
    np.testing.assert_allclose(found, np.multiply(words.EXTENT[shape], r), atol=2.5)


def test_a_spinning_square_turns():
    body = Body("square", "blue", size="large", motion="spins", turn="clockwise", speed="middle")
    frames = unit(render_at(scene_arrays(Scene((body,))), jnp.array([0.0, np.pi / 4 / words.SPIN["middle"]]), 128, 128))
    wide = [np.ptp(np.nonzero((frame[..., 2] > 0.4).any(0))[0]) for frame in frames]
    assert wide[1] / wide[0] == pytest.approx(2**0.5, rel=0.04)


def test_edges_are_smooth():
    """A shift of a tenth of a pixel changes a few pixels at the edge a little, and none much."""
    at = [unit(render(scene_arrays(Scene((Body("circle", "white", x=0.5 + d / 64),))), 1)) for d in (0, 0.1)]
    change = np.abs(at[1] - at[0]).max(-1)
    assert 0.03 < change.max() < 0.2 and 10 < (change > 0.02).sum() < 100


LIT = [(light, b) for light in words.LIGHTS for b in words.BACKGROUNDS if light == "day" or b != "black"]
GROUNDS = [(b, "") for b in words.PLAIN] + [(b, tones) for b in words.PATTERNS for tones in words.TONES]


@pytest.mark.parametrize("light, background", LIT)
def test_colours_stay_apart(light, background):
    """The middle of an object is nearest, in hue and saturation, to its own colour under the same light."""
    colours = [c for c in words.COLOURS if (c, background) != ("white", "white")]
    tones = "fog" if background in words.PATTERNS else ""
    for shape in ("circle", "star"):
        scenes = [Scene((Body(shape, c, size="small", x=0.7, y=0.7),), background, light, tones=tones) for c in colours]
        seen = unit(render_batch(pack([check(scene) for scene in scenes]), 1))[:, 0, 43:47, 43:47].mean((1, 2))
        seen = seen / np.linalg.norm(seen, axis=-1, keepdims=True)
        apart = np.linalg.norm(seen[:, None] - seen[None], axis=-1) + 9 * np.eye(len(seen))
        assert apart.min() > 0.12, (colours, apart.min(1))
        if light == "day":
            true = np.array([words.RGB[c] for c in colours])
            true /= np.linalg.norm(true, axis=-1, keepdims=True)
            assert (np.linalg.norm(seen[:, None] - true[None], axis=-1).argmin(1) == np.arange(len(colours))).all()


@pytest.mark.parametrize("background, tones", GROUNDS)
def test_objects_stand_out(background, tones):
    """The middle of every object differs from what is there without it."""
    colours = [c for c in words.COLOURS if (c, background) != ("white", "white")]
    scenes = [Scene((Body("circle", c),), background, tones=tones) for c in colours]
    empty = scene_arrays(scenes[0])
    empty = empty._replace(bodies=empty.bodies._replace(size=np.float32([[0, 0, 1]] * 2)))
    without = unit(render(empty, 1))[0, 32, 32]
    apart = np.linalg.norm(unit(render_batch(pack(scenes), 1))[:, 0, 32, 32] - without, axis=-1)
    assert apart.min() > 0.3


def test_the_second_is_in_front():
    red, blue = Body("circle", "red", size="large"), Body("circle", "blue", size="small")
    front, behind = unit(render_batch(pack([Scene((red, blue)), Scene((blue, red))]), 1))[:, 0, 32, 32]
    assert front[2] > 0.8 > 0.3 > front[0] and behind[0] > 0.8 > 0.35 > behind[2]


def test_pixels_follow_the_track():
    """The centroid of an object is where the track says, in every frame and under every camera."""
    for camera in words.CAMERAS:
        body = Body("circle", "red", size="small", motion="circles", turn="clockwise", x=0.5, y=0.5, phase=0.2)
        scene = check(Scene((body,), "striped", camera=camera, tones="slate", shake=0.4))
        video = unit(render(scene_arrays(scene), 17, 64, 64))
        weight = np.clip(video[..., 0] - video[..., 2] - 0.2, 0, None)
        total = weight.sum((1, 2))
        x = (weight * (np.arange(64) + 0.5)).sum((1, 2)) / total
        y = (weight * (np.arange(64) + 0.5)[:, None]).sum((1, 2)) / total
        at = screen_track(scene_arrays(scene), frame_times(17), 64, 64)
        whole = np.maximum(np.abs(at.x[0] - 32), np.abs(at.y[0] - 32)) + at.radius[0] < 32
        assert whole.sum() >= 14
        np.testing.assert_allclose(np.stack([x, y])[:, whole], np.stack([at.x[0], at.y[0]])[:, whole], atol=0.3)


def others(scene: Scene):
    """Every scene that is made and differs from this one in one word of its first object or of the whole."""
    body = scene.bodies[0]

    def with_body(**change):
        new = replace(body, **change)
        return replace(
            scene,
            bodies=(
                replace(
                    new,
                    direction=(new.direction or "right") if new.motion == "moves" else "",
                    turn=(new.turn or "clockwise") if new.motion in words.HAS_TURN else "",
                    speed="middle" if new.motion == "still" else new.speed,
                ),
                *scene.bodies[1:],
            ),
        )

    lists = {"shape": words.SHAPES, "colour": words.COLOURS, "size": words.SIZES, "motion": words.MOTIONS}
    lists |= {"speed": words.SPEEDS} if body.motion != "still" else {}
    lists |= {"direction": words.DIRECTIONS, "edge": words.EDGES} if body.motion == "moves" else {}
    lists |= {"turn": words.TURNS} if body.motion in words.HAS_TURN else {}
    changed = [(name, with_body(**{name: value})) for name, values in lists.items() for value in values]
    for value in words.BACKGROUNDS:
        tones = (scene.tones or "slate") if value in words.PATTERNS else ""
        changed.append(("background", replace(scene, background=value, tones=tones)))
    changed += [("light", replace(scene, light=value)) for value in words.LIGHTS]
    changed += [("camera", replace(scene, camera=value)) for value in words.CAMERAS]
    changed += [("count", replace(scene, bodies=scene.bodies[:1]))]
    for name, other in changed:
        try:
            if check(other) != scene:
                yield name, other
        except BadInput:
            continue


def test_one_other_word_is_another_clip():
    """From many scenes, every other value of every word, with the same numbers: at least 250 of the 69 632 pixels of 17
    frames differ by more than 20 levels. What changes the whole picture changes at least 5000."""
    rng = np.random.default_rng(5)
    least, size = defaultdict(lambda: 10**9), 32

    def pixels(scenes):  # one shape, one program
        return to_uint8(render_batch(pack(scenes + scenes[-1:] * (size - len(scenes)))))[: len(scenes)].astype(np.int16)

    scenes = [sample_scene(rng, "any", plain=0.25, two=0.2) for _ in range(10)]
    before = pixels(scenes)
    changed = [(i, name, other) for i, scene in enumerate(scenes) for name, other in others(scene)]
    for k in range(0, len(changed), size):
        which, names, some = (list(x) for x in zip(*changed[k : k + size], strict=True))
        differ = np.abs(pixels(some) - before[which]).max(-1) > 20
        for name, n in zip(names, differ.reshape(len(some), -1).sum(1), strict=True):
            least[name] = min(least[name], int(n))
    assert set(least) >= {
        "shape",
        "colour",
        "size",
        "motion",
        "speed",
        "direction",
        "turn",
        "background",
        "light",
        "camera",
    }
    assert min(least.values()) > 250, dict(least)
    assert min(least[name] for name in ("background", "light", "camera")) > 5000, dict(least)
