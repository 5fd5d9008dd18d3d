"""The test that a long clip has to pass: exact renders do, a frozen clip and one that repeats itself do not."""

from dataclasses import replace

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


def test_a_wrong_a_slowed_and_a_fading_clip_fail_their_own_checks(tool, with_optimizations):
    """Five segments: of fewer the largest trend is no rarer than one in twenty by chance."""
    from dit_video.evals.references import renders

    asked = [one for one in tool["single_objects"](30) if one.objects[0]["motion"] == "moves"][:5]
    scenes = [one.scene for one in asked]
    slowed = [replace(scene, bodies=(replace(scene.bodies[0], speed="slowly"),)) for scene in scenes]
    with with_optimizations():
        exact, slow = (list(renders(some, tool["CLIP"], 64, 64)) for some in (scenes, slowed))
    clips = {
        "exact": exact,
        "wrong": exact[1:] + exact[:1],
        "slow": slow,
        "fading": [np.uint8(clip * light) for clip, light in zip(exact, np.linspace(1, 0.93, 5), strict=True)],
    }
    reports = {name: tool["segment_report"](some, asked, exact, 8.0) for name, some in clips.items()}
    failed = {name: {k for k, ok in tool["holds"](report, [1.0] * 5).items() if not ok}
              for name, report in reports.items()}  # fmt: skip
    assert failed == {
        "exact": set(),
        "wrong": {"score within 5 points of short clips", "each segment within 5 points"},
        "slow": {"speed"},
        "fading": {"no trend"},
    }


def test_what_is_slowed_is_slower_in_every_motion(tool, with_optimizations):
    """A hop's rate is its period: of slow moves and slow hops together the mean of rates would hardly change."""
    from dit_video.evals.references import renders

    among = tool["single_objects"](30)
    asked = [next(o for o in among if o.objects[0]["motion"] == motion) for motion in ("moves", "grows", "bounces")]
    scenes = [one.scene for one in asked]
    slowed = [replace(scene, bodies=(replace(scene.bodies[0], speed="slowly"),)) for scene in scenes]
    with with_optimizations():
        exact, slow = (list(renders(some, tool["CLIP"], 64, 64)) for some in (scenes, slowed))
    assert tool["segment_report"](exact, asked, exact, 8.0)["speed"] == pytest.approx(1.0)
    assert tool["segment_report"](slow, asked, exact, 8.0)["speed"] < 0.75


def test_each_segment_is_held_against_its_own_prompt(tool):
    report = {"score": 0.5, "segments": [1.0, 0.0], "dynamic": 1.0, "speed": 1.0, "repetition": 0.0,
              "repetition_of_renders": 0.0, "trend": {}, "trend_by_chance": {}}  # fmt: skip
    assert all(tool["holds"](report, [1.0, 0.0]).values())
    assert not tool["holds"](report, [0.9, 0.1])["each segment within 5 points"]
