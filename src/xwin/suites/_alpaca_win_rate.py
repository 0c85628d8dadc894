"""AlpacaEval's win rate, versions 1 and 2, exactly as published, with what AlpacaEval lacks: an interval, and what is wrong with a comparison.

Formulas of alpaca_eval's `metrics/winrate.py` (github.com/tatsu-lab/alpaca_eval): over the labels that are not null, with x = preference - 1,
win_rate = 100 mean(x) and standard_error = 100 sd(x) / sqrt(n), sd with n - 1 below.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from xwin.errors import DataError
from xwin.run.statistics import bootstrap_interval
from xwin.suites._alpaca_labels import Labels, Reference


@dataclass(frozen=True, slots=True)
class Standing:
    """A row of a leaderboard. Rates and errors are percent; what the source does not say is None."""

    model: str
    win_rate: float
    standard_error: float | None
    n_wins: int | None = None
    n_wins_base: int | None = None
    n_draws: int | None = None
    n_total: int | None = None
    discrete_win_rate: float | None = None
    """As if every preference were rounded to 1 or 2; 1.5 stays a draw."""
    avg_length: int | None = None
    """Mean code points of the outputs, cut to a whole number as alpaca_eval does."""
    length_controlled_winrate: float | None = None
    lc_standard_error: float | None = None
    mode: str | None = None
    """Of alpaca_eval's leaderboards: minimal, verified, community or dev."""
    low: float | None = None
    """Lower end of the 95 % interval of the win rate: bootstrap over instructions; where all went alike, see `run.statistics.mean_interval`."""
    high: float | None = None


def standing(labels: Labels, *, seed: int = 0) -> Standing:
    """The win rate of a model and what belongs to it.

    Args:
        labels: of one model.
        seed: of the bootstrap.

    Raises:
        DataError: no label is valid.
    """
    credit = np.array([row.credit for row in labels.rows if row.credit is not None])
    if not len(credit):
        raise DataError(f"{labels.model} has no valid label: every preference is null", labels.source)
    interval = bootstrap_interval(credit.tolist(), seed=seed, bounds=(0.0, 1.0))
    wins, lost = int((credit > 0.5).sum()), int((credit < 0.5).sum())
    draws = len(credit) - wins - lost
    return Standing(
        labels.model,
        win_rate=100 * float(credit.mean()),
        standard_error=100 * float(credit.std(ddof=1)) / math.sqrt(len(credit)) if len(credit) > 1 else None,
        n_wins=wins,
        n_wins_base=lost,
        n_draws=draws,
        n_total=len(credit),
        discrete_win_rate=100 * (wins + draws / 2) / len(credit),
        avg_length=_mean_chars(labels),
        low=100 * interval.low if len(credit) > 1 else None,
        high=100 * interval.high if len(credit) > 1 else None,
    )


def from_counts(wins: int, lost: int, draws: int) -> float:
    """The win rate, percent, of so many pairs.

    Raises:
        ValueError: there are none.
    """
    total = wins + lost + draws
    if total < 1:
        raise ValueError("there are no pairs")
    return 100 * (wins + draws / 2) / total


def incomparable(sets: Sequence[Labels]) -> list[str]:
    """Why the rows of one table may not be comparable, a sentence each: instructions that a model lacks, a reference unlike the others'.

    Args:
        sets: the labels of every model of the table.
    """
    everything = {row.key for labels in sets for row in labels.rows}
    notes = []
    for labels in sets:
        lacking = len(everything) - len(labels.rows)
        if lacking:
            notes.append(f"{labels.model} has no row for {lacking} of the {len(everything)} instructions that the others have")
    usual = _usual_references(sets)
    for labels in sets:
        other = sum(1 for row in labels.rows if row.reference and row.reference.differs(usual[row.key]))
        if other:
            notes.append(f"{labels.model} was judged against another reference on {other} of {len(labels.rows)} instructions: not comparable")
    return notes


def _usual_references(sets: Sequence[Labels]) -> dict[str | int, Reference]:
    """Instruction -> the reference that most models were judged against."""
    seen: dict[str | int, Counter[Reference]] = {}
    for labels in sets:
        for row in labels.rows:
            if row.reference:
                seen.setdefault(row.key, Counter())[row.reference] += 1
    return {key: counts.most_common(1)[0][0] for key, counts in seen.items()}


def _mean_chars(labels: Labels) -> int | None:
    """Over all rows, those without a valid label too; None where a length is not known."""
    known = [row.chars for row in labels.rows if row.chars is not None]
    return int(sum(known) / len(known)) if len(known) == len(labels.rows) else None
