"""Rows of the table from evidence made by hand. Intervals and p-values are worked out in the comments, not by the code under test."""

import pytest

from xwin.data.conversation import Conversation, Message
from xwin.suites.accuracy import Accuracy
from xwin.suites.base import Answer, Evidence, Row, Suite
from xwin.suites.drift import Drift
from xwin.suites.judged import Judged
from xwin.suites.preferences import Preferences
from xwin.suites.win_rate import WinRate

T, F = True, False


def prompt(name: str, family: str) -> Conversation:
    return Conversation(name, (Message("user", name),), meta={"family": family})


def answers(passed: list[bool]) -> list[Answer]:
    return [Answer("x", p, 1) for p in passed]


def evidence(models: dict[str, list[Answer]], **fields: object) -> Evidence:
    count = len(next(iter(models.values())))
    prompts = [prompt(f"p{i}", "even" if i % 2 == 0 else "odd") for i in range(count)]
    return Evidence(prompts, models, **{"before": {}, "reference": next(iter(models)), "samples": ()} | fields)  # type: ignore[arg-type]


def rows(suite: Suite, given: Evidence) -> dict[tuple[str, str], Row]:
    found = suite.measure(given)
    assert len({(r.model, r.metric) for r in found}) == len(found)
    return {(r.model, r.metric): r for r in found}


def test_accuracy_overall_and_per_family_with_wilson_intervals() -> None:
    """3 of 4: (p + z2/2n -+ z sqrt(p(1-p)/n + z2/4n2)) / (1 + z2/n) with z2 = 3.841459 is 0.627527 -+ 0.326885. 2 of 2: 1 / (1 + z2/2) = 0.342380."""
    found = rows(Accuracy(), evidence({"sft": answers([T, T, T, F])}))
    assert list(found) == [("sft", "accuracy"), ("sft", "accuracy/even"), ("sft", "accuracy/odd")]
    whole, even, odd = found.values()
    assert (whole.value, whole.n, whole.p, whole.against) == (0.75, 4, None, None)
    assert (whole.low, whole.high) == pytest.approx((0.300642, 0.954413), abs=1e-5)
    assert (even.value, even.n, odd.value, odd.n) == (1.0, 2, 0.5, 2)
    assert (even.low, even.high) == pytest.approx((0.342380, 1.0), abs=1e-5)


def test_the_paired_test_is_the_exact_test_of_mcnemar() -> None:
    """The two differ on 6 prompts, 5 gained and 1 lost: p = 2 (C(6,0) + C(6,1)) / 2^6 = 14 / 64."""
    before, after = [T, F, F, F, F, F, T, F], [F, T, T, T, T, T, T, F]
    found = rows(Accuracy(), evidence({"sft": answers(before), "ppo": answers(after)}, before={"ppo": "sft"}))
    assert found["sft", "accuracy"].p is None
    assert found["ppo", "accuracy"].p == pytest.approx(14 / 64)
    assert found["ppo", "accuracy"].against == "sft"
    assert found["ppo", "accuracy/even"].p is None


def test_models_that_never_differ_have_p_1() -> None:
    found = rows(Accuracy(), evidence({"a": answers([T, F]), "b": answers([T, F])}, before={"b": "a"}))
    assert found["b", "accuracy"].p == 1.0


def test_win_rate_counts_ties_one_half() -> None:
    """Against T F F T F the answers T T F T F have outcomes .5 1 .5 .5 .5: mean .6, sd sqrt(.05), half width 2.776445 * sqrt(.05 / 5) = .277645."""
    found = rows(WinRate(), evidence({"sft": answers([T, F, F, T, F]), "ppo": answers([T, T, F, T, F])}))
    assert list(found) == [("ppo", "win_rate")]
    row = found["ppo", "win_rate"]
    assert (row.value, row.n, row.against, row.p) == (pytest.approx(0.6), 5, "sft", 1.0)  # one prompt differs: p = 2 / 2
    assert (row.low, row.high) == pytest.approx((0.322355, 0.877645), abs=1e-5)


def test_a_loss_counts_zero_and_the_interval_stays_between_0_and_1() -> None:
    """.5 1 .5 0: mean .5, half width 3.182446 * sqrt(1/6 / 4) = .6496 reaches past both ends."""
    row = rows(WinRate(), evidence({"sft": answers([T, F, F, T]), "ppo": answers([T, T, F, F])}))["ppo", "win_rate"]
    assert (row.value, row.low, row.high) == (0.5, 0.0, 1.0)


def test_drift_is_mean_length_and_kl() -> None:
    """Of two numbers 2 apart: standard error 1, t(1) = 12.7062. A length is never below 0, a KL estimate may be."""
    mine = [Answer("x", T, 2, kl=1.0), Answer("x", T, 4, kl=3.0)]
    found = rows(Drift(), evidence({"sft": mine, "base": [Answer("x", T, 5), Answer("x", T, 5)]}))
    assert list(found) == [("sft", "length"), ("sft", "kl"), ("base", "length")]
    length, kl, constant = found.values()
    assert (length.value, length.low, length.high, length.n) == (3.0, 0.0, pytest.approx(15.7062, abs=1e-4), 2)
    assert (kl.value, kl.low, kl.high) == (2.0, pytest.approx(-10.7062, abs=1e-4), pytest.approx(14.7062, abs=1e-4))
    assert (constant.value, constant.low, constant.high) == (5.0, 5.0, 5.0)


def test_reward_model_accuracy_counts_pairs_within_a_prompt_and_ties_one_half() -> None:
    """First prompt: the good answer beats one bad one and ties with the other, .75; it is longer than one, shorter than the other, .5.
    Second: loses, and lengths tie. Third: every answer passes, so there is no pair."""
    samples = [
        [Answer("aa", T, 1, reward=1.0), Answer("a", F, 1, reward=-2.0), Answer("aaaa", F, 1, reward=1.0)],
        [Answer("bb", F, 1, reward=0.5), Answer("cc", T, 1, reward=-0.5)],
        [Answer("d", T, 1, reward=1.0), Answer("dd", T, 1, reward=0.0)],
    ]
    found = rows(Preferences(), evidence({"sft": answers([T, T, T])}, samples=samples))
    accuracy, longer = found["reward model", "rm_accuracy"], found["reward model", "longer_wins"]
    assert (accuracy.value, accuracy.n, accuracy.note) == (0.375, 2, "3 pairs of 2 prompts")
    assert (longer.value, longer.low, longer.high) == (0.5, 0.5, 0.5)


def test_without_mixed_answers_there_is_no_reward_model_row() -> None:
    samples = [[Answer("a", T, 1, reward=1.0), Answer("b", T, 1, reward=0.0)]]
    assert Preferences().measure(evidence({"sft": answers([T])}, samples=samples)) == []


def test_a_row_of_the_file_holds_only_what_is_known() -> None:
    assert Row("ppo", "kl", 0.0, -1.0, 1.0, 4).to_json() == {"model": "ppo", "metric": "kl", "value": 0.0, "low": -1.0, "high": 1.0, "n": 4}
    tested = Row("ppo", "accuracy", 0.5, 0.1, 0.9, 4, p=0.0, against="sft", note="3 pairs")
    assert tested.to_json() == {**Row("ppo", "accuracy", 0.5, 0.1, 0.9, 4).to_json(), "p": 0.0, "against": "sft", "note": "3 pairs"}


def test_what_a_judge_said_is_a_mean_with_its_test_and_what_it_did_not_say_is_noted() -> None:
    """sft: 1, 0, -, 1/2: mean 1/2 of 3. ppo gains 0, 1, 1/2 on those: t = 1/2 / (1/2 / sqrt 3) = sqrt 3 with 2 degrees of freedom, for which
    p = 1 - t / sqrt(2 + t^2) = 1 - sqrt(3/5)."""

    def judged(*values: float | None) -> list[Answer]:
        return [Answer("x", T, 1, judged=value) for value in values]

    given = {
        "base": judged(None, None, None, None),
        "sft": judged(1.0, 0.0, None, 0.5),
        "ppo": judged(1.0, 1.0, 1.0, 1.0),
        "new": judged(None, None, None, None),
    }
    found = rows(Judged(), evidence(given, before={"sft": "base", "ppo": "sft"}))
    assert list(found) == [("sft", "judged"), ("ppo", "judged")]
    sft, ppo = found.values()
    assert (sft.value, sft.n, sft.p, sft.note) == (0.5, 3, None, "1 of 4 judgements could not be read and are left out")
    assert (ppo.value, ppo.n, ppo.against, ppo.note) == (1.0, 4, "sft", "")
    assert ppo.p == pytest.approx(1 - (3 / 5) ** 0.5)
