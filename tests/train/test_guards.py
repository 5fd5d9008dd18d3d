"""The guard: when to go back, and when that is no use."""

import pytest

from dit_video.core.errors import NonFinite
from dit_video.train.guards import Guard


def run(guard, marks, start=1):
    """The step at which the guard gives the alarm, or None."""
    return next((step for step, mark in enumerate(marks, start) if guard.see(step, mark)), None)


def test_only_steps_in_a_row_count_and_the_alarm_comes_one_later():
    guard = Guard(3, 2)
    assert run(guard, [1, 1, 0, 1, 1, 0, 0, 1]) is None
    assert run(guard, [0, 1, 1, 1, 0], start=9) == 13
    assert guard.first_bad(13) == 10


def test_what_is_stored_goes_on_to_the_same_alarm():
    for stop in range(1, 7):
        guard, marks = Guard(3, 2), [0, 0, 1, 1, 1, 0, 0]
        if run(guard, marks[:stop]) is None:
            again = Guard(3, 2, guard.state())
            assert run(again, marks[stop:], start=stop + 1) == 6
            assert again.first_bad(6) == 3


def test_going_back_is_tried_again_only_while_the_run_gets_further():
    guard = Guard(2, 1)
    assert run(guard, [1, 1, 0]) == 3
    assert guard.first_bad(3) == 1
    assert run(guard, [0, 0, 0, 1, 1, 0], start=1) == 6, "beyond step 2 it got further"
    assert guard.first_bad(6) == 4
    assert run(guard, [0, 0, 0, 1, 1, 0], start=1) == 6
    with pytest.raises(NonFinite, match="for 2 steps up to step 5, after going back 1 times"):
        guard.first_bad(6)
    assert guard.rollbacks == 2
