"""The time line: every frame of the clip is in one stream, once, at its own noise and rotary time."""

import pytest

from dit_video.generate.mode import Plan
from dit_video.generate.shots import OPENING, change_slot, prompts_of, shots

PLAN = Plan("extend", "", 5, 2, 4)


def shown(shot, history=0):
    """Frames that a stream adds to the clip."""
    slots = shot.slots + max(0, history - shot.prefix)
    if shot.ring:
        slots += 3
    return 1 + (slots - 1) * 4 - shot.skip


@pytest.mark.parametrize(
    "changes, given, frames",
    [
        ((), {}, 41),
        ((4, 8), {}, 41),
        ((4, 8), {"cut": False}, 41),
        ((), {"history": 5}, 40),
        ((), {"history": 2}, 40),
        ((4,), {"history": 3}, 40),
        ((4,), {"history": 3, "cut": False}, 40),
        ((), {"loop": True}, 40),
    ],
)
def test_frames_add_up(changes, given, frames):
    """41 frames; one less where frame 0 is the last of given footage, or the first again."""
    each = shots(11, 4, changes, PLAN, 0, **given)
    assert sum(shown(shot, given.get("history", 0) if shot.prefix else 0) for shot in each) == frames
    # every slot but those that are dropped has a frame of noise of its own, in order
    noise = [n for shot in each for n in shot.noise if n < OPENING]
    assert noise == list(range(1 if given.get("loop") else 0, 11))


def test_a_cut_begins_a_stream_whose_own_slot_is_dropped():
    first, second, third = shots(11, 4, (4, 8), PLAN, 0)
    assert (first.slots, second.slots, third.slots) == (4, 5, 4)
    assert (first.skip, second.skip) == (0, 1)
    assert second.noise.tolist() == [OPENING + 4, 4, 5, 6, 7]
    # frame 13 is the first of slot 4, the second slot of its stream: a picture there stands at 1/4 of it
    assert second.zero + 13 / 4 == 0.25
    assert second.prompts == ((0, 1),)


def test_a_prompt_that_is_carried_on_changes_in_the_stream():
    (shot,) = shots(11, 4, (4, 8), PLAN, 0, cut=False)
    assert [shot.prompt_at(slot) for slot in (0, 3, 4, 7, 8, 10)] == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(
    "mode, slots, changes, given, numbers",
    [
        ("window", 9, (7,), {}, [0, 0, 1]),  # slots 4 to 8: blending leaves the most of them in 7 and 8
        ("window", 9, (4, 5), {}, [0, 2, 2]),
        ("extend", 11, (4, 8), {}, [0, 1, 2]),
        ("extend", 9, (6,), {}, [0, 1, 1]),  # slots 5 to 7 are made, then 8
        ("extend", 11, (), {"history": 5}, [0, 0, 0, 0]),
        ("window", 9, (5,), {"loop": True}, [0, 1, 1]),
        ("single", 11, (), {}, [0]),
    ],
)
def test_a_pass_takes_the_prompt_that_has_most_of_what_it_makes(mode, slots, changes, given, numbers):
    plan = Plan(mode, "", 5, 2, 4)
    (shot,) = shots(slots, 4, changes, plan, 0, cut=False, **given)
    assert prompts_of(shot, plan) == numbers


def test_given_footage_stands_in_front():
    (shot,) = shots(11, 4, (), PLAN, 0, history=5)
    assert (shot.prefix, shot.slots, shot.skip, shot.mid) == (2, 12, 17, True)
    # frame 0 is the last of the footage, and of the slot before the first new one
    assert shot.zero == 1


def test_a_tail_never_has_the_slot_of_one_frame_that_footage_begins_with():
    """Of five frames, two slots, only the second holds four: as in training, where tails begin mid-stream."""
    (shot,) = shots(11, 4, (), PLAN, 0, history=2)
    assert (shot.prefix, shot.slots, shot.skip, shot.zero) == (1, 11, 5, 0)


def test_times_become_slots():
    """Slot s begins with frame 4 s - 3: at 8 fps, 20 s are frame 160, and slot 41 begins with 161."""
    assert change_slot(20.0, 8.0, 4) == 41
    assert change_slot(0.01, 8.0, 4) == 1
    assert [change_slot(f / 8, 8.0, 4) for f in (1, 4, 5, 9)] == [1, 2, 2, 3]
