"""Every variant of the family makes clips, from what it can be given; the numbers are in models/test_reference.py."""

import runpy
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from dit_video.core.errors import BadInput
from dit_video.data.video import write_video
from dit_video.generate import encoded
from dit_video.generate.mode import abilities
from dit_video.generate.pipeline import VideoPipeline
from dit_video.generate.request import resolve

variant = lru_cache(runpy.run_path(str(Path(__file__).parents[1] / "weights" / "variants.py"))["variant"])
PROMPT = "a red circle moves right"
RED, BLUE = (np.full((32, 32, 3), colour, np.uint8) for colour in ((200, 20, 20), (20, 20, 200)))


@pytest.fixture
def clip(tmp_path):
    write_video(tmp_path / "a.mp4", np.full((5, 32, 32, 3), 90, np.uint8), 8.0, crf=1)
    return str(tmp_path / "a.mp4")


@pytest.mark.parametrize(
    "name, given, message",
    [
        ("t2v", {"image": RED}, "--image: this model cannot start from a picture. It can: --loop, --video --strength."),
        ("i2v", {}, "this model makes clips that start from a picture. Give --image PATH."),
        ("i2v", {"image": RED, "last_image": BLUE}, "cannot end on a picture. It can: --image."),
        ("i2v", {"image": RED, "keyframes": {3: BLUE}}, "cannot show a picture on the way. It can: --image."),
        ("i2v", {"image": RED, "long": "window"}, "--long window: this model is given a picture"),
        ("i2v", {"image": RED, "num_frames": 17, "prompt_at": [(1.0, "a star")]}, "it takes one prompt"),
        ("flf2v", {"image": RED}, "Give --last_image PATH."),
        ("flf2v", {}, "start from a picture and end on a picture. Give --image PATH and --last_image PATH."),
        ("i2v_a14b", {"loop": True}, "cannot make a loop. It can: --image, --last_image."),
        ("ti2v", {"reference": [RED]}, "cannot look at a picture of what is to be seen. It can: --image, --last_image"),
        ("vace", {"video": "CLIP", "strength": 0.5}, "cannot begin on footage"),
        ("vace", {"extend": "CLIP"}, "cannot go on from footage"),
        ("t2v", {"video": "CLIP"}, "--mask MASK, --strength X or --interpolate N"),
        ("t2v", {"guidance_scale_2": 3.0}, "--guidance_scale_2 is for models of two denoisers"),
        ("t2v_a14b", {"guidance_scale_2": -3.0}, "guidance_scale_2=-3.0 must be a number from 0 up"),
        ("t2v", {"conditioning_scale": 3.0}, "--conditioning_scale is for models with a control branch"),
    ],
)
def test_each_takes_what_it_can_and_says_so(name, given, message, clip):
    given = {k: clip if isinstance(v, str) and v == "CLIP" else v for k, v in given.items()}
    with pytest.raises(BadInput) as error:
        resolve(variant(name), PROMPT, **given)
    assert message in str(error.value)


def test_channels_of_no_known_kind_are_refused_before_a_weight_is_placed():
    model = variant("i2v")
    with pytest.raises(BadInput, match=r"i2v: it takes 13 channels, its VAE has 4.*\(4\), or that .*\(12\)"):
        VideoPipeline(replace(model, dit=replace(model.dit, in_channels=13)))
    with pytest.raises(BadInput, match="two denoisers differ in size"):
        VideoPipeline(replace(variant("t2v_a14b"), dit_2=model.dit))


def test_scales_of_two_denoisers():
    """A scale that is given alone goes for both; without one both are the model's."""
    model = variant("t2v_a14b")
    model = replace(model, defaults=replace(model.defaults, guidance=4.0, guidance_2=3.0))

    def scales(**given):
        request = resolve(model, PROMPT, **given)
        return request.guidance_scale, request.guidance_scale_2, request.guided

    assert scales() == (4.0, 3.0, True)
    assert scales(guidance_scale=2.0) == (2.0, 2.0, True)
    assert scales(guidance_scale_2=2.0) == (4.0, 2.0, True)
    assert scales(guidance_scale=1.0, guidance_scale_2=2.0) == (1.0, 2.0, True)
    assert scales(guidance_scale=1.0) == (1.0, 1.0, False)
    assert resolve(model, PROMPT).how()["guidance_scale_2"] == 3.0


def test_only_models_with_a_time_per_token_go_by_their_defaults():
    assert abilities(variant("ti2v")) == {"free", "first", "picture", "tail", "sink", "mask"}
    assert abilities(variant("t2v")) == {"free"}
    assert abilities(variant("flf2v")) == abilities(variant("i2v_a14b")) == {"first", "last"}


def test_what_is_given_as_a_video(clip):
    """Grey (zero) and to be made, but for what is given."""
    given = resolve(variant("vace"), PROMPT, keyframes={2: RED}, last_image=BLUE, reference=[RED]).given
    video, made = encoded.shown(given, 5, 32, 32)
    assert made.mean((1, 2)).tolist() == [1, 1, 0, 1, 0]
    np.testing.assert_allclose(video[2, 0, 0], RED[0, 0] / 127.5 - 1, atol=1e-6)
    assert not video[[0, 1, 3]].any()
    assert len(given.references) == 1
    led = resolve(variant("vace"), PROMPT, video=clip).given
    video, made = encoded.shown(led, 5, 32, 32)
    assert made.all()
    np.testing.assert_allclose(video, 90 / 127.5 - 1, atol=0.03)


def test_a_reference_is_whole_and_on_white():
    wide = np.zeros((16, 64, 3), np.uint8)
    (fitted,) = resolve(variant("vace"), PROMPT, height=32, width=32, reference=[wide]).given.references
    assert not fitted[14:18].any()
    assert (fitted[:8] == 255).all()


def test_two_denoisers_share_the_steps():
    """Each step is made by the weights whose turn it is: with the first's head at zero, its steps move nothing."""
    model = variant("t2v_a14b")
    still = {**model.params["dit"], "head": {"kernel": 0 * model.params["dit"]["head"]["kernel"],
                                             "bias": 0 * model.params["dit"]["head"]["bias"]}}  # fmt: skip
    pipe = VideoPipeline(replace(model, params={**model.params, "dit": still}))
    seen = []
    pipe(PROMPT, seed=1, num_inference_steps=4, solver="euler", shift=12.0, output_type="latent",
         callback_on_step_end=lambda p, i, t, now: seen.append((t, now["latents"].copy())) or None)  # fmt: skip
    moved = [bool(np.abs(b - a).max() > 1e-3) for (_, a), (_, b) in pairwise(seen)]
    assert moved == [t < 875 for t, _ in seen[1:]]
    assert moved[-1] and not moved[0]
