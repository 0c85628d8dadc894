"""Which steps a stage passes over after its alarms."""

import json
import math

from hypothesis import given
from hypothesis import strategies as st

from xwin.run.guards import REACH, Alarm
from xwin.run.turns import Turns, turns_from_json


def alarm(step: int, steps: int = 1) -> Alarm:
    return Alarm(step, "loss", math.nan, math.inf, "rollback", steps)


def after(*alarms: Alarm) -> Turns:
    turns = Turns()
    for one in alarms:
        turns = turns.after(one)
    return turns


def skipped(turns: Turns) -> list[int]:
    return [step for step in range(100) if turns.skips(step)]


def test_the_steps_that_broke_the_guard_are_passed_over() -> None:
    assert skipped(after(alarm(10))) == [10]
    assert skipped(after(alarm(10, steps=3))) == [8, 9, 10]
    assert skipped(after(alarm(10), alarm(30))) == [10, 30]


def test_an_alarm_right_after_a_stretch_blames_the_steps_before_it_too() -> None:
    """The stretch doubles backwards: 1 step, then 2 and the new one, then 4 more and the new one."""
    assert skipped(after(alarm(10), alarm(11))) == [9, 10, 11]
    assert skipped(after(alarm(10), alarm(11), alarm(12))) == list(range(6, 13))
    assert skipped(after(alarm(10), alarm(12))) == [10, 12]
    assert skipped(after(alarm(10), alarm(13, steps=3))) == [9, 10, 11, 12, 13]


def test_a_stretch_never_begins_before_the_first_step_or_too_far_back() -> None:
    assert skipped(after(alarm(1), alarm(2), alarm(3))) == [0, 1, 2, 3]
    chain = after(*(alarm(step) for step in range(50, 60)))
    assert min(skipped(chain)) == 50 - REACH


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 5)), max_size=8))
def test_no_step_that_was_passed_over_comes_back_and_none_after_the_alarm_is_blamed(gaps: list[tuple[int, int]]) -> None:
    turns, step, before = Turns(), -1, set[int]()
    for gap, steps in gaps:
        step += gap
        turns = turns.after(alarm(step, min(steps, step + 1)))
        now = set(skipped(turns))
        assert before | {step} <= now
        assert max(now) == step
        assert turns.made[-1].first >= turns.made[-1].floor
        before = now


def test_turns_come_back_from_a_checkpoint() -> None:
    turns = after(alarm(10), alarm(11, steps=2))
    back = turns_from_json(json.loads(json.dumps(turns.to_json(), allow_nan=False)))
    assert skipped(back) == skipped(turns)
    assert back.until(10)[0].alarm.step == 10
    assert [turn.first for turn in back.made] == [turn.first for turn in turns.made]
