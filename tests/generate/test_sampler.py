"""One pass, windows and chunks with a network that answers where things stand: what each piece of a clip is told."""

from contextlib import contextmanager

import jax.numpy as jnp
import numpy as np
import pytest

from dit_video.core.log import Progress
from dit_video.diffusion.known import known
from dit_video.diffusion.windows import Windows
from dit_video.generate.encoded import encode
from dit_video.generate.pipeline import VideoPipeline
from dit_video.generate.programs import Programs
from dit_video.generate.request import resolve
from dit_video.generate.sampler import Sampler
from dit_video.generate.unfinished import Unfinished

PROMPT = "a red circle moves right"
SLOTS = 5


def telling(self, dit, given, guidance, now):
    """The field of a network whose data is the sum of the rotary times of the pictures that it is shown, and in slot k
    k / 100 more. The solver gets there exactly."""
    told = 0.0 if given.extra is None else given.extra.position.sum(1)[:, None, None, None, None]

    def velocity(x, t, memory):
        data = told + jnp.arange(x.shape[1])[:, None, None, None] / 100 + 0 * x
        return (x - data) / jnp.maximum(t.values.max(), 1e-6), memory

    return velocity if given.mask is None else known(velocity, given.clean, given.mask)


@pytest.fixture(scope="module")
def pipe(tiny):
    """Other programs than those that tests with the real network compile."""
    pipe = VideoPipeline(tiny)
    pipe.programs = Programs(pipe.model.dit, pipe.model.vae, pipe.model.text, None, pipe.rules)
    pipe.programs.field = telling.__get__(pipe.programs)
    return pipe


def slots(pipe, **given):
    """One number a latent slot."""
    given = {"num_frames": 17, "solver": "euler", "num_inference_steps": 2} | given
    latents = pipe(PROMPT, seed=1, output_type="latent", **given).frames[0]
    np.testing.assert_allclose(latents, np.broadcast_to(latents[:, :1, :1, :1], latents.shape), atol=1e-5)
    return latents[:, 0, 0, 0]


def test_one_pass_is_shown_nothing(pipe):
    np.testing.assert_allclose(slots(pipe), [0, 0.01, 0.02, 0.03, 0.04], atol=1e-5)


def test_pictures_stand_at_a_quarter_of_their_frame(pipe):
    picture = np.zeros((32, 32, 3), np.uint8)
    made = slots(pipe, last_image=picture, keyframes={6: picture})
    np.testing.assert_allclose(made, 16 / 4 + 6 / 4 + np.arange(5) / 100, atol=1e-5)


def test_chunks_go_on_from_two_known_slots_with_the_first_as_sink(pipe):
    """Three slots a pass: two known, one made, last in its pass, with the sink no further away than in training (1)."""
    np.testing.assert_allclose(slots(pipe, long="extend"), [0, 0.01, 0.02, -1 + 0.02, -1 + 0.02], atol=1e-5)


def test_a_picture_is_shown_to_the_chunk_that_makes_its_slot(pipe):
    """Frame 14 is in slot 4, which the third chunk makes: 14 / 4 - 2, beside the sink."""
    made = slots(pipe, long="extend", keyframes={14: np.zeros((32, 32, 3), np.uint8)})
    np.testing.assert_allclose(made, [0, 0.01, 0.02, -1 + 0.02, -1 + 0.02 + 14 / 4 - 2], atol=1e-5)


@pytest.mark.parametrize("given", [{}, {"cache": "fast", "num_inference_steps": 8}])
def test_windows_are_blended_and_know_the_first_slot(pipe, given):
    """Windows begin at 0, 1, 2. The first slot is that of the opening pass; the others see it as sink, 1 away. (This
    network's velocity is the same at all steps: caching changes nothing.)"""
    made = slots(pipe, long="window", **given)
    local = np.array([[0, 1, 2, 0, 0], [0, 0, 1, 2, 0], [0, 0, 0, 1, 2]]) / 100
    seen = np.array([[1, 1, 1, 0, 0], [0, 1, 1, 1, 0], [0, 0, 1, 1, 1]])
    told = local - np.array([[0], [1], [1]])
    weights = np.array([[1, 2, 1, 0, 0], [0, 1, 2, 1, 0], [0, 0, 1, 2, 1]]) * seen
    want = (told * weights).sum(0) / weights.sum(0)
    want[0] = 0
    np.testing.assert_allclose(made, want, atol=1e-4)


def elementwise(self, dit, given, guidance, now):
    """The field of a network that looks at nothing but the number and the time."""

    def velocity(x, t, memory):
        return jnp.tanh(1.5 * x) * t.values.max() - 0.3 * x**2, memory

    return velocity if given.mask is None else known(velocity, given.clean, given.mask)


@pytest.mark.parametrize("solver", ["unipc", "dpmpp_2m", "euler"])
def test_windows_are_one_pass_where_neighbours_do_not_matter(tiny, solver):
    """What a solver of several steps remembers of each piece of the stream is that piece's, and the blend's weights sum
    to one: 9 slots in windows of 4 that share 2 or, at the end, 3."""
    pipe = VideoPipeline(tiny)
    pipe.programs = Programs(pipe.model.dit, pipe.model.vae, pipe.model.text, None, pipe.rules)
    pipe.programs.field = elementwise.__get__(pipe.programs)
    given = {"num_frames": 33, "num_inference_steps": 6, "solver": solver, "seed": 1, "output_type": "latent"}
    whole = pipe(PROMPT, **given).frames[0]
    for overlap in (2, 1):
        made = pipe(PROMPT, long="window", window=4, overlap=overlap, **given).frames[0]
        np.testing.assert_allclose(made, whole, rtol=1e-6, atol=1e-6)
    assert whole.std() > 0.1


@pytest.mark.parametrize("solver", ["unipc", "euler"])
def test_the_steps_of_one_window_are_those_of_one_pass(tiny, solver):
    """The real network through the steps of windows: bit for bit."""
    pipe = VideoPipeline(tiny)
    request = resolve(tiny, PROMPT, seed=1, num_frames=9, num_inference_steps=4, solver=solver)
    sampler = Sampler(pipe, request, [0], encode(pipe, request), Progress(False))
    (shot,) = request.shots(4)
    made = sampler.together(sampler.stream(shot), Windows(3, 3, (0,), 2), [0])
    np.testing.assert_array_equal(made, sampler.run(shot))


def test_what_is_compiled_counts_as_compiling(tiny, monkeypatch):
    """And not as steps or as decoding: windows of which the first and the others differ, and both kinds of piece."""
    pipe, phases, during = VideoPipeline(tiny), ["decode"], []
    pipe.programs = Programs(pipe.model.dit, pipe.model.vae, pipe.model.text, None, pipe.rules)
    pipe.programs.field = telling.__get__(pipe.programs)
    prepare, phase = pipe.programs.prepare, Progress.phase

    @contextmanager
    def noted(self, name, steps=None):
        phases.append(name)
        with phase(self, name, steps) as tick:
            yield tick
        phases.pop()

    def counted(wanted):
        before = len(pipe.programs.compiled)
        ready = prepare(wanted)
        during.extend(phases[-1:] * (len(pipe.programs.compiled) - before))
        return ready

    monkeypatch.setattr(Progress, "phase", noted)
    monkeypatch.setattr(pipe.programs, "prepare", counted)
    pipe(PROMPT, seed=1, num_frames=41, long="window", window=4, overlap=1, num_inference_steps=2)
    assert {*during} == {"compile"} and len(during) >= 8


@pytest.mark.parametrize("given", [{}, {"image": np.full((32, 32, 3), 90, np.uint8), "cache": "fast"}])
def test_a_window_that_covers_all_is_made_as_one_pass(tiny, given):
    """And no step more."""
    pipe = VideoPipeline(tiny)

    def made(**long):
        steps = []
        note = lambda p, step, t, now: steps.append(step) or None  # noqa: E731
        more = {"num_frames": 9, "num_inference_steps": 5, "output_type": "latent", "callback_on_step_end": note}
        return pipe(PROMPT, seed=1, **more, **given, **long).frames[0], steps

    (plain, steps), (windowed, again) = made(), made(long="window", window=5, overlap=2)
    assert steps == again == [0, 1, 2, 3, 4]
    assert plain.std() > 0.1
    np.testing.assert_array_equal(windowed, plain)


def test_a_loop_has_four_frames_in_every_slot(pipe):
    """Four slots, and the last three in front of them for the decoder; every window sees the sink."""
    made = slots(pipe, loop=True)
    assert made.shape == (3 + 4,)
    np.testing.assert_allclose(made[:3], made[-3:], atol=1e-6)
    assert (made < -0.9).all()


def test_footage_goes_on(pipe, tmp_path):
    from dit_video.data.video import write_video

    write_video(tmp_path / "a.mp4", np.zeros((9, 32, 32, 3), np.uint8), 8.0)
    request = {"extend": str(tmp_path / "a.mp4"), "num_frames": 17, "solver": "euler", "num_inference_steps": 2}
    out = pipe(PROMPT, output_type="latent", **request).frames[0]
    # three slots of footage (two of them known), then four new ones that see the sink
    assert len(out) == 3 + 4
    np.testing.assert_allclose(out[3:, 0, 0, 0], -1 + np.arange(2, 6) / 100, atol=1e-5)
    film = pipe(PROMPT, **request)
    assert film.frames[0].shape == (9 + 16, 32, 32, 3)
    assert film.metadata[0]["num_frames"] == 25
    assert film.metadata[0]["given"][0]["frames"] == 9


def test_a_prompt_on_the_time_line_cuts(pipe):
    """Two streams, the second with a slot of its own in front."""
    made = slots(pipe, prompt_at=[(1.0, "a blue star")])
    np.testing.assert_allclose(made, [0, 0.01, 0.02, 0, 0.01, 0.02], atol=1e-5)
    out = pipe(PROMPT, seed=1, num_frames=17, num_inference_steps=2, prompt_at=[(1.0, "a blue star")])
    assert out.frames[0].shape[0] == 17
    assert out.metadata[0]["prompt_at"] == [[1.0, "a blue star"]]


def test_a_cut_soon_after_a_given_picture_does_not_begin_with_it(pipe):
    """The second prompt begins at slot 1: the stream's own slot 0 stands at the same time as the clip's frame 0."""
    picture = np.full((32, 32, 3), 200, np.uint8)
    given = {"num_frames": 17, "solver": "euler", "num_inference_steps": 2, "output_type": "latent"}
    made = pipe(PROMPT, seed=1, image=picture, prompt_at=[(0.2, "a blue star")], **given).frames[0]
    np.testing.assert_allclose(made[1, 0, 0, 0], 0.0, atol=1e-5)  # the field's own, not the picture's


def test_a_strength_starts_from_the_footage(pipe, tmp_path):
    """Half of the steps: the callback is called for the second alone."""
    from dit_video.data.video import write_video

    write_video(tmp_path / "a.mp4", np.zeros((17, 32, 32, 3), np.uint8), 8.0)
    seen = []
    note = lambda p, i, t, now: seen.append(t) or None  # noqa: E731
    made = slots(pipe, video=str(tmp_path / "a.mp4"), strength=0.5, callback_on_step_end=note)
    np.testing.assert_allclose(made, np.arange(5) / 100, atol=1e-5)
    assert len(seen) == 1


def test_a_strength_starts_every_slot_from_footage(pipe, tmp_path):
    """Those that are dropped, too: the model is told that there is that little noise on them."""
    from dit_video.data.video import write_video

    levels = np.linspace(0, 255, 17).astype(np.uint8)[:, None, None, None]
    write_video(tmp_path / "a.mp4", np.broadcast_to(levels, (17, 32, 32, 3)).copy(), 8.0)
    given = {"video": str(tmp_path / "a.mp4"), "strength": 0.5, "num_frames": 17, "num_inference_steps": 2, "seed": 1}
    request = resolve(pipe.model, PROMPT, prompt_at=[(1.0, "a blue star")], **given)
    sampler = Sampler(pipe, request, [0], encode(pipe, request), Progress(False))
    t = sampler.schedule.instants().flow[1]
    first, second = map(sampler.stream, request.shots(4))
    for stream, slots in ((first, [0, 1, 2]), (second, [2, 3, 4, 4])):  # a cut's own slot, and one beyond the end
        silent = np.zeros((1, len(slots), 4, 4, 4), np.float32)
        started = sampler.start(stream, np.arange(len(slots)), silent)
        np.testing.assert_allclose(started[0], (1 - t) * sampler.encoded.video[slots], atol=1e-6)


@pytest.mark.parametrize("long", ["single", "window"])
def test_a_strength_with_a_cache_evaluates_the_first_step_that_is_made(pipe, tmp_path, long):
    """The cache would leave out the step that the run begins with, and nothing is kept yet. (This network's velocity is
    the same at all steps: caching changes nothing.)"""
    from dit_video.data.video import write_video

    write_video(tmp_path / "a.mp4", np.full((17, 32, 32, 3), 200, np.uint8), 8.0)
    given = {"video": str(tmp_path / "a.mp4"), "strength": 0.5, "num_inference_steps": 8, "long": long}
    np.testing.assert_allclose(slots(pipe, cache="fast", **given), slots(pipe, **given), atol=1e-4)


@pytest.mark.parametrize(
    "given, counted",
    [
        ({"prompt_at": [(1.0, "a blue square")]}, "2/4"),  # two shots
        ({"long": "window"}, "2/4"),  # the first window alone, then all
        ({"long": "window", "num_frames": 9}, "0/2"),  # no more than a window
        ({"long": "window", "image": np.zeros((32, 32, 3), np.uint8)}, "0/2"),  # the first slot is known
    ],
)
def test_steps_are_counted_over_all_that_is_made(pipe, given, counted):
    last = int(counted[0])
    with pytest.raises(Unfinished, match=f"step {counted}"):
        slots(pipe, callback_on_step_end=lambda p, step, t, now: {"stop": step == last}, **given)


def test_a_callback_sees_where_it_goes_and_can_stop(pipe):
    """`data` is the network's answer at every step; what was whole when it was stopped is kept."""
    seen = []

    def stop(p, step, t, now):
        seen.append(now["data"][0, :, 0, 0, 0])
        assert now["clips"] == [0]
        return {"stop": len(seen) == 4}

    with pytest.raises(Unfinished, match="step 3/6") as error:
        slots(pipe, long="extend", callback_on_step_end=stop)
    np.testing.assert_allclose(seen[0], [0, 0.01, 0.02], atol=1e-4)
    assert error.value.exit_code == 130
    assert error.value.latents.shape[1] == 4
    np.testing.assert_allclose(error.value.latents[0, :3, 0, 0, 0], [0, 0.01, 0.02], atol=1e-4)
