"""Boards of a final table, from cells made by hand."""

import math
from xml.etree import ElementTree

from xwin.run._boards import alpaca_eval, categories, contamination, foundation, judges, leaderboard, mt_bench, reward_sets, tasks, win_rate_dots
from xwin.run.facts import Cell
from xwin.run.plots import Dot, Whisker, bars, scatter


def cell(model: str, metric: str, value: float, **fields: object) -> Cell:
    return Cell(model, metric, value, value - 0.01, value + 0.01, 100, **fields)  # type: ignore[arg-type]


def test_the_leaderboard_has_the_best_first() -> None:
    table = [cell("a", "win_rate", 0.4, against="ref"), cell("b", "win_rate", 0.6, against="ref"), cell("b", "length", 20.0)]
    assert leaderboard(table) == [
        ["model", "win rate, %, against ref", "length, tokens", "n"],
        ["b", "60.0 [59.0, 61.0]", "20.0 [20.0, 20.0]", "100"],
        ["a", "40.0 [39.0, 41.0]", "", "100"],
    ]
    assert leaderboard([cell("a", "accuracy", 0.5)]) == []


XWIN_7B = {"task/mmlu": 0.497, "task/arc_challenge": 0.562, "task/truthfulqa_mc2": 0.481, "task/hellaswag": 0.795}


def test_foundation_tasks_stand_in_the_columns_of_the_release() -> None:
    """Xwin-LM-7B-V0.1 as published: 49.7, 56.2, 48.1, 79.5, average 58.4."""
    table = [cell("Xwin-LM-7B-V0.1", metric, value) for metric, value in XWIN_7B.items()]
    assert foundation(table) == [
        ["model", "MMLU 5-shot", "ARC 25-shot", "TruthfulQA 0-shot", "HellaSwag 10-shot", "average"],
        ["Xwin-LM-7B-V0.1", "49.7", "56.2", "48.1", "79.5", "58.4"],
    ]


def test_a_mean_of_fewer_than_four_tasks_is_no_average() -> None:
    assert foundation([cell("a", "task/mmlu", 0.5)])[1] == ["a", "50.0", "", "", "", ""]
    assert foundation([cell("a", "task/gsm8k", 0.5)]) == []


def test_tasks_are_rows_and_their_parts_are_not() -> None:
    table = [cell("a", "task/gsm8k", 0.5), cell("a", "task/gsm8k/flexible-extract", 0.6), cell("b", "task/gsm8k", 0.7)]
    assert tasks(table) == [["task", "a", "b", "n"], ["gsm8k", "50.0 [49.0, 51.0]", "70.0 [69.0, 71.0]", "100"]]


def test_reward_models_have_a_row_per_set() -> None:
    table = [cell("rm", "rm_accuracy/helpful", 0.7), cell("rm", "longer_wins/helpful", 0.6), cell("rm", "rm_accuracy", 0.5)]
    assert reward_sets(table)[1:] == [["rm on helpful", "70.0 [69.0, 71.0]", "60.0 [59.0, 61.0]", "", "", "100"]]


def test_overlap_says_where_it_was_found() -> None:
    assert contamination([cell("training data", "overlap/gsm8k", 0.1, note="9 in 12 rows")])[1] == [
        "gsm8k",
        "10.0 [9.0, 11.0]",
        "100",
        "9 in 12 rows",
    ]


def test_categories_of_one_level_are_compared() -> None:
    table = [
        cell("a", "task/mmlu/stem", 0.5),
        cell("b", "task/mmlu/stem", 0.6),
        cell("a", "task/mmlu/stem/anatomy", 0.1),
        cell("a", "task/mmlu/x", 0.2),
    ]
    names, rows = categories(table, "task/mmlu/", ["a", "b"])
    assert names == ["stem", "x"]
    assert [round(bar.value) for bar in rows[0]] == [50, 60]
    assert math.isnan(rows[1][1].value)


def test_models_are_placed_by_length_and_win_rate() -> None:
    table = [cell("a", "win_rate", 0.5), cell("a", "length", 20.0), cell("b", "win_rate", 0.6)]
    assert win_rate_dots(table) == [Dot("a", 20.0, 50.0, 49.0, 51.0)]


def test_the_plots_are_whole_even_where_numbers_are_missing() -> None:
    nan = float("nan")
    drawn = [
        scatter("s", [Dot("a $b$", 1.0, 50.0, nan, nan), Dot("b", 2.0, 60.0, 55.0, 65.0)], x="length, tokens", y="win rate, %"),
        bars(
            "b",
            ["one", "two"],
            [[Whisker("a", 50.0, 40.0, 60.0), Whisker("b", nan, nan, nan)], [Whisker("a", 0.0, 0.0, 4.0), Whisker("b", 1.0, nan, nan)]],
        ),
    ]
    for svg in drawn:
        ElementTree.fromstring(svg.replace("xlink:href", "href"))
    assert "a $b$" in drawn[0]


def test_the_ways_that_models_went_are_lines_below_their_dots() -> None:
    dots = [Dot("a", 1.0, 50.0, 45.0, 55.0), Dot("b", 2.0, 60.0, 55.0, 65.0)]
    bare, trailed = (scatter("s", dots, x="KL", y="gold", trails=trails) for trails in ((), [[(0.0, 0.0), (1.0, 40.0), (float("nan"), 45.0)]]))
    assert ("opacity: 0.45" in trailed, "opacity: 0.45" in bare) == (True, False)


def test_mt_bench_by_turn_and_category_in_grades() -> None:
    table = [cell("a", "mt_bench", 6.5), cell("a", "mt_bench_1", 7.0), cell("a", "mt_bench_2", 6.0), cell("a", "mt_bench/math", 3.0)]
    assert mt_bench([*table, cell("b", "mt_bench/math", 4.0)]) == [
        ["part", "a", "b", "n"],
        ["all", "6.50 [6.49, 6.51]", "", "100"],
        ["first turn", "7.00 [6.99, 7.01]", "", "100"],
        ["second turn", "6.00 [5.99, 6.01]", "", "100"],
        ["math", "3.00 [2.99, 3.01]", "4.00 [3.99, 4.01]", "100"],
    ]
    assert mt_bench([cell("a", "accuracy", 0.5)]) == []
    names, rows = categories([*table, cell("a", "mt_bench/stem", 8.0)], "mt_bench/", ["a"])
    assert (names, [bar.value for (bar,) in rows]) == (["math", "stem"], [3.0, 8.0])  # grades, not percent


def test_judges_have_a_row_per_set() -> None:
    table = [cell("gpt", "judge_agreement/pandalm", 0.7), cell("gpt", "judge_kappa/pandalm", 0.5), cell("gpt", "judge_first/llmbar/Natural", 0.6)]
    assert judges(table) == [
        ["judge", "agrees, %", "kappa", "for the first, %", "for the longer, %", "orders agree, %", "variance, %", "n"],
        ["gpt on pandalm", "70.0 [69.0, 71.0]", "0.500 [0.490, 0.510]", "", "", "", "", "100"],
        ["gpt on llmbar/Natural", "", "", "60.0 [59.0, 61.0]", "", "", "", "100"],
    ]


def test_models_are_ranked_by_the_win_rate_that_says_most() -> None:
    table = [cell("a", "win_rate", 0.9), cell("b", "win_rate", 0.1), cell("a", "judged", 0.3), cell("b", "judged", 0.4)]
    assert [row[0] for row in leaderboard(table)[1:]] == ["b", "a"]
    assert [row[0] for row in leaderboard([*table, cell("a", "alpaca_eval/gpt4", 0.6), cell("b", "alpaca_eval/gpt4", 0.5)])[1:]] == ["a", "b"]


def test_a_win_rate_is_against_whom_it_was_measured_and_not_against_the_model_of_its_paired_test() -> None:
    tested = {"against": "before"}
    assert leaderboard([cell("a", "judged", 0.4, **tested)])[0][1] == "win rate, %"
    assert leaderboard([cell("a", "alpaca_eval/gpt4", 0.4, **tested)])[0][1] == "win rate, %, against gpt4"


def test_alpaca_eval_against_several_models() -> None:
    """Each has its own answers' length; what the stage's own prompts were answered with is another length."""
    table = [
        *(cell("a", "alpaca_eval/davinci", 0.9), cell("a", "alpaca_length/davinci", 1500.0), cell("a", "length", 20.0)),
        *(cell("a", "alpaca_eval/gpt4", 0.6), cell("b", "alpaca_eval/gpt4", 0.5)),
    ]
    assert alpaca_eval(table) == [
        ["against", "a", "b", "n"],
        ["davinci", "90.0 [89.0, 91.0]", "", "100"],
        ["gpt4", "60.0 [59.0, 61.0]", "50.0 [49.0, 51.0]", "100"],
    ]
    assert leaderboard(table) == [
        ["model", "win rate, %, against davinci", "length, characters", "n"],
        ["a", "90.0 [89.0, 91.0]", "1500.0 [1500.0, 1500.0]", "100"],
    ]
    assert win_rate_dots(table) == [Dot("a", 1500.0, 90.0, 89.0, 91.0)]
