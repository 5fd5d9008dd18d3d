"""The test that a long clip has to pass: exact renders do, a frozen clip and one that repeats itself do not."""

from dataclasses import replace
from types import SimpleNamespace

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


def test_after_a_cut_there_is_no_drift_to_see(tool):
    report = {"score": 1.0, "segments": [1.0], "dynamic": 1.0, "speed": 1.0, "repetition": 0.0}
    report |= {"repetition_of_renders": 0.0, "trend": {"contrast": 0.3}, "trend_by_chance": {"contrast": 0.1}}
    assert tool["holds"](report, [1.0])["no trend"] is False
    assert all(tool["holds"](report, [1.0], trend=False).values())


def test_each_segment_is_held_against_its_own_prompt(tool):
    report = {"score": 0.5, "segments": [1.0, 0.0], "dynamic": 1.0, "speed": 1.0, "repetition": 0.0,
              "repetition_of_renders": 0.0, "trend": {}, "trend_by_chance": {}}  # fmt: skip
    assert all(tool["holds"](report, [1.0, 0.0]).values())
    assert not tool["holds"](report, [0.9, 0.1])["each segment within 5 points"]


@pytest.mark.slow
def test_drift_is_looked_for_where_a_clip_goes_on(tool, tmp_path, monkeypatch, with_optimizations):
    """Renders in the place of a model, which fade where the prompt does not begin anew."""
    from dit_video.evals.references import renders

    # five segments of a motion that lasts: of fewer the largest trend is no rarer than one in twenty by chance
    asked = [one for one in tool["single_objects"](30) if one.objects[0]["motion"] == "moves"][:5]
    known, calls, every = {one.prompt: one.scene for one in asked}, [], 4

    class Pipe:
        model = SimpleNamespace(defaults=SimpleNamespace(fps=8.0, height=64, width=64))

        def __call__(self, prompt, num_frames=None, transition=None, prompt_at=(), long=None, **how):
            if not isinstance(prompt, str):
                return SimpleNamespace(frames=list(renders([known[one] for one in prompt], 17, 64, 64)))
            calls.append((long, transition))
            parts = renders([known[one] for one in (prompt, *(later for _, later in prompt_at))], 8 * every, 64, 64)
            light = np.linspace(1, 0.9, 5) if transition == "carry" else np.ones(5)
            whole = np.concatenate([np.roll(part, 8, 0) * by for part, by in zip(parts, light, strict=True)])
            return SimpleNamespace(frames=[np.uint8(np.concatenate([whole, whole[-1:]]))])

    told = {}
    inside = tool["content"].__globals__
    monkeypatch.setitem(inside, "pipeline", lambda args: Pipe())
    monkeypatch.setitem(inside, "single_objects", lambda count: asked[:count])
    monkeypatch.setitem(inside, "store", lambda name, **data: told.update(data))
    with with_optimizations():
        tool["content"](SimpleNamespace(short=every, seconds=5 * every, steps=None))
    assert calls == [(mode, way) for mode in ("window", "extend") for way in ("cut", "carry")]
    found = {row[0]: row[6] for row in told["rows"]}
    assert "no trend" not in found["window, cut"] and "no trend" not in told["reports"]["window, cut"]["holds"]
    assert "no trend" in found["window, carry"] and "no trend" in found["extend, carry"]
    assert found["renders"] == "yes"
