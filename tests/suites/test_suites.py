"""Rows of the table from evidence made by hand. Intervals and p-values are worked out in the comments, not by the code under test."""

import math
from itertools import combinations

import pytest
import torch

from xwin.data.conversation import Conversation, Message
from xwin.errors import DataError
from xwin.models.heads import RewardStats
from xwin.suites._contamination import overlap_rows
from xwin.suites._reward_pairs import Pair, accuracy_rows, confidence_row
from xwin.suites.accuracy import Accuracy, majority_at, pass_at
from xwin.suites.base import Answer, Evidence, Row, Suite
from xwin.suites.drift import Drift
from xwin.suites.judged import Judged
from xwin.suites.preferences import Preferences
from xwin.suites.reward_model import together
from xwin.suites.win_rate import WinRate

T, F = True, False


def prompt(name: str, family: str) -> Conversation:
    return Conversation(name, (Message("user", name),), meta={"family": family})


def answers(passed: list[bool]) -> list[Answer]:
    return [Answer("x", p, 1) for p in passed]


def evidence(models: dict[str, list[Answer]], **fields: object) -> Evidence:
    count = len(next(iter(models.values())))
    prompts = [prompt(f"p{i}", "even" if i % 2 == 0 else "odd") for i in range(count)]
    return Evidence(prompts, models, **{"before": {}, "reference": next(iter(models)), "samples": {}} | fields)  # type: ignore[arg-type]


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
    Second: loses, and lengths tie. Third: every answer passes, so there is no pair. Two times one half: z^2 / (2 + z^2) / 2 = 0.328810 around it."""
    samples = [
        [Answer("aa", T, 1, reward=1.0), Answer("a", F, 1, reward=-2.0), Answer("aaaa", F, 1, reward=1.0)],
        [Answer("bb", F, 1, reward=0.5), Answer("cc", T, 1, reward=-0.5)],
        [Answer("d", T, 1, reward=1.0), Answer("dd", T, 1, reward=0.0)],
    ]
    found = rows(Preferences(), evidence({"sft": answers([T, T, T])}, samples={"best": samples}))
    accuracy, longer = found["reward model", "rm_accuracy"], found["reward model", "longer_wins"]
    assert (accuracy.value, accuracy.n, accuracy.note) == (0.375, 2, "3 pairs of 2 prompts")
    assert (longer.value, longer.low, longer.high) == (0.5, pytest.approx(0.171190, abs=1e-6), pytest.approx(0.828810, abs=1e-6))
    assert ("reward model", "rm_length_matched") not in found  # "cc" and "bb" alone: one prompt has no spread


def test_without_mixed_answers_there_is_no_reward_model_row() -> None:
    samples = [[Answer("a", T, 1, reward=1.0), Answer("b", T, 1, reward=0.0)]]
    assert Preferences().measure(evidence({"sft": answers([T])}, samples={"best": samples})) == []


def test_the_score_of_an_ensemble_by_hand() -> None:
    """Means 1 and 0, spreads 2 and 4: a raw 3 and -4 are 1 and -1 spreads, 5 and 4 are 2 and 1; times the mean spread 3. One head alone is raw."""
    told = [torch.tensor([[3.0], [5.0]]), torch.tensor([[-4.0], [4.0]])]
    assert together(told, [RewardStats(1.0, 2.0), RewardStats(0.0, 4.0)]) == [0.0, 4.5]
    assert together(told[:1], [RewardStats(1.0, 2.0)]) == [3.0, 5.0]
    two_heads = torch.tensor([[3.0, 1.0]])  # levelled by their offsets 1 and -1 both say 2: half a spread
    assert together([two_heads], [RewardStats(1.0, 2.0, offsets=(1.0, -1.0))]) == [1.0]


def test_a_row_of_the_file_holds_only_what_is_known() -> None:
    assert Row("ppo", "kl", 0.0, -1.0, 1.0, 4).to_json() == {"model": "ppo", "metric": "kl", "value": 0.0, "low": -1.0, "high": 1.0, "n": 4}
    tested = Row("ppo", "accuracy", 0.5, 0.1, 0.9, 4, p=0.0, against="sft", note="3 pairs")
    assert tested.to_json() == {**Row("ppo", "accuracy", 0.5, 0.1, 0.9, 4).to_json(), "p": 0.0, "against": "sft", "note": "3 pairs"}


def test_pass_at_k_is_the_share_of_draws_of_k_that_hold_a_right_answer() -> None:
    """Against every draw of k answers, one by one."""
    for n in range(1, 7):
        for right in range(n + 1):
            for k in range(1, n + 1):
                draws = list(combinations([True] * right + [False] * (n - right), k))
                assert pass_at(k, n, right) == pytest.approx(sum(map(any, draws)) / len(draws)), (n, right, k)


def test_pass_at_k_does_not_overflow() -> None:
    """One right of n: k / n."""
    assert pass_at(1000, 100_000, 1) == pytest.approx(0.01)


def votes(*given: tuple[str, bool]) -> list[Answer]:
    return [Answer(f"So the answer is {text}.", passed, 1) for text, passed in given]


def test_the_majority_is_over_final_answers_and_not_over_texts() -> None:
    """0.50 and 1/2 are one vote for the same number; what gives no number does not vote."""
    four = [*votes(("0.50", T), ("3", F), ("1/2", T)), Answer("I do not know", F, 1)]
    assert majority_at(4, "1/2", four) == 1.0
    assert majority_at(1, "1/2", four) == 0.5  # right, wrong, right, no vote


def test_formulas_that_differ_in_a_sign_or_a_bracket_are_different_votes() -> None:
    """The first vote alone is wrong each time; were it one with the others, it would stand for them."""
    assert majority_at(3, "x", votes(("-x", F), ("x", T), ("x", T))) == 1.0
    assert majority_at(3, "\\frac{x+1}{2}", votes(("x+1/2", F), ("(x+1)/2", T), ("(x + 1)/2", T))) == 1.0
    assert majority_at(3, "an X-ray", votes(("a scan", F), ("an X ray", T), ("An x-ray", T))) == 1.0  # words: hyphens and case do not count


def test_of_equal_votes_the_first_counts_and_no_vote_is_no_majority() -> None:
    assert majority_at(2, "7", votes(("8", F), ("7", T))) == 0.0
    assert majority_at(2, "7", votes(("7", T), ("8", F))) == 1.0
    assert majority_at(2, "7", [Answer("who knows", F, 1)] * 2) == 0.0


def test_maj_at_k_is_the_mean_over_groups_of_k_in_a_row() -> None:
    """7 8 8 elects 8; 7 7 8 elects 7; the last is left over."""
    row = votes(("7", T), ("8", F), ("8", F), ("7", T), ("7", T), ("8", F), ("7", T))
    assert majority_at(3, "7", row) == 0.5


def asked(answer: object) -> Conversation:
    return Conversation("q", (Message("user", "?"),), meta={} if answer is None else {"answer": answer})


def test_pass_and_majority_rows_of_models_that_gave_enough_answers() -> None:
    """Of 2 prompts with 1 and 2 right of 2: pass@1 .75, pass@2 1; maj@2 the first answer of the first prompt; the second has nothing to vote on."""
    samples = {"many": [votes(("7", T), ("8", F)), votes(("x", T), ("y", T))], "few": [votes(("7", T)), votes(("7", F))]}
    given = Evidence([asked(7), asked(None)], {"many": answers([T, T])}, {}, "many", samples)
    found = rows(Accuracy(pass_at=(1, 2), maj_at=(2,)), given)
    assert [(key, round(row.value, 6), row.n) for key, row in found.items() if "@" in key[1]] == [
        (("many", "pass@1"), 0.75, 2),
        (("many", "pass@2"), 1.0, 2),
        (("many", "maj@2"), 1.0, 1),
        (("few", "pass@1"), 0.5, 2),
    ]
    assert Accuracy(pass_at=(1, 8), maj_at=(4,)).least_samples() == 8
    assert Accuracy().least_samples() == 1


def test_a_majority_needs_a_right_answer_to_compare_with() -> None:
    given = Evidence([asked(None)], {"many": answers([T])}, {}, "many", {"many": [votes(("7", T), ("8", F))]})
    with pytest.raises(DataError, match="no prompt has a right answer to vote on"):
        Accuracy(maj_at=(2,)).measure(given)


def pair(prompt: str, chosen: float, rejected: float, chars: tuple[int, int] = (10, 20)) -> Pair:
    return Pair(prompt, chosen, rejected, chars)


def test_reward_rows_stand_beside_length() -> None:
    """Two pairs of p: right and wrong; q: a tie of equal length. Longer: 0, 1, 1/2. Only q and the second of p are of one length (100 and 91)."""
    pairs = [pair("p", 1, 0), pair("p", 0, 1, (100, 91)), pair("q", 2, 2, (7, 7))]
    found = {row.metric: row for row in accuracy_rows("rm", "hh", pairs)}
    assert list(found) == ["rm_accuracy/hh", "longer_wins/hh", "rm_length_matched/hh"]
    assert [(row.value, row.n, row.note) for row in found.values()] == [
        (0.5, 2, "3 pairs of 2 prompts"),
        (0.5, 2, "3 pairs of 2 prompts"),
        (0.25, 2, "2 pairs of 2 prompts"),
    ]
    assert [row.metric for row in accuracy_rows("rm", "hh", pairs[:1])] == ["rm_accuracy/hh", "longer_wins/hh"]


def test_confidence_is_the_chance_that_bradley_terry_gives() -> None:
    """Differences of ln 3: confidence 3/4 each. Right in one of two: 1/4 too sure, all in one bin. Far apart it is 1, and no overflow."""
    row = confidence_row("rm", "", [pair("p", math.log(3), 0), pair("q", 0, math.log(3))])
    assert (row.metric, row.value, row.n) == ("rm_overconfidence", pytest.approx(0.25), 2)
    assert row.note == "confidence 0.750, accuracy 0.500, expected calibration error 0.250"
    assert confidence_row("rm", "", [pair("p", 1e6, -1e6), pair("q", 1e6, -1e6)]).value == pytest.approx(0.0)


QUESTION = "a man walks into a shop and buys seven red apples for his old mother"


def test_questions_that_training_data_repeats_are_counted_and_shown() -> None:
    said = Conversation("c", (Message("user", f"Tell me: {QUESTION.upper()}, please!"), Message("assistant", "No.")))
    learned = {"sft: chat": [Conversation("d", (Message("user", "Hello"),)), said], "ppo: prompts": [Conversation("e", (Message("user", "Hi"),))]}
    (row,) = overlap_rows({"prompts": [QUESTION, "Why is the sky blue over the whole world, but not at night or at dusk?"]}, learned)
    assert (row.model, row.metric, row.value, row.n) == ("training data", "overlap/prompts", 0.5, 2)
    assert row.note == "1 in 1 rows of sft: chat, as row 2: a man walks into a shop and buys seven red apples for his"


def test_a_question_that_is_there_twice_is_found_twice_however_short() -> None:
    learned = {"sft": [Conversation("c", (Message("user", "What is it?"), Message("assistant", QUESTION)))]}
    first, second = overlap_rows({"q": ["What is it?", "what is it", QUESTION, QUESTION, "And why?"], "r": ["And why?", "What is it?"]}, learned)
    assert (first.metric, first.value, first.n) == ("overlap/q", 0.8, 5)
    assert (second.metric, second.value, second.n) == ("overlap/r", 0.5, 2)


def test_without_training_data_nothing_is_said_of_overlap() -> None:
    assert overlap_rows({"prompts": [QUESTION]}, {}) == []
    assert overlap_rows({"prompts": [QUESTION], "none": []}, {"sft: chat": []})[0].note == "none"


def test_suites_ask_the_prompts_unless_they_ask_their_own() -> None:
    given = evidence({"sft": answers([T, F])})
    assert WinRate().questions(given) == {"prompts": ["p0", "p1"]}


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
