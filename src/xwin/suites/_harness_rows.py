"""From lm-eval's records to rows of the table: each metric with its standard error, interval and n. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from xwin.errors import DataError
from xwin.run.statistics import Interval, mean_interval, proportion, ratio_error
from xwin.suites.base import Row

Records = Sequence[Mapping[str, Any]]

NORMAL = 1.959964
"""Standard errors of a 95 % interval of a mean of many means."""


@dataclass(frozen=True, slots=True)
class Measure:
    """A number that is published of a task.  Example: Measure("task/gsm8k", "exact_match", "5-shot, strict", filter="strict-match")"""

    name: str
    """Of the row."""
    metric: str
    """lm-eval's name."""
    note: str
    filter: str = "none"
    """lm-eval's name of how the answer is read from the text."""


MEASURES: Mapping[str, Sequence[Measure]] = {
    "arc_challenge": (
        Measure("task/arc_challenge", "acc_norm", "25-shot, likelihood per character"),
        Measure("task/arc_challenge/acc", "acc", "25-shot"),
    ),
    "hellaswag": (
        Measure("task/hellaswag", "acc_norm", "10-shot, likelihood per character"),
        Measure("task/hellaswag/acc", "acc", "10-shot"),
    ),
    "truthfulqa_mc2": (Measure("task/truthfulqa_mc2", "acc", "0-shot, probability of the true answers"),),
    "gsm8k": (
        Measure("task/gsm8k", "exact_match", "5-shot, what stands behind ####", "strict-match"),
        Measure("task/gsm8k/flexible-extract", "exact_match", "5-shot, the last number", "flexible-extract"),
    ),
    "ifeval": (
        Measure("task/ifeval", "prompt_level_strict_acc", "all instructions of a prompt, strict"),
        Measure("task/ifeval/inst_level_strict_acc", "inst_level_strict_acc", "instruction by instruction, strict"),
        Measure("task/ifeval/prompt_level_loose_acc", "prompt_level_loose_acc", "all instructions of a prompt, loose"),
        Measure("task/ifeval/inst_level_loose_acc", "inst_level_loose_acc", "instruction by instruction, loose"),
    ),
}
"""Task -> its rows, the one that leaderboards print first. MMLU is made of its subjects: see `mmlu_rows`."""


def task_rows(model: str, samples: Mapping[str, Records], categories: Mapping[str, str]) -> list[Row]:
    """Every row of a model.

    Args:
        model: its name in the table.
        samples: lm-eval's task -> its records.
        categories: MMLU's subject, by lm-eval's name -> category.
    """
    subjects = {name: found for name, found in samples.items() if name in categories}
    rows = mmlu_rows(model, subjects, categories) if subjects else []
    for task, measures in MEASURES.items():
        rows += [_row(model, m, [r for r in samples[task] if r["filter"] == m.filter]) for m in measures if task in samples]
    return rows


def mmlu_rows(model: str, subjects: Mapping[str, Records], categories: Mapping[str, str]) -> list[Row]:
    """MMLU as two averages, then its categories and subjects.

    `task/mmlu` is the mean over the subjects, whatever their size, as the 2023 Open LLM Leaderboard computed it; `task/mmlu over documents` is the
    mean over all questions, as lm-eval prints today. They differ by about a point: say which one a number is.
    """
    known = {name: [float(r["acc"]) for r in records] for name, records in subjects.items()}
    every = [value for values in known.values() for value in values]
    count = f"5-shot, {len(known)} subjects"
    rows = [
        _mean_of_means(model, "task/mmlu", list(known.values()), f"{count}, mean over subjects, as the 2023 leaderboard"),
        _of_values(model, "task/mmlu over documents", every, f"{count}, mean over documents, as lm-eval today"),
    ]
    for category in dict.fromkeys(categories[name] for name in known):
        mine = [values for name, values in known.items() if categories[name] == category]
        rows.append(_mean_of_means(model, f"task/mmlu/{category}", mine, f"5-shot, mean over {len(mine)} subjects"))
    for name, values in known.items():
        rows.append(_of_values(model, f"task/mmlu/{categories[name]}/{name.removeprefix('mmlu_')}", values, "5-shot"))
    return rows


def _row(model: str, measure: Measure, records: Records) -> Row:
    """A row over documents, or, where each document has several verdicts, over all verdicts."""
    found = [r[measure.metric] for r in records]
    if found and isinstance(found[0], list):
        return _ratio(model, measure, [[float(v) for v in each] for each in found])
    values = [float(v) for v in found]
    finite = [v for v in values if math.isfinite(v)]
    if not finite:
        raise DataError(f"no document has a finite {measure.metric}: every probability is too small for a number", measure.name)
    lost = f"; {len(values) - len(finite)} left out, their probabilities are too small for a number" if len(finite) < len(values) else ""
    return _of_values(model, measure.name, finite, measure.note + lost)


def _of_values(model: str, metric: str, values: Sequence[float], note: str) -> Row:
    """The mean: Wilson's interval where each is 0 or 1, else Student's t."""
    counted = set(values) <= {0.0, 1.0}
    interval = proportion(sum(values), len(values)) if counted else mean_interval(values, bounds=(0.0, 1.0))
    return replace(Row.of(model, metric, interval, note=note), stderr=standard_error(values))


def _mean_of_means(model: str, metric: str, groups: Sequence[Sequence[float]], note: str) -> Row:
    """The mean of the groups' means; its variance is the sum of theirs over the square of their number."""
    mean = math.fsum(math.fsum(g) / len(g) for g in groups) / len(groups)
    error = math.sqrt(math.fsum(standard_error(g) ** 2 for g in groups)) / len(groups)
    return replace(Row.of(model, metric, _around(mean, error, sum(map(len, groups))), note=note), stderr=error)


def _ratio(model: str, measure: Measure, groups: Sequence[Sequence[float]]) -> Row:
    """The mean over all verdicts. Those of one document are not independent."""
    count = sum(map(len, groups))
    ratio, error = math.fsum(map(math.fsum, groups)) / count, ratio_error(groups)
    note = f"{measure.note}; {count} instructions"
    return replace(Row.of(model, measure.name, _around(ratio, error, len(groups)), note=note), stderr=error)


def _around(share: float, error: float, n: int) -> Interval:
    """The normal interval of a share, cut to 0..1; Wilson's where all are right or all are wrong, which leaves no spread to measure."""
    if share in {0.0, 1.0}:
        return proportion(share * n, n)
    return Interval(share, max(0.0, share - NORMAL * error), min(1.0, share + NORMAL * error), n)


def standard_error(values: Sequence[float]) -> float:
    """sd / sqrt(n), sd with n - 1; 0 of one value, of which nothing is known."""
    n = len(values)
    if n < 2:
        return 0.0
    mean = math.fsum(values) / n
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1) / n)
