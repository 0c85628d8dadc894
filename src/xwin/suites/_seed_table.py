"""The AlpacaEval table of the Xwin-LM release, cell by cell: what the public labels and counts give for each published number."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from xwin.errors import DataError
from xwin.suites._alpaca_labels import read_labels
from xwin.suites._alpaca_tables import published
from xwin.suites._alpaca_win_rate import Standing, from_counts, standing
from xwin.suites._records import Record, records

RAW, COUNTS, CLOSED = "exact from raw labels", "from published counts", "not public"
JUDGED_BY_ALPACA_EVAL = "text-davinci-003"
TOTALS = range(790, 806)
"""Numbers of valid labels that a run over AlpacaEval's 805 instructions ends with."""
HALF_DIGIT = 0.005 + 1e-9
"""A published number with two decimals may stand for any within this."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A published number and what is behind it. Percent."""

    model: str
    opponent: str
    """Whose outputs the model is judged against."""
    seed: float
    """As published with the release."""
    value: float | None
    """As computed here; None where nothing is public to compute it from."""
    mark: str
    """"exact from raw labels", "from published counts" or "not public"."""
    feasible: tuple[tuple[int, float], ...]
    """(labels, wins + half the draws) that round to `seed`."""
    note: str = ""

    @property
    def agrees(self) -> bool | None:
        """Whether `value` rounds to `seed`; None where there is no value."""
        return None if self.value is None else abs(self.value - self.seed) <= HALF_DIGIT


def seed_table(folder: Path) -> list[Cell]:
    """Every cell, in the order of the published table.

    Args:
        folder: holds seed_table, ae1_labels and ae1_leaderboard (.jsonl.gz).

    Raises:
        DataError: a file is missing or a row is incomplete.
    """
    raw = {labels.model: labels for labels in read_labels(folder / "ae1_labels.jsonl.gz")}
    board = published(folder, 1)
    cells = []
    for record in records(folder / "seed_table.jsonl.gz"):
        name, key, opponent = (_needed(record, field) for field in ("seed_model", "alpaca_eval_model", "opponent"))
        seed = record.number("seed_value")
        if seed is None:
            raise DataError("has no seed_value", record.where)
        if opponent == JUDGED_BY_ALPACA_EVAL and key in raw:
            cells.append(_cell(name, opponent, seed, standing(raw[key]).win_rate, RAW))
        elif opponent == JUDGED_BY_ALPACA_EVAL and (value := _counted(board.get(key))) is not None:
            cells.append(_cell(name, opponent, seed, value, COUNTS))
        elif name == opponent:
            cells.append(_cell(name, opponent, seed, 50.0, RAW, "by construction: equal outputs are a tie, and no judge is asked"))
        else:
            cells.append(_cell(name, opponent, seed, None, CLOSED))
    return cells


def feasible(value: float) -> tuple[tuple[int, float], ...]:
    """The (labels, wins + half the draws) that a win rate with two decimals can come from; the first for each number of labels in `TOTALS`."""
    halves = ((n, math.ceil((value - HALF_DIGIT) * n / 50) / 2) for n in TOTALS)
    return tuple((n, points) for n, points in halves if abs(100 * points / n - value) <= HALF_DIGIT)


def _cell(model: str, opponent: str, seed: float, value: float | None, mark: str, note: str = "") -> Cell:
    ways = feasible(seed)
    return Cell(model, opponent, seed, value, mark, ways, note or _note(seed, value, ways))


def _note(seed: float, value: float | None, ways: tuple[tuple[int, float], ...]) -> str:
    if value is None:
        return f"possible: for instance {ways[-1][1]:g} of {ways[-1][0]}" if ways else "no count of wins gives it"
    if abs(value - seed) <= HALF_DIGIT:
        return ""
    if math.floor(value * 100) == round(seed * 100):
        return f"cut, not rounded: {value:.4f} rounds to {value:.2f}"
    span = f"{TOTALS.start} to {TOTALS.stop - 1} labels"
    return f"differs from {value:.4f}" + ("" if ways else f", and no count of wins over {span} gives it")


def _counted(row: Standing | None) -> float | None:
    if row is None or row.n_wins is None or row.n_wins_base is None or row.n_draws is None:
        return None
    return from_counts(row.n_wins, row.n_wins_base, row.n_draws)


def _needed(record: Record, field: str) -> str:
    value = record.text(field)
    if not value:
        raise DataError(f"has no {field}", record.where)
    return value
