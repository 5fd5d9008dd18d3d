"""What is exported from the weights on board gives the same frames in diffusers."""

import json
import runpy

import pytest


def test_what_is_stored_is_of_sixteen_prompts_and_near(checkout):
    rows = json.loads((checkout / "tools" / "results" / "same_frames.json").read_text())["rows"]
    assert len(rows) == 16
    assert all(share >= 0.999 for _, share, _ in rows)


@pytest.mark.parity
def test_two_prompts_from_the_same_noise(checkout, tmp_path):
    for package in ("torch", "diffusers", "transformers"):
        pytest.importorskip(package)
    tool = runpy.run_path(str(checkout / "tools" / "same_frames.py"))
    prompts = ["a red circle moves right", "a blue star spins on a checkered background"]
    for prompt, share, most in tool["compare"](None, prompts, tmp_path / "model"):
        assert share >= 0.999, f"{prompt}: {most}/255 apart at most"
