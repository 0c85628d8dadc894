"""Guards: what raises an alarm, when, and what the person is told."""

import json
import math
import pickle
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from xwin.errors import TrainingStopped
from xwin.run.guards import Alarm, Guard, Watch, alarm_from_json, explain
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
    others = {"below": None, "spike": None, "drift": None, "against": None, "window": 16}
    assert holder.settings() == {"guards": [fields | others]}
    assert Holder.model_validate(json.loads(json.dumps(holder.settings()))) == holder


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"metric": "kl"}, "exactly one of above, below, spike, drift, against; this one has none"),
        ({"metric": "kl", "above": 1, "below": 0}, "this one has above and below"),
        ({"metric": "kl", "above": 1, "drift": 2}, "this one has above and drift"),
        ({"metric": "kl", "spike": 0}, "greater than 0"),
        ({"metric": "reward", "against": "verfied"}, "did you mean 'verified'"),
        ({"metric": "loss", "spike": 8, "window": 4}, "greater than or equal to 5"),
        ({"metric": "length", "drift": 50, "do": "rollback"}, "drift is not the fault of single steps"),
        ({"metric": "reward", "against": "verified", "do": "rollback"}, "against is not the fault of single steps"),
        ({"metric": "seconds", "above": 9, "do": "rollback"}, "seconds depends on the clock"),
        ({"metric": "loss", "above": 9, "for": 17, "do": "rollback"}, "reaches 16 steps back, not 17"),
        ({"metric": "klx", "above": 1}, "did you mean 'kl'"),
        ({"metric": "kl", "above": 1, "for": 0}, "greater than or equal to 1"),
        ({"metric": "kl", "above": 1, "do": "explode"}, "'warn', 'stop' or 'rollback'"),
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
        {"engine_gap": 0.51},
    ],
)
def test_what_must_never_happen_stops_without_being_asked(values: dict[str, float]) -> None:
    alarms = Watch().feed(7, values)
    assert [alarm.action for alarm in alarms] == ["stop"]
    assert isinstance(explain(alarms[0]), TrainingStopped)


def test_an_engine_that_disagrees_stops_the_third_time_in_a_row() -> None:
    """One step of few tokens may be off by rounding alone; an engine with other weights is off for good."""
    watch = Watch()
    gaps = [0.06, 0.051, 0.049, 0.06, 0.07, 0.08]
    assert [[alarm.action for alarm in watch.feed(step, {"engine_gap": gap})] for step, gap in enumerate(gaps)] == [[], [], [], [], [], ["stop"]]


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


SERIES = [(2.0, 4.0), (2.0, 4.1), (2.0, 1.0), (0.0, 4.2), (2.0, 4.0), (2.5, 4.3), (3.0, 9.0), (2.0, 4.0), (3.1, 3.9), (3.2, 3.8), (9.0, 3.7)] * 2
"""KL and loss: counts, spikes, a drift and a stretch in which one rises while the other falls."""


def test_a_watch_resumed_at_any_step_says_what_an_uninterrupted_one_says() -> None:
    guards = [
        guard(metric="kl", above=1, do="warn", **{"for": 2}),
        guard(metric="loss", above=3, **{"for": 3}),
        guard(metric="loss", spike=5, window=5, do="rollback"),
        guard(metric="kl", drift=0.4, window=5, do="warn"),
        guard(metric="kl", against="loss", window=5, do="warn"),
    ]
    rows = [{"kl": kl, "loss": loss} for kl, loss in SERIES]
    whole = Watch(guards)
    expected = [whole.feed(step, row) for step, row in enumerate(rows)]
    assert {(alarm.metric, alarm.action, alarm.why[:2]) for alarms in expected for alarm in alarms} == {
        ("kl", "warn", ""),
        ("loss", "stop", ""),
        ("loss", "rollback", "5 "),
        ("kl", "warn", "it"),
    }
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


def spikes(values: list[float], **fields: object) -> list[int]:
    """The steps at which a guard with `spike` on the loss goes off."""
    watch = Watch([guard(metric="loss", spike=8, window=5, **fields)])
    return [step for step, value in enumerate(values) if watch.feed(step, {"loss": value})]


def test_a_spike_is_told_by_the_median_and_the_spread_of_the_values_before() -> None:
    """Median 3 of 1 to 5, median deviation 1: the bound lies at 3 + 8 * 1.4826 = 14.86."""
    (alarm,) = _fed([1, 2, 3, 4, 5, 14.87], {"metric": "loss", "spike": 8, "window": 5})
    assert (alarm.step, alarm.value) == (5, 14.87)
    assert alarm.threshold == pytest.approx(14.8608)
    assert "loss is 14.87 nats, above its guard of 14.86 nats (8 deviations over the 5 values before)" in str(explain(alarm))
    assert _fed([1, 2, 3, 4, 5, 14.86], {"metric": "loss", "spike": 8, "window": 5}) == []


def _fed(values: list[float], fields: dict[str, object]) -> list[Alarm]:
    watch = Watch([guard(**fields)])
    return [alarm for step, value in enumerate(values) for alarm in watch.feed(step, {str(fields["metric"]): value})]


def test_spikes_are_not_looked_for_before_the_window_is_full() -> None:
    assert spikes([1, 1, 1, 1, 99, 1]) == []
    assert spikes([1, 1, 1, 1, 1, 99, 1]) == [5]


def test_one_spike_does_not_hide_the_next_and_a_new_level_becomes_normal() -> None:
    assert spikes([1, 1.1, 0.9, 1, 1.1, 50, 1, 50]) == [5, 7]
    assert spikes([1, 1.1, 0.9, 1, 1.1, 50, 51, 49, 50, 51, 50], do="warn") == [5]


def test_a_falling_loss_and_one_that_never_moves_are_no_spikes() -> None:
    assert spikes([10 / (step + 1) for step in range(40)]) == []
    assert spikes([2.0] * 9 + [2.1]) == []


def test_a_value_that_is_not_a_number_is_a_spike_and_is_not_remembered() -> None:
    assert spikes([1, 1, 1, 1, 1, math.nan, 1, 1], do="warn") == [5]


def test_a_drift_is_told_in_the_unit_of_the_metric() -> None:
    """Medians of the first five lengths and of the last five: 100, then 151 once three of five are that long."""
    lengths = [100.0] * 10 + [151.0] * 5
    (alarm,) = _fed(lengths, {"metric": "length", "drift": 50, "window": 5, "do": "warn"})
    assert (alarm.step, alarm.value, alarm.threshold) == (12, 151.0, 150.0)
    assert "its median was 100 in the first 5 values, now 151" in alarm.why
    assert _fed(lengths, {"metric": "length", "drift": 51, "window": 5}) == []
    (down,) = _fed([0.5] * 5 + [0.1] * 5, {"metric": "repetition", "drift": 0.3, "window": 5, "do": "warn"})
    assert down.threshold == pytest.approx(0.2)


def test_a_reward_that_rises_while_a_trusted_measure_falls_is_an_alarm() -> None:
    watch = Watch([guard(metric="reward", against="verified", window=6)])
    rising, falling, flat = [0.1 * i for i in range(6)], [0.9 - 0.1 * i for i in range(6)], [0.5] * 6
    assert [bool(watch.feed(i, {"reward": r, "verified": v})) for i, (r, v) in enumerate(zip(rising, falling, strict=True))] == [False] * 5 + [True]
    for reward, gold in ((rising, rising), (rising, flat), (flat, falling), (falling, falling), (falling, rising)):
        watch = Watch([guard(metric="reward", against="verified", window=6)])
        assert not any(watch.feed(i, {"reward": r, "verified": v}) for i, (r, v) in enumerate(zip(reward, gold, strict=True)))


def test_two_metrics_are_compared_at_the_steps_that_report_both() -> None:
    watch = Watch([guard(metric="reward", against="verified", window=5)])
    alarms = []
    for step in range(50):
        gold = {"verified": 1 - step / 50} if step % 10 == 9 else {}
        alarms += watch.feed(step, {"reward": step / 50} | gold)
    assert [alarm.step for alarm in alarms] == [49]
    assert "reward is 0.98 reward (it rises while verified falls, over 5 values)" in str(explain(alarms[0]))


@pytest.mark.parametrize("values", [{"loss": math.nan}, {"grad_norm": math.inf}, {"critic/loss": math.nan}, {"tokens": 0.0}])
def test_a_recipe_that_rolls_back_for_anything_rolls_back_for_what_must_never_happen(values: dict[str, float]) -> None:
    watch = Watch([guard(metric="loss", spike=8, do="rollback")])
    assert {alarm.action for alarm in watch.feed(3, values)} == {"rollback"}


def test_an_engine_that_disagrees_is_not_the_fault_of_a_step() -> None:
    assert [alarm.action for alarm in Watch([guard(metric="loss", spike=8, do="rollback")]).feed(3, {"engine_gap": 1.0})] == ["stop"]


def test_an_alarm_is_written_as_json_and_comes_back() -> None:
    for alarm in (Alarm(3, "loss", math.inf, -math.inf, "rollback", 2, "so"), Alarm(12, "kl", 31.25, 25.0, "stop")):
        assert alarm_from_json(json.dumps(alarm.to_json(), allow_nan=False)) == alarm
    assert alarm_from_json({"step": 3, "metric": "kl", "value": 2.0, "threshold": 1.0, "action": "warn"}) == Alarm(3, "kl", 2.0, 1.0, "warn")


def test_the_guards_of_the_documentation_are_guards() -> None:
    page = (Path(__file__).parents[2] / "docs" / "resume.md").read_text(encoding="utf-8")
    stages = yaml.safe_load(page.split("```yaml\n")[1].split("```")[0])
    guards = [Guard.model_validate(fields) for stage in stages.values() for fields in stage["guards"]]
    assert {guard.do for guard in guards} == {"warn", "stop", "rollback"}
    assert len(Watch(guards).feed(0, {"kl": 1.0, "entropy": 1.0})) == 0
