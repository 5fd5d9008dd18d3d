"""Where things are: known values, any time alone, walls for ever, room in the first two seconds."""

import numpy as np
import pytest

from dit_video.data.toyworld import scene as words
from dit_video.data.toyworld.draw import hidden, make_scene
from dit_video.data.toyworld.motion import pack, scene_arrays, screen_track, view, world_track
from dit_video.data.toyworld.scene import Body, Scene
from dit_video.data.toyworld.splits import sample_scene

FIRST = np.arange(17) / 8
SIZES = ((64, 64), (80, 48), (48, 80))


def track(body: Body, times, height=64, width=64):
    found = world_track(scene_arrays(Scene((body,))).bodies, np.asarray(times, np.float64), height, width)
    return type(found)(*(np.broadcast_to(a[0], np.shape(times)) for a in found))


def test_moves_by_its_velocity():
    right = track(Body("circle", "red", motion="moves", direction="right", x=0.25, y=0.5), [0, 1], 64, 64)
    np.testing.assert_allclose(right.x, [16, 16 + 0.24 * 64], rtol=1e-6)
    np.testing.assert_allclose(right.y, [32, 32], rtol=1e-6)
    wide = track(
        Body("star", "red", motion="moves", direction="up-left", speed="quickly", x=0.5, y=0.5), [0, 0.5], 48, 80
    )
    np.testing.assert_allclose(np.diff(wide.x), -0.25 * 48 / 2**0.5, rtol=1e-5)
    np.testing.assert_allclose(np.diff(wide.y), -0.25 * 48 / 2**0.5, rtol=1e-5)


@pytest.mark.parametrize("direction", words.DIRECTIONS)
@pytest.mark.parametrize("height, width", SIZES)
def test_walls_hold_for_a_minute(direction, height, width):
    body = Body("triangle", "red", motion="moves", direction=direction, speed="quickly", x=0.4, y=0.5)
    times = np.arange(0, 60, 1 / 8)
    at = track(body, times, height, width)
    reach = np.multiply(words.EXTENT["triangle"], words.RADIUS["medium"] * min(height, width))
    for place, side, before, after in ((at.x, width, *reach[:2]), (at.y, height, *reach[2:])):
        assert place.min() > before - 1e-3 and place.max() < side - after + 1e-3
    step = np.hypot(np.diff(at.x), np.diff(at.y))
    assert step.max() < 0.5 / 8 * min(height, width) * 1.001  # never jumps
    # It comes to both walls of each way that it goes, and so never leaves the picture.
    rooms = (width - reach[:2].sum(), height - reach[2:].sum())
    for place, way, room in zip((at.x, at.y), words.UNIT[direction], rooms, strict=True):
        assert np.ptp(place) > 0.9 * room if way else np.ptp(place) < 1e-4


def test_wraps_out_of_sight_and_goes_on():
    body = Body("circle", "red", motion="moves", direction="left", speed="quickly", edge="wrap", x=0.3, y=0.5)
    times = np.arange(0, 20, 1 / 64)
    at = track(body, times)
    jumps = np.abs(np.diff(at.x)) > 1
    assert 5 <= jumps.sum() <= 9
    assert (np.diff(at.x)[~jumps] < 0).all()
    r = words.RADIUS["medium"] * 64
    assert (at.x[:-1][jumps] < -r + 1).all() and (at.x[1:][jumps] > 64 + r - 1).all()


def test_bounces_are_parabolas_on_the_floor():
    floor = 1 - words.RADIUS["medium"]
    body = Body("circle", "red", motion="bounces", x=0.4, y=floor, phase=0.0)
    period = words.HOP_PERIOD["middle"]
    at = track(body, [0, period / 4, period / 2, period, 7.5 * period])
    top = words.HOP_HEIGHT
    np.testing.assert_allclose(at.y / 64, [floor, floor - 0.75 * top, floor - top, floor, floor - top], atol=1e-5)
    np.testing.assert_allclose(at.x / 64, 0.4, atol=1e-6)


@pytest.mark.parametrize("turn, sign", [("clockwise", 1), ("counterclockwise", -1)])
def test_circles(turn, sign):
    body = Body("square", "red", motion="circles", turn=turn, x=0.5, y=0.45, phase=0.3)
    at = track(body, np.arange(0, 2, 0.05))
    x, y = at.x / 64 - 0.5, at.y / 64 - 0.45
    np.testing.assert_allclose(np.hypot(x, y), words.ORBIT_RADIUS, atol=1e-5)
    angle = np.unwrap(np.arctan2(y, x))  # y down: rising angles are clockwise
    np.testing.assert_allclose(np.diff(angle), sign * 2 * np.pi * 0.05 / words.ORBIT_PERIOD["middle"], rtol=1e-4)
    assert words.ORBIT_PERIOD["middle"] < FIRST[-1]  # closed within 17 frames


@pytest.mark.parametrize("motion, factor", [("grows", words.GROWTH), ("shrinks", 1 / words.GROWTH)])
def test_grows_to_a_bound(motion, factor):
    ratios = []
    for speed in words.SPEEDS:
        size = track(Body("star", "red", motion=motion, speed=speed), np.linspace(0, 60, 481)).radius
        assert (np.diff(size) * np.log(factor) >= -1e-5).all()
        np.testing.assert_allclose(size[[0, -1]], words.RADIUS["medium"] * 64 * np.array([1, factor]), rtol=1e-4)
        ratios.append(abs(np.log(size[8] / size[0])))
    assert ratios[0] < 0.75 * ratios[1] and ratios[1] < 0.75 * ratios[2]
    assert ratios[0] > np.log(1.15)  # seen in the first second even if slow


def test_spins_slower_than_its_symmetry():
    at = track(Body("star", "red", motion="spins", turn="counterclockwise", speed="quickly", phase=0.25), FIRST)
    np.testing.assert_allclose(np.diff(at.angle), -words.SPIN["quickly"] / 8, rtol=1e-5)
    assert at.angle[0] == pytest.approx(np.pi / 2)
    assert words.SPIN["quickly"] / 8 < np.pi / 5  # half of a star's period: its sense is not ambiguous


@pytest.mark.parametrize("camera", words.CAMERAS)
def test_camera(camera):
    zoom, right, down = view(
        scene_arrays(Scene((), "striped", camera=camera, tones="fog", shake=0.3)).camera, FIRST, 64, 64
    )
    np.testing.assert_allclose((zoom[0], right[0], down[0]), (1, 0, 0), atol=1e-5)
    end = (np.log(zoom[-1]), right[-1] / 64, np.abs(down).max() / 64)
    if camera == "handheld":
        assert 0.02 < end[2] < 0.1 and np.abs(np.diff(np.sign(np.diff(right)))).sum() >= 4
    else:
        far = 1 - np.exp(-2 / words.CAMERA_TAU)
        want = {"zooms in": np.log(words.ZOOM), "zooms out": -np.log(words.ZOOM)}.get(camera, 0) * far
        pan = {"pans right": words.PAN, "pans left": -words.PAN}.get(camera, 0) * far
        np.testing.assert_allclose(end, (want, pan, 0), atol=1e-6)


def test_a_pan_moves_the_picture_the_other_way():
    still = Body("circle", "red", x=0.5, y=0.5)
    at = screen_track(scene_arrays(Scene((still,), "striped", camera="pans right", tones="fog")), FIRST, 64, 64)
    assert at.x[0, -1] < at.x[0, 0] - 10


def test_any_time_alone(rng):
    scenes = pack([sample_scene(rng, "any", plain=0.2) for _ in range(20)])
    together = screen_track(scenes, FIRST, 64, 64)
    alone = screen_track(scenes, FIRST[11:12], 64, 64)
    for a, b in zip(together, alone, strict=True):
        np.testing.assert_array_equal(a[..., 11:12], np.broadcast_to(b, (*a.shape[:-1], 1)))


@pytest.mark.parametrize("height, width", SIZES)
@pytest.mark.parametrize("direction", words.DIRECTIONS)
def test_what_moves_has_way_before_it(rng, height, width, direction):
    unit = words.UNIT[direction]
    for size in words.SIZES:
        for shape in ("circle", "star", "triangle"):
            scene = make_scene(rng, shape=shape, size=size, direction=direction, height=height, width=width)
            at = screen_track(scene_arrays(scene), FIRST[:14], height, width)
            gone = np.array([np.ptp(at.x[0]), np.ptp(at.y[0])]) / min(height, width)
            want = np.abs(unit) * words.VELOCITY["middle"] * FIRST[13]
            slack = 0.13 if size == "large" else 1e-4  # a large one meets its wall a little sooner
            assert (np.abs(gone - want) < slack).all()
            assert (np.sign(np.round([at.x[0, 7] - at.x[0, 0], at.y[0, 7] - at.y[0, 0]], 3)) == np.sign(unit)).all()


@pytest.mark.parametrize("height, width", SIZES)
def test_scenes_are_seen(height, width):
    """Alone before a static camera: always. With a camera that moves, or with another object: nearly always."""
    rng = np.random.default_rng(1)
    simple, others = [], []
    for _ in range(300):
        scene = sample_scene(rng, "any", plain=0.3, two=0.5, height=height, width=width)
        alone = len(scene.bodies) == 1 and scene.camera == "static" and scene.bodies[0].edge == "bounce"
        (simple if alone else others).append(hidden(scene, height, width))
    assert max(simple) == 0
    assert np.mean(np.array(others) > 8) < 0.1 and np.median(others) < 0.5
