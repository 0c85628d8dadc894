"""Tables and plots of a final table that compare models: leaderboard, foundation tasks, categories, reward models, overlap with training data."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from xwin.run import plots
from xwin.run.facts import ALPACA, ALPACA_CONTROLLED, ALPACA_LENGTH, Cell, cell_text, is_share

Grid = list[list[str]]

OPEN_LLM: Mapping[str, str] = {
    "task/mmlu": "MMLU 5-shot",
    "task/arc_challenge": "ARC 25-shot",
    "task/truthfulqa_mc2": "TruthfulQA 0-shot",
    "task/hellaswag": "HellaSwag 10-shot",
}
"""The columns of the table of foundation tasks, as the Xwin-LM release printed it; their plain mean is the average."""
REWARD: Mapping[str, str] = {
    "rm_accuracy": "accuracy, %",
    "longer_wins": "the longer wins, %",
    "rm_length_matched": "accuracy at equal length, %",
    "rm_overconfidence": "confidence less accuracy, %",
}
"""What is measured of a reward model on a set of pairs."""
JUDGE: Mapping[str, str] = {
    "judge_agreement": "agrees, %",
    "judge_kappa": "kappa",
    "judge_first": "for the first, %",
    "judge_longer": "for the longer, %",
    "judge_consistent": "orders agree, %",
    "judge_variance": "variance, %",
}
"""What is measured of a judge on a set of votes."""
MT_BENCH = "mt_bench/"
"""What the names of MT-bench's categories begin with."""
TURNS: Mapping[str, str] = {"mt_bench_1": "first turn", "mt_bench_2": "second turn"}
"""MT-bench's turns."""


def rated(table: Sequence[Cell]) -> list[Cell]:
    """The win rates that models are ranked by: on AlpacaEval's instructions, else a judge's on the stage's prompts, else the gold scorer's."""
    metrics = list(dict.fromkeys(c.metric for c in table))
    wanted = [*(m for m in metrics if m.startswith(ALPACA)), "judged", "win_rate"]
    best = next((m for m in wanted if m in metrics), None)
    return [c for c in table if c.metric == best]


def lengths(table: Sequence[Cell]) -> tuple[dict[str, Cell], str]:
    """How long the answers are that `rated` is about, by model, and the head of their column."""
    best = next((c.metric for c in rated(table)), "")
    metric, head = (best.replace(ALPACA, ALPACA_LENGTH), "length, characters") if best.startswith(ALPACA) else ("length", "length, tokens")
    return {c.model: c for c in table if c.metric == metric}, head


def leaderboard(table: Sequence[Cell]) -> Grid:
    """Models by their win rate, the best first, with interval, length and n, and length-controlled if known; empty where none was measured."""
    ranked = sorted(rated(table), key=lambda c: -c.value)
    if not ranked:
        return []
    known, head = lengths(table)
    metric = ranked[0].metric.replace(ALPACA, ALPACA_CONTROLLED)
    controlled = {c.model: c for c in table if c.metric == metric != ranked[0].metric}
    columns = {**({"length-controlled, %": controlled} if controlled else {}), head: known}
    rows = [[c.model, cell_text(c), *(cell_text(of[c.model]) if c.model in of else "" for of in columns.values()), str(c.n)] for c in ranked]
    return [["model", f"win rate, %{_against(ranked[0])}", *columns, "n"], *rows]


def _against(cell: Cell) -> str:
    """Whom a win rate is against, where its row says so. (Of other metrics `Cell.against` is the model of the paired test.)"""
    name = cell.metric.removeprefix(ALPACA) if cell.metric.startswith(ALPACA) else cell.against if cell.metric == "win_rate" else ""
    return f", against {name}" if name else ""


def alpaca_eval(table: Sequence[Cell]) -> Grid:
    """AlpacaEval's win rate, a row for each model that is to be beaten; empty where none was."""
    named = dict.fromkeys(c.metric for c in table if c.metric.startswith(ALPACA))
    return side_by_side(table, "against", {metric: metric.removeprefix(ALPACA) for metric in named})


def by_suite(table: Sequence[Cell]) -> dict[str, Grid]:
    """What suites with questions of their own found, by title; empty where one was not asked."""
    return {
        "Foundation tasks, %": foundation(table),
        "Tasks, %": tasks(table),
        "MT-bench, grades from 1 to 10": mt_bench(table),
        "Reward models, on sets of preferences": reward_sets(table),
        "Judges": judges(table),
        "Overlap with training data": contamination(table),
    }


def foundation(table: Sequence[Cell]) -> Grid:
    """The four tasks of the 2023 leaderboard and their mean, in the columns of the release; empty where none was measured.

    The average of a model that lacks one of the four is left out: a mean of fewer tasks is another number.
    """
    cells = {(c.model, c.metric): c for c in table if c.metric in OPEN_LLM}
    rows = []
    for model in dict.fromkeys(model for model, _ in cells):
        found = [cells.get((model, metric)) for metric in OPEN_LLM]
        whole = [c.value for c in found if c is not None]
        average = f"{100 * math.fsum(whole) / len(whole):.1f}" if len(whole) == len(OPEN_LLM) else ""
        rows.append([model, *(f"{100 * c.value:.1f}" if c else "" for c in found), average])
    return [["model", *OPEN_LLM.values(), "average"], *rows] if rows else []


def tasks(table: Sequence[Cell]) -> Grid:
    """Every task that is measured as a whole, with its interval and n; models side by side."""
    named = dict.fromkeys(c.metric for c in table if c.metric.startswith("task/") and c.metric.count("/") == 1)
    return side_by_side(table, "task", {metric: metric.removeprefix("task/") for metric in named})


def reward_sets(table: Sequence[Cell]) -> Grid:
    """A row per reward model and set of pairs; empty where there are no sets."""
    return _by_set(table, "reward model", REWARD)


def _by_set(table: Sequence[Cell], head: str, columns: Mapping[str, str]) -> Grid:
    """A row per model and set; metrics are named METRIC/SET."""
    cells = {(c.model, *c.metric.split("/", 1)): c for c in table if c.metric.partition("/")[0] in columns and "/" in c.metric}
    rows = []
    for model, name in dict.fromkeys((model, name) for model, _, name in cells):
        found = [cells.get((model, metric, name)) for metric in columns]
        rows.append([f"{model} on {name}", *(cell_text(c) if c else "" for c in found), _counts(found)])
    return [[head, *columns.values(), "n"], *rows] if rows else []


def judges(table: Sequence[Cell]) -> Grid:
    """A row per judge and set of votes; empty where no judge was looked at."""
    return _by_set(table, "judge", JUDGE)


def mt_bench(table: Sequence[Cell]) -> Grid:
    """MT-bench over all, by turn and by category; models side by side. Empty where no answer was graded."""
    named = dict.fromkeys(c.metric for c in table if c.metric.startswith(MT_BENCH))
    rows = {"mt_bench": "all", **TURNS, **{metric: metric.removeprefix(MT_BENCH) for metric in named}}
    return side_by_side(table, "part", rows) if named else []


def contamination(table: Sequence[Cell]) -> Grid:
    """A row per set of questions: the share that training data repeats; empty where nothing was compared."""
    rows = [[c.metric.removeprefix("overlap/"), cell_text(c), str(c.n), c.note] for c in table if c.metric.startswith("overlap/")]
    return [["questions", "found in training data, %", "n", "where"], *rows] if rows else []


def win_rate_dots(table: Sequence[Cell]) -> list[plots.Dot]:
    """Each model's win rate over its length, both as far as they are known, in the order of the table."""
    known, _ = lengths(table)
    return [plots.Dot(c.model, known[c.model].value, 100 * c.value, 100 * c.low, 100 * c.high) for c in rated(table) if c.model in known]


def categories(table: Sequence[Cell], prefix: str, models: Sequence[str]) -> tuple[list[str], list[list[plots.Whisker]]]:
    """The categories of a metric and each model's bar in them, shares in percent.

    Args:
        table: of an evaluate stage.
        prefix: what the metrics begin with: "accuracy/", "win_rate/", "task/mmlu/", "mt_bench/".
        models: the bars, in order.
    """
    cells = {(c.model, c.metric): c for c in table if c.metric.startswith(prefix) and "/" not in c.metric[len(prefix) :]}
    metrics = list(dict.fromkeys(metric for _, metric in cells))
    rows = [list(_bars(cells, metric, models)) for metric in metrics]
    return [metric.removeprefix(prefix) for metric in metrics], rows


def _bars(cells: Mapping[tuple[str, str], Cell], metric: str, models: Sequence[str]) -> Iterator[plots.Whisker]:
    for model in models:
        c = cells.get((model, metric))
        scale = 100 if is_share(metric) else 1
        yield plots.Whisker(model, scale * c.value, scale * c.low, scale * c.high) if c else plots.Whisker(model, math.nan, math.nan, math.nan)


def side_by_side(table: Sequence[Cell], head: str, metrics: Mapping[str, str]) -> Grid:
    """A row per metric, a column per model: metrics are many and models few, and a phone is narrow."""
    models = list(dict.fromkeys(c.model for c in table if c.metric in metrics))
    cells = {(c.model, c.metric): c for c in table}
    rows = []
    for metric, shown in metrics.items():
        found = [cells.get((model, metric)) for model in models]
        rows.append([shown, *(cell_text(c) if c else "" for c in found), _counts(found)])
    return [[head, *models, "n"], *rows] if rows else []


def _counts(cells: Sequence[Cell | None]) -> str:
    """The different n of some cells.  Example: "150/148" """
    return "/".join(str(n) for n in dict.fromkeys(c.n for c in cells if c))
