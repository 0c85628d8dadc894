"""Boards of a final table, from cells made by hand."""

import math
from xml.etree import ElementTree

from xwin.run._boards import categories, contamination, foundation, leaderboard, reward_sets, tasks, win_rate_dots
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
