"""Variants of the family that clips are not made with are refused, before a weight is placed."""

import runpy
from pathlib import Path

import pytest

from dit_video.core.errors import BadInput
from dit_video.generate.pipeline import VideoPipeline

variant = runpy.run_path(str(Path(__file__).parents[1] / "weights" / "variants.py"))["variant"]


@pytest.mark.parametrize(
    "name, why", [("t2v_a14b", "two denoisers"), ("i2v", "takes 12 channels for 4"), ("vace", "a control branch")]
)
def test_what_is_not_run_says_so(name, why):
    with pytest.raises(BadInput, match=f"{name}: it .*{why}.*not made with such a model yet"):
        VideoPipeline(variant(name))
