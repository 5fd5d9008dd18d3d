"""The test that a long clip has to pass: exact renders do, a frozen clip and one that repeats itself do not."""

import numpy as np
import pytest


@pytest.fixture(scope="module")
def tool(load):
    return load("long.py")


@pytest.mark.slow
def test_a_frozen_and_a_repeated_clip_fail(tool):
    from dit_video.evals.references import renders

    asked = tool["single_objects"](3)
    exact = list(renders([one.scene for one in asked], 65, 64, 64))
    frozen = [np.repeat(clip[:1], len(clip), 0) for clip in exact]
    repeated = [np.resize(clip[: tool["CLIP"]], clip.shape) for clip in exact]
    reports = {name: tool["segment_report"](clips, asked, exact, 8.0)
               for name, clips in (("exact", exact), ("frozen", frozen), ("repeated", repeated))}  # fmt: skip
    alone = reports["exact"]["segments"]
    failed = {name: {k for k, ok in tool["holds"](report, alone).items() if not ok} for name, report in reports.items()}
    assert failed["exact"] == set()
    assert "dynamic degree" in failed["frozen"]
    assert "repetition" in failed["repeated"]


def test_each_segment_is_held_against_its_own_prompt(tool):
    report = {"score": 0.5, "segments": [1.0, 0.0], "dynamic": 1.0, "speed": 1.0, "repetition": 0.0,
              "repetition_of_renders": 0.0, "trend": {}, "trend_by_chance": {}}  # fmt: skip
    assert all(tool["holds"](report, [1.0, 0.0]).values())
    assert not tool["holds"](report, [0.9, 0.1])["each segment within 5 points"]
