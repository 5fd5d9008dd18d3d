"""Conditions: what goes together, what a model can, and that what is given lands where it belongs."""

import re
import runpy
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from dit_video.core.errors import BadInput, MissingError
from dit_video.data.video import write_video
from dit_video.generate.conditions import NEEDS, Asked, known_positions
from dit_video.generate.mode import abilities, wanted
from dit_video.generate.request import resolve

PROMPT = "a red circle moves right"


def footage(path, frames, size=(32, 32), fps=8.0):
    """Frames that are told apart: each has a brightness of its own."""
    levels = np.linspace(20, 235, frames).astype(np.uint8)
    write_video(path, np.broadcast_to(levels[:, None, None, None], (frames, *size, 3)).copy(), fps, crf=1)
    return str(path)


def level(frame):
    return float(frame.mean())


@pytest.fixture
def clip(tmp_path):
    return footage(tmp_path / "clip.mp4", 14)


@pytest.fixture
def picture(tmp_path):
    Image.fromarray(np.full((40, 40, 3), 90, np.uint8)).save(tmp_path / "a.png")
    return str(tmp_path / "a.png")


@pytest.mark.parametrize(
    "given, message",
    [
        ({"keyframes": {40: "PIC"}}, "--keyframe 40: the clip has frames 0 to 4"),
        ({"keyframes": {4: "PIC"}, "last_image": "PIC"}, "frame 4 is given twice"),
        ({"before": True}, "Give --extend CLIP"),
        ({"video": "CLIP"}, "--mask MASK, --strength X or --interpolate N"),
        ({"mask": "PIC"}, "Give --video CLIP"),
        ({"strength": 0.5}, "Give --video CLIP"),
        ({"video": "CLIP", "strength": 1.5}, "strength=1.5"),
        ({"video": "CLIP", "strength": 0.5, "num_frames": 33}, "--video has 14 frames at this rate, the clip 33"),
        ({"video": "CLIP", "mask": "PIC"}, "--mask is 40x40, --video is 32x32"),
        ({"video": "CLIP", "interpolate": 1}, "interpolate=1"),
        ({"video": "CLIP", "interpolate": 2, "num_frames": 9}, "Leave --num_frames"),
        ({"video": "CLIP", "interpolate": 2, "strength": 0.5}, "does not go with"),
        ({"video": "PIC", "interpolate": 2}, "the 1 of --video, and the model needs 4k+1: nothing would be new"),
        ({"extend": "CLIP", "num_frames": 1}, "makes nothing new: lengths count from"),
        ({"extend": "CLIP", "num_frames": 1, "before": True}, "Use 5 or more"),
        ({"extend": "CLIP", "video": "CLIP", "strength": 0.5}, "Give one"),
        ({"extend": "CLIP", "image": "PIC"}, "both say what is seen"),
        ({"loop": True, "image": "PIC"}, "--loop goes with a prompt alone"),
        ({"loop": True}, "more than 12 frames"),
        ({"prompt_at": [(1.0, "a"), (0.5, "b")], "num_frames": 33}, "times must rise"),
        ({"prompt_at": [(9.0, "a")]}, "the clip ends at 0.625 s"),
        ({"prompt_at": [(1.0, "a"), (1.1, "b")], "num_frames": 33}, "nearer than 4 frames"),
        ({"prompt_at": [(0.3, " ")]}, "empty"),
        ({"long": "window", "solver": "heun", "num_frames": 33}, "heun evaluates twice"),
        ({"cache": "most"}, "off, safe, fast"),
        ({"transition": "fade"}, "cut or carry"),
        ({"noise_order": "none"}, "fresh, shared or rescheduled"),
    ],
)
def test_bad_input_is_told(tiny, clip, picture, given, message):
    given = {k: {"CLIP": clip, "PIC": picture}.get(v, v) if isinstance(v, str) else v for k, v in given.items()}
    if "keyframes" in given:
        given["keyframes"] = {k: picture if v == "PIC" else v for k, v in given["keyframes"].items()}
    with pytest.raises(BadInput) as error:
        resolve(tiny, PROMPT, **given)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "given",
    [{"image": "none"}, {"keyframes": {2: "none"}}, {"last_image": "none"}, {"extend": "none"},
     {"video": "none", "strength": 0.5}, {"video": "CLIP", "mask": "none"}],
)  # fmt: skip
def test_what_is_not_there_is_told_as_missing(tiny, clip, given):
    with pytest.raises(MissingError, match="none: no such file") as error:
        resolve(tiny, PROMPT, **{k: clip if v == "CLIP" else v for k, v in given.items()})
    assert error.value.exit_code == 3


@pytest.mark.parametrize(
    "asked, able",
    [
        ({"last_image": "x"}, "cannot end on a picture. It can: --image, --loop, --video --strength"),
        ({"extend": "x"}, "cannot go on from footage"),
        ({"extend": "x", "before": True}, "cannot lead up to footage"),
        ({"video": "x", "mask": "y"}, "cannot fill in a part"),
        ({"keyframes": {3: "x"}}, "cannot show a picture on the way"),
    ],
)
def test_what_a_model_cannot_do_is_refused_with_what_it_can(tiny, asked, able):
    model = replace(tiny, defaults=replace(tiny.defaults, conditions=("first",)))
    with pytest.raises(BadInput) as error:
        Asked(**asked).check(model)
    assert able in str(error.value)
    Asked(image="x").check(model)
    with pytest.raises(BadInput, match="cannot start from a picture"):
        Asked(image="x").check(replace(tiny, expand_timesteps=False))


def test_a_missing_clip_is_told(tiny, tmp_path):
    with pytest.raises(MissingError, match="none.mp4"):
        resolve(tiny, PROMPT, extend=str(tmp_path / "none.mp4"))


def test_footage_goes_on_from_its_last_frames(tiny, clip):
    """14 frames: the last 13 are on the rule, the last of them is frame 0."""
    request = resolve(tiny, PROMPT, extend=clip, num_frames=9)
    given = request.given
    assert given.history.shape == (13, 32, 32, 3)
    np.testing.assert_allclose(level(given.history[-1]), 235, atol=3)
    np.testing.assert_allclose(level(given.opening), 20, atol=3)
    assert given.since == 13
    assert len(given.lead) == 14
    (shot,) = request.shots(4)
    assert (shot.prefix, shot.skip, shot.slots) == (2, 13, 4)


def test_footage_before_which_a_clip_is_made(tiny, clip):
    given = resolve(tiny, PROMPT, extend=clip, before=True, num_frames=9).given
    ((frame, picture),) = given.pictures
    assert (frame, given.drop, len(given.follow)) == (8, 1, 14)
    np.testing.assert_allclose(level(picture), 20, atol=3)


def test_another_size_and_rate_are_converted_and_said(tiny, tmp_path):
    path = footage(tmp_path / "b.mp4", 27, (64, 96), 16.0)
    request = resolve(tiny, PROMPT, extend=path, num_frames=9)
    assert (request.height, request.width) == (32, 48)  # the trained size nearest to its shape
    assert len(request.given.lead) == 14
    assert request.given.history.shape[1:] == (32, 48, 3)
    said = " ".join(request.notes)
    assert "16 fps is brought to 8 fps" in said
    assert "96x64 footage is brought to 48x32" in said
    about = request.given.sources[0]
    assert (about["fps"], about["height"], about["resize"]) == (16.0, 64, "crop")


def test_frames_between(tiny, tmp_path):
    """Five frames at 4 fps become nine at 8, every second one given."""
    path = footage(tmp_path / "slow.mp4", 5, fps=4.0)
    request = resolve(tiny, PROMPT, video=path, interpolate=2)
    assert (request.num_frames, request.fps) == (9, 8.0)
    assert [frame for frame, _ in request.given.pictures] == [0, 2, 4, 6, 8]
    np.testing.assert_allclose([level(p) for _, p in request.given.pictures], np.linspace(20, 235, 5), atol=3)
    twice = resolve(tiny, PROMPT, video=footage(tmp_path / "usual.mp4", 5, fps=8.0), interpolate=2)
    assert twice.fps == 16.0 and not [note for note in twice.notes if "as fast" in note]


def test_a_mask_says_what_stays(tiny, clip, tmp_path):
    half = np.zeros((32, 32, 3), np.uint8)
    half[:, 16:] = 255
    Image.fromarray(half).save(tmp_path / "mask.png")
    given = resolve(tiny, PROMPT, video=clip, mask=str(tmp_path / "mask.png")).given
    assert given.keep.shape == (13, 32, 32)  # the footage's 14 frames, on the rule
    assert given.keep[:, :, :16].all()
    assert not given.keep[:, :, 16:].any()
    wide = resolve(tiny, PROMPT, video=clip, mask=str(tmp_path / "mask.png"), resize="pad", height=32, width=48).given
    kept = np.zeros((32, 48), bool)
    kept[:, 8:24] = True  # the bars are not in the footage: they are made
    np.testing.assert_array_equal(wide.keep, np.broadcast_to(kept, (13, 32, 48)))


def test_positions_are_known_when_all_their_pixels_and_their_patch_are():
    keep = np.ones((9, 32, 64), bool)
    keep[3, 5, 5] = False
    known = known_positions(keep, stride=4, factor=8, patch=2)
    assert known.shape == (3, 4, 8)
    assert known[0].all()
    assert known[2].all()
    assert not known[1, :2, :2].any()
    assert known[1].sum() == 4 * 8 - 4
    keep[:] = True
    keep[0, 31, 63] = False
    known = known_positions(keep, 4, 8, 2)
    assert known[1:].all()
    assert known[0].sum() == 28


ROWS = {
    "Wan 2.1 T2V 1.3B": "t2v", "Wan 2.1 I2V 14B": "i2v", "Wan 2.1 FLF2V 14B": "flf2v", "Wan 2.2 TI2V 5B": "ti2v",
    "Wan 2.2 I2V A14B": "i2v_a14b", "VACE 1.3B, 14B": "vace",
}  # fmt: skip


@pytest.mark.parametrize("row", ROWS)
def test_the_readmes_table_of_flags_is_what_models_can(checkout, row):
    made = runpy.run_path(str(checkout / "tests" / "weights" / "variants.py"))["variant"](ROWS[row])
    model = replace(made, defaults=replace(made.defaults, conditions=("first",)))  # as of every released one
    can = abilities(model)
    flags = {f"--{flag}" for flag, (need, _) in NEEDS.items() if need & can}
    flags = {"--extend --before" if flag == "--before" else flag for flag in flags}
    flags |= {"--long window", "--prompt_at"} if "free" in can else set()
    (line,) = [line for line in (checkout / "README.md").read_text().splitlines() if line.startswith(f"| {row} |")]
    told = {*re.findall("`(.*?)`", line.split("|")[2])} - {"--guidance_scale_2", "--conditioning_scale"}
    assert told == flags
    assert ("wanted" in line) == bool(wanted(model))
