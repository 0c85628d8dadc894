"""AlpacaEval's judge parsers and order: by hand, and on every stored completion where the public labels are at hand."""

import math

import pytest
from suites.public import needs_public_labels, rows

from xwin.scorers._judge_parsing import in_order, is_switched, logprob_preference, ranking_preference


@pytest.mark.parametrize(
    ("completion", "preference"),
    [
        ("[{'model': 'model_1', 'rank': 1}, {'model': 'model_2', 'rank': 2}]", 1.0),
        ("\n  [{'model': 'model_2', 'rank': 1},\n {'model': 'model_1', 'rank': 2}]\n", 2.0),
        ("({'model': 'model_1', 'rank': 2},)", 2.0),
        ("[{'model': 'model_1', 'rank': 3}]", None),
        ("[{'model': 'model_1', 'rank': '1'}]", None),
        ("[{'model': 'model_1', 'rank': True}]", None),
        ("[{'model': 'model_2', 'rank': 1}]", None),
        ("[{'rank': 1}]", None),
        ("[1, 2]", None),
        ("17", None),
        ("", None),
        ("I prefer model_1.", None),
        ("模型一更好。", None),
        ("[{'model': 'model_1', 'rank': 1}", None),
        ("__import__('os').system('true')", None),
        ("[" * 2000, None),
    ],
)
def test_a_ranking_list_gives_the_rank_of_the_first_shown_and_anything_else_nothing(completion, preference):
    assert ranking_preference(completion) == preference


def test_one_token_gives_the_odds_of_the_two_names():
    assert logprob_preference({"m": math.log(0.6), "M": math.log(0.2), "The": math.log(0.1)}) == pytest.approx(1.25)  # 2 - 0.6 / 0.8
    assert logprob_preference({"M": -0.1, "The": -3.0}) == 2.0
    assert logprob_preference({"m": -0.1}) == 1.0
    assert logprob_preference({"The": -0.1}) is None
    assert logprob_preference({}) is None


def test_a_switch_is_undone():
    assert in_order(1.25, switched=True) == 1.75
    assert in_order(1.25, switched=False) == 1.25
    assert in_order(None, switched=True) is None


def test_the_order_depends_on_the_instruction_and_the_seed_alone():
    assert is_switched("a") == is_switched("a", 0)
    assert {is_switched(str(i)) for i in range(20)} == {True, False}
    assert [is_switched(str(i)) for i in range(20)] != [is_switched(str(i), 1) for i in range(20)]


@needs_public_labels
def test_406_of_the_805_instructions_are_switched_at_seed_0():
    assert sum(is_switched(row["instruction"]) for row in rows("instructions")) == 406


@needs_public_labels
def test_every_stored_ranking_list_gives_its_stored_preference():
    instructions = {row["idx"]: row["instruction"] for row in rows("instructions")}
    stored = [row for row in rows("ae1_labels") if row.get("raw_completion") is not None]
    parsed = [in_order(ranking_preference(row["raw_completion"]), switched=is_switched(instructions[row["idx"]])) for row in stored]
    assert len(stored) == 7967
    assert [row for row, preference in zip(stored, parsed, strict=True) if row["preference"] != preference] == []


@needs_public_labels
def test_every_stored_token_gives_its_stored_preference():
    instructions = {row["idx"]: row["instruction"] for row in rows("instructions")}
    stored = [row for row in rows("ae2_labels") if row.get("top_logprobs")]
    worst = 0.0
    for row in stored:
        preference = in_order(logprob_preference(row["top_logprobs"]), switched=is_switched(instructions[row["idx"]]))
        assert preference is not None
        worst = max(worst, abs(preference - row["preference"]))
    assert len(stored) == 35316
    assert worst < 1e-9  # stored with ten decimals
