"""Requests: defaults filled in, rules kept, and every message with what, why and what to do."""

import numpy as np
import pytest

from dit_video.core.errors import BadInput
from dit_video.data.video import write_video
from dit_video.diffusion.schedule import Schedule
from dit_video.generate.extent import nearest_trained, parse_aspect
from dit_video.generate.request import resolve

PROMPT = "a red circle moves right"


def test_the_models_defaults_fill_what_is_left_out(tiny):
    request = resolve(tiny, PROMPT, seed=5)
    assert (request.num_frames, request.height, request.width, request.fps) == (5, 32, 32, 8.0)
    assert (request.num_inference_steps, request.guidance_scale, request.solver, request.shift) == (
        3,
        2.0,
        "unipc",
        3.0,
    )
    assert (request.prompts, request.negative_prompt, request.seed, request.notes) == ((PROMPT,), "", 5, ())


def test_a_seed_is_drawn_when_none_is_given(tiny):
    assert resolve(tiny, PROMPT).seed != resolve(tiny, PROMPT).seed


def test_each_prompt_is_repeated(tiny):
    assert resolve(tiny, ["a star", "a ring"], num_videos_per_prompt=2).prompts == (
        "a star",
        "a star",
        "a ring",
        "a ring",
    )


@pytest.mark.parametrize(
    "given, message",
    [
        ({"num_frames": 50}, "num_frames=50: this model needs 4k+1. Use 49 or 53, or --fit nearest."),
        ({"num_frames": 0}, "Use 1 or 5"),
        ({"height": 500}, "height=500 must be a multiple of 16. Nearest: 496 or 512"),
        ({"width": 40}, "width=40 must be a multiple of 16. Nearest: 32 or 48"),
        ({"seconds": 5, "num_frames": 97, "fps": 16}, "--seconds 5 and --num_frames 97 disagree (81 frames at 16 fps)"),
        ({"aspect": "9:16", "height": 32}, "Give one"),
        ({"aspect": "tall"}, "width:height"),
        ({"aspect": "0:3"}, "width:height"),
        ({"fps": 0.0}, "fps=0.0 must be a number above zero"),
        ({"seconds": -1.0}, "seconds=-1.0"),
        ({"shift": float("nan")}, "shift=nan"),
        ({"num_inference_steps": 0}, "num_inference_steps=0 must be at least 1"),
        ({"guidance_scale": float("inf")}, "guidance_scale=inf"),
        ({"guidance_interval": (0.5, 0.2)}, "guidance_interval=0.5 0.2: two times that rise"),
        ({"guidance_interval": 0.5}, "guidance_interval=0.5: give two times"),
        ({"guidance_rescale": 1.5}, "guidance_rescale=1.5: from 0"),
        ({"guidance_scale": 1.0, "cfg_zero_star": True}, "guidance is off at scale 1"),
        ({"solver": "unipcc"}, "Use one of unipc"),
        ({"seed": -3}, "seed=-3"),
        ({"seed": [5, 5]}, r"seed=[5, 5] must be one whole number"),
        ({"fit": "largest"}, "nearest"),
        ({"num_videos_per_prompt": 0}, "at least 1"),
        ({"prompt_at": [(1.0, "a star")], "transition": "carry"}, "is made in one piece, which takes one prompt"),
        (
            {
                "num_frames": 33,
                "long": "window",
                "window": 7,
                "transition": "carry",
                "prompt_at": [(1.6, "a blue star"), (2.1, "a ring")],
            },
            '--prompt_at 1.6, "a blue star", would not be seen: no pass of 7 latent frames is mostly its own.',
        ),
        (
            {"num_frames": 17, "loop": True, "transition": "carry", "prompt_at": [(0.1, "a star")]},
            'the first prompt, "a red circle moves right", would not be seen',
        ),
        ({"prompt_at": [1, 2]}, "--prompt_at 1: give seconds and a prompt"),
        ({"prompt_at": [(None, "a star")]}, "--prompt_at (None, 'a star'): give seconds and a prompt"),
        ({"keyframes": {"x": np.zeros((32, 32, 3), np.uint8)}}, "--keyframe x: give the frame's number"),
        ({"image": np.zeros((4, 4), np.uint8)}, "uint8 (H, W, 3)"),
        ({"image": np.zeros((32, 32, 3), np.uint8), "num_frames": 1}, "nothing to generate"),
        ({"image": np.zeros((8, 8, 3), np.uint8), "resize": "zoom"}, "crop, pad, stretch"),
    ],
)
def test_bad_input_is_told(tiny, given, message):
    with pytest.raises(BadInput) as error:
        resolve(tiny, PROMPT, **given)
    assert message in str(error.value)


@pytest.mark.parametrize("prompt", ["", "  \n", [], ["a star", " "], [3]])
def test_empty_prompts_are_told(tiny, prompt):
    with pytest.raises(BadInput, match="rompt"):
        resolve(tiny, prompt)


@pytest.mark.parametrize(
    "given, message",
    [
        ({"num_frames": 17, "long": "extend", "window": 5, "overlap": 4}, "--overlap: chunks go on from 2"),
        ({"num_frames": 17, "long": "window", "rope": "riflex"}, "--rope: windows and chunks"),
        ({"window": 9, "overlap": 4}, "--window and --overlap: one pass"),
        ({"window": 9, "long": "auto"}, "--window and --overlap: one pass"),
        ({"rope": "riflex"}, "--rope: the clip is no longer than those of training"),
        ({"resize": "pad"}, "--resize: no picture and no footage"),
        ({"transition": "carry"}, "--transition: no --prompt_at"),
        ({"negative_prompt": "a star", "guidance_scale": 1.0}, "--negative_prompt: guidance is off at scale 1"),
    ],
)
def test_flags_that_change_nothing_are_warned_of(tiny, given, message):
    assert resolve(tiny, PROMPT, **given).notes[-1].startswith(message)
    with pytest.raises(BadInput, match=message):
        resolve(tiny, PROMPT, strict=True, **given)


def test_a_loop_is_made_in_windows_and_carries(tiny):
    given = {"loop": True, "transition": "carry", "window": 4, "overlap": 1}
    request = resolve(tiny, PROMPT, num_frames=17, strict=True, **given)
    assert request.pieces
    assert resolve(tiny, PROMPT, num_frames=16, seed=request.seed, **given) == request, "4k frames, as it is told"


def test_what_auto_picks_is_told_always(tiny):
    assert resolve(tiny, PROMPT, long="auto").notes[0].startswith("--long single: no longer than in training")
    assert resolve(tiny, PROMPT, num_frames=17, long="auto").notes[0].startswith("--long extend: more than the 3")


def test_what_changes_a_request_is_said(tiny, tmp_path, caplog):
    """At the level that a user sees, each note once; what will work but badly is a warning."""
    write_video(tmp_path / "a.mp4", np.zeros((9, 32, 32, 3), np.uint8), 16.0)
    caplog.set_level("INFO", "dit_video")
    for level, given, said in (
        ("INFO", {"long": "auto"}, "--long single: no longer than in training"),
        ("INFO", {"num_frames": 8, "fit": "nearest"}, "taking 9"),
        ("INFO", {"extend": str(tmp_path / "a.mp4")}, "footage of 16 fps is brought to 8 fps."),
        ("WARNING", {"num_frames": 17}, "17 frames at 32x32 is 20 tokens"),
        ("WARNING", {"prompt": " ".join([PROMPT] * 8)}, "limit 32"),
        ("WARNING", {"transition": "carry"}, "so it changes nothing"),
    ):
        caplog.clear()
        notes = resolve(tiny, **({"prompt": PROMPT} | given)).notes
        records = [record for record in caplog.records if record.name == "dit_video"]
        assert [record.getMessage() for record in records] == [*notes]
        assert [record.levelname for record in records if said in record.getMessage()] == [level]


def test_a_time_line_goes_with_several_clips_of_one_prompt(tiny):
    given = {"num_frames": 17, "prompt_at": [(1.0, "a blue star")]}
    request = resolve(tiny, PROMPT, num_videos_per_prompt=2, **given)
    assert request.texts == ((PROMPT, PROMPT), ("a blue star", "a blue star"))
    with pytest.raises(BadInput, match="goes with one prompt"):
        resolve(tiny, [PROMPT, "a ring"], **given)


def test_fit_nearest_snaps_and_says_so(tiny):
    request = resolve(tiny, PROMPT, num_frames=8, height=30, width=41, fit="nearest")
    assert (request.num_frames, request.height, request.width) == (9, 32, 48)
    assert any("taking 9" in note for note in request.notes)
    assert any("taking 48x32" in note for note in request.notes)
    assert resolve(tiny, PROMPT, num_frames=9, height=32, fit="nearest").notes == ()


@pytest.mark.parametrize("seconds, fps, frames", [(1.0, 8.0, 9), (0.1, 8.0, 1), (0.6, 8.0, 5), (2.0, 4.0, 9)])
def test_seconds_become_frames(tiny, seconds, fps, frames):
    request = resolve(tiny, PROMPT, seconds=seconds, fps=fps)
    assert request.num_frames == frames
    assert resolve(tiny, PROMPT, seconds=seconds, fps=fps, num_frames=frames).num_frames == frames


@pytest.mark.parametrize("aspect, size", [("9:16", (48, 32)), ("16:9", (32, 48)), ("1:1", (32, 32)), ("1.6", (32, 48))])
def test_aspect_takes_the_nearest_trained_size(tiny, aspect, size):
    request = resolve(tiny, PROMPT, aspect=aspect)
    assert (request.height, request.width) == size
    assert f"{size[1]}x{size[0]}" in request.notes[0]


def test_ratios():
    assert parse_aspect("16:9") == pytest.approx(16 / 9)
    assert parse_aspect("9x16") == pytest.approx(9 / 16)
    # as far from square both ways, not nearer because the numbers are small
    assert nearest_trained(0.6, ((64, 64), (80, 48), (48, 80))) == (80, 48)
    assert nearest_trained(1 / 0.6, ((64, 64), (80, 48), (48, 80))) == (48, 80)


def test_beyond_training_is_warned_of_with_numbers(tiny):
    request = resolve(tiny, PROMPT, num_frames=17)
    assert "17 frames at 32x32 is 20 tokens; this model was trained to 18" in request.notes[0]
    assert request.notes[0].endswith("use up to 9 frames at 32x32, or --long window.")
    large = resolve(tiny, PROMPT, num_frames=9, height=64, width=64)
    assert "--long" not in large.notes[0], "that many frames it knows: pieces of them are no smaller"
    with pytest.raises(BadInput, match="20 tokens"):
        resolve(tiny, PROMPT, num_frames=17, strict=True)
    assert "larger than any size" in resolve(tiny, PROMPT, num_frames=1, height=64, width=64).notes[0]


def test_pieces_no_longer_than_training_are_not_warned_of(tiny):
    """A loop is made in windows, a time line of cuts in as many passes as prompts: positions are not stretched."""
    frames = tiny.defaults.max_frames + 2 * tiny.vae.stride
    for given in ({"loop": True}, {"prompt_at": [((frames // 2) / 8, "a blue star")]}):
        request = resolve(tiny, PROMPT, num_frames=frames, rope="riflex", strict=True, **given)
        assert request.plan.mode == "single" and request.plan.stretch is None
    with pytest.raises(BadInput, match="trained to"):
        resolve(tiny, PROMPT, num_frames=frames, strict=True)


def test_a_long_prompt_shows_what_is_dropped(tiny):
    words = " ".join(["a red circle moves right"] * 8)
    request = resolve(tiny, words)
    assert "limit 32" in request.notes[0]
    dropped = request.notes[0].split('"')[1]
    assert words.endswith(dropped)
    assert len(dropped) > 20
    with pytest.raises(BadInput, match="Dropped"):
        resolve(tiny, words, strict=True)
    assert resolve(tiny, " ".join(["right"] * 3)).notes == ()


def test_an_image_chooses_the_size_nearest_to_its_shape(tiny):
    tall = np.zeros((160, 90, 3), np.uint8)
    request = resolve(tiny, PROMPT, image=tall)
    assert request.given.pictures[0][1].shape == (48, 32, 3)
    assert request.image_from == {"image": "given", "height": 160, "width": 90, "resize": "crop"}
    padded = resolve(tiny, PROMPT, image=tall, height=32, width=32, resize="pad")
    assert padded.given.pictures[0][1].shape == (32, 32, 3)


def test_every_solver_has_a_schedule_of_its_own():
    from dit_video.diffusion.solvers import SOLVERS

    for solver in SOLVERS.values():
        assert len(Schedule(4, 3.0, solver.schedule).pairs()) == 4
