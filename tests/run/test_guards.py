"""Guards: what raises an alarm, when, and what the person is told."""

import json
import math
import pickle

import pytest
from pydantic import ValidationError

from xwin.errors import TrainingStopped
from xwin.run.guards import Alarm, Guard, Watch, explain
from xwin.spec import Spec


class Holder(Spec):
    """A stage-like class with guards."""

    guards: list[Guard] = []
    """Watched metrics."""


def guard(**fields: object) -> Guard:
    return Guard.model_validate(fields)


def test_a_guard_is_written_as_in_a_recipe_and_comes_back() -> None:
    fields = {"metric": "kl", "above": 25.0, "for": 3, "do": "warn"}
    holder = Holder.model_validate({"guards": [fields]})
    assert holder.guards[0].for_ == 3
    assert holder.settings() == {"guards": [fields | {"below": None}]}
    assert Holder.model_validate(json.loads(json.dumps(holder.settings()))) == holder


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"metric": "kl"}, "exactly one of 'above' and 'below'; this one has neither"),
        ({"metric": "kl", "above": 1, "below": 0}, "this one has both"),
        ({"metric": "klx", "above": 1}, "did you mean 'kl'"),
        ({"metric": "kl", "above": 1, "for": 0}, "greater than or equal to 1"),
        ({"metric": "kl", "above": 1, "do": "explode"}, "'warn' or 'stop'"),
        ({"metric": "kl", "above": 1, "times": 2}, "Extra inputs"),
    ],
)
def test_a_mistaken_guard_is_explained(fields: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Guard.model_validate(fields)


def test_a_part_of_the_reward_may_be_watched() -> None:
    assert Watch([guard(metric="reward/format", below=0.5)]).feed(1, {"reward/format": 0.4}) == [Alarm(1, "reward/format", 0.4, 0.5, "stop")]


def test_a_value_on_the_bound_is_within_it() -> None:
    watch = Watch([guard(metric="kl", above=25), guard(metric="entropy", below=0.1)])
    assert watch.feed(1, {"kl": 25.0, "entropy": 0.1}) == []
    assert watch.feed(2, {"kl": 25.1, "entropy": 0.09}) == [Alarm(2, "kl", 25.1, 25.0, "stop"), Alarm(2, "entropy", 0.09, 0.1, "stop")]


def test_the_alarm_waits_for_that_many_steps_in_a_row() -> None:
    watch = Watch([guard(metric="kl", above=1, **{"for": 3})])
    alarms = [bool(watch.feed(step, {"kl": kl})) for step, kl in enumerate([2, 2, 0, 2, 2, 2, 2])]
    assert alarms == [False, False, False, False, False, True, True]


def test_steps_without_the_metric_neither_count_nor_reset() -> None:
    watch = Watch([guard(metric="validation_loss", above=1, **{"for": 2})])
    assert watch.feed(1, {"validation_loss": 2}) == []
    assert watch.feed(2, {"loss": 0.1}) == []
    assert len(watch.feed(3, {"validation_loss": 2})) == 1


def test_a_warning_is_given_once_until_the_metric_recovers() -> None:
    watch = Watch([guard(metric="kl", above=1, do="warn")])
    assert [len(watch.feed(step, {"kl": kl})) for step, kl in enumerate([2, 2, 2, 0, 2])] == [1, 0, 0, 0, 1]


def test_a_value_that_is_not_a_number_breaks_every_guard() -> None:
    watch = Watch([guard(metric="kl", above=25), guard(metric="entropy", below=0)])
    assert len(watch.feed(1, {"kl": math.nan, "entropy": math.nan})) == 2


@pytest.mark.parametrize(
    "values",
    [
        {"loss": math.nan},
        {"loss": -math.inf},
        {"grad_norm": math.inf},
        {"critic/loss": math.nan},
        {"critic/grad_norm": math.nan},
        {"tokens": 0.0},
        {"engine_gap": 0.051},
    ],
)
def test_what_must_never_happen_stops_without_being_asked(values: dict[str, float]) -> None:
    alarms = Watch().feed(7, values)
    assert [alarm.action for alarm in alarms] == ["stop"]
    assert isinstance(explain(alarms[0]), TrainingStopped)


def test_a_guard_on_the_engine_takes_the_place_of_the_one_that_is_always_on_and_no_other_does() -> None:
    watch = Watch([guard(metric="engine_gap", above=0.5, do="warn"), guard(metric="loss", above=1e9, do="warn")])
    assert watch.feed(1, {"engine_gap": 0.4}) == []
    assert [alarm.action for alarm in watch.feed(2, {"engine_gap": 0.6})] == ["warn"]
    assert [alarm.action for alarm in watch.feed(3, {"loss": math.nan})] == ["stop", "warn"]


def test_healthy_numbers_raise_nothing() -> None:
    assert Watch().feed(1, {"loss": -3.0, "grad_norm": 1e9, "tokens": 1.0, "engine_gap": 0.05, "kl": 1e9}) == []


def test_alarms_that_stop_come_before_those_that_warn() -> None:
    watch = Watch([guard(metric="kl", above=1, do="warn"), guard(metric="entropy", below=1)])
    assert [alarm.metric for alarm in watch.feed(1, {"kl": 2, "entropy": 0})] == ["entropy", "kl"]


def test_the_same_guard_twice_counts_once() -> None:
    twice = [guard(metric="kl", above=1, **{"for": 2})] * 2
    assert Watch(twice).feed(1, {"kl": 5}) == []


def test_a_watch_resumed_at_any_step_says_what_an_uninterrupted_one_says() -> None:
    guards = [guard(metric="kl", above=1, do="warn", **{"for": 2}), guard(metric="loss", above=3, **{"for": 3})]
    rows = [{"kl": kl, "loss": loss} for kl, loss in [(2, 4), (2, 4), (2, 1), (0, 4), (2, 4), (2, 4), (2, 4)]]
    whole = Watch(guards)
    expected = [whole.feed(step, row) for step, row in enumerate(rows)]
    for stop in range(len(rows)):
        first = Watch(guards)
        before = [first.feed(step, row) for step, row in enumerate(rows[:stop])]
        second = Watch.from_json(guards, json.loads(json.dumps(first.to_json())))
        after = [second.feed(step, row) for step, row in enumerate(rows) if step >= stop]
        assert before + after == expected


def test_counts_of_guards_that_are_gone_are_dropped() -> None:
    watch = Watch([guard(metric="kl", above=1, **{"for": 2})])
    watch.feed(1, {"kl": 2})
    assert Watch.from_json([], watch.to_json()).to_json() == {}


@pytest.mark.parametrize(
    ("alarm", "text"),
    [
        (Alarm(12, "kl", 31.25, 25.0, "stop"), "stages.ppo, step 12: kl is 31.25 nats, above its guard of 25 nats\n  fix: raise kl.coef"),
        (Alarm(12, "entropy", 0.01, 0.1, "stop"), "stages.ppo, step 12: entropy is 0.01 nats, below its guard of 0.1 nats\n  fix: look at the curve"),
        (Alarm(3, "loss", math.nan, -math.inf, "stop"), "stages.ppo, step 3: loss is nan: not a finite number\n  fix: lower lr"),
        (Alarm(3, "tokens", 0.0, 1.0, "stop"), "stages.ppo, step 3: tokens is 0 tokens, below its guard of 1 tokens"),
        (Alarm(3, "engine_gap", 0.2, 0.05, "stop"), "engine_gap is 0.2 nats, above its guard of 0.05 nats\n  fix: the engine does not write from"),
    ],
)
def test_an_alarm_is_explained_with_what_where_and_fix(alarm: Alarm, text: str) -> None:
    error = explain(alarm, "ppo")
    assert text in str(error)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert error.exit_code == 1
