"""Leaderboards in the layout of alpaca_eval's csv files: written, and read back."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from xwin.errors import DataError
from xwin.run.storage import write_atomic
from xwin.suites._alpaca_win_rate import Standing
from xwin.suites._records import Record, read_text, records

VERSION_1 = (
    "win_rate",
    "standard_error",
    "n_wins",
    "n_wins_base",
    "n_draws",
    "n_total",
    "mode",
    "avg_length",
    "discrete_win_rate",
    "length_controlled_winrate",
)
VERSION_2 = (
    "win_rate",
    "standard_error",
    "n_wins",
    "n_wins_base",
    "n_draws",
    "n_total",
    "discrete_win_rate",
    "mode",
    "avg_length",
    "length_controlled_winrate",
    "lc_standard_error",
)
WHOLE = frozenset({"n_wins", "n_wins_base", "n_draws", "n_total", "avg_length"})


def ranked(rows: Iterable[Standing], *, length_controlled: bool) -> list[Standing]:
    """Best first: by win rate (AlpacaEval 1) or by length-controlled win rate (AlpacaEval 2), rows without one last."""
    if not length_controlled:
        return sorted(rows, key=lambda row: -row.win_rate)
    return sorted(rows, key=lambda row: (row.length_controlled_winrate is None, -(row.length_controlled_winrate or 0.0)))


def write_leaderboard(path: Path, rows: Sequence[Standing]) -> None:
    """A csv file as alpaca_eval writes it, at full precision: of version 2 where a length-controlled error is known, else of version 1.

    Raises:
        StorageError: it cannot be written.
    """
    columns = VERSION_2 if any(row.lc_standard_error is not None for row in rows) else VERSION_1
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    out.writerow(["", *columns])
    for row in rows:
        values = asdict(row)
        out.writerow([row.model, *("" if values[name] is None else values[name] for name in columns)])
    write_atomic(path, text.getvalue())


def read_leaderboard(path: Path) -> list[Standing]:
    """The rows of a leaderboard, in its order.

    Args:
        path: a csv of alpaca_eval, version 1 or 2, old ones with fewer columns too; or the same columns as .json or .jsonl, perhaps .gz.

    Raises:
        DataError: the file is missing, a cell is not a number, a row has no win rate, or a model is there twice; names file and row.
    """
    found: dict[str, Standing] = {}
    for record in _csv_records(path) if path.suffix == ".csv" else records(path):
        row = _standing(record)
        if row.model in found:
            raise DataError(f"the model {row.model} is there twice", record.where)
        found[row.model] = row
    return list(found.values())


def _csv_records(path: Path) -> Iterable[Record]:
    try:
        rows = list(csv.reader(io.StringIO(read_text(path), newline="")))
    except csv.Error as error:
        raise DataError(f"is no csv file: {error}", str(path)) from None
    header = rows[0] if rows else []
    if "win_rate" not in header:
        raise DataError("is no leaderboard: its first line has no column win_rate", str(path))
    for number, cells in enumerate(rows[1:], 2):
        where = f"{path}:{number}"
        if len(cells) != len(header):
            raise DataError(f"has {len(cells)} cells, but the first line {len(header)}", where)
        named = dict(zip(header, cells, strict=True))
        yield Record(
            {"model": cells[0], "mode": named.get("mode") or None}
            | {name: _number(named.get(name, ""), name, where) for name in VERSION_2 if name != "mode"},
            where,
        )


def _number(cell: str, name: str, where: str) -> float | None:
    try:
        return float(cell) if cell else None
    except ValueError:
        raise DataError(f"{name} must be a number, not {cell!r}", where) from None


def _standing(record: Record) -> Standing:
    model, win_rate = record.text("model"), record.number("win_rate")
    if not model or win_rate is None:
        raise DataError("needs a model and a win_rate", record.where)
    rates = {name: record.number(name) for name in VERSION_2 if name not in WHOLE | {"mode", "win_rate"}}
    counts = {name: record.whole(name) for name in WHOLE}
    return Standing(model, win_rate, rates.pop("standard_error"), mode=record.text("mode"), **rates, **counts)
