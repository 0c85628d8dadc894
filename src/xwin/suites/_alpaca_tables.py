"""The public tables that AlpacaEval's numbers hang on, read from a folder: instructions, difficulty, weights, leaderboards.

Nothing of them is part of this package (CC BY-NC 4.0). The folder holds, a gzip'd JSON object a line:

    instructions.jsonl.gz           idx, instruction, lc_instruction_difficulty; reference_davinci003, alt_davinci003, reference_gpt4_1106
    ae2_glm_weights.jsonl.gz        model, w_length, w_difficulty, w_model
    ae2_lc_gamed_equiv.jsonl.gz     std_delta_len, instruction_difficulty, preference_equiv
    ae1_leaderboard.jsonl.gz, ae2_leaderboard.jsonl.gz    the columns of alpaca_eval's leaderboards

Only what is asked for is read.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from xwin.errors import DataError
from xwin.suites._alpaca_labels import Reference
from xwin.suites._alpaca_leaderboard import read_leaderboard
from xwin.suites._alpaca_win_rate import Standing
from xwin.suites._length_control import Covariates, Weights
from xwin.suites._records import Record, records

INSTRUCTIONS = "instructions.jsonl.gz"
REFERENCES = {"davinci003": "reference_davinci003", "alt_davinci003": "alt_davinci003", "gpt4_1106": "reference_gpt4_1106"}
"""Sets of reference outputs -> their column. AlpacaEval 1 judges against the first, AlpacaEval 2 against the last; there are two of davinci-003."""


class Instructions(NamedTuple):
    """AlpacaEval's instructions."""

    numbers: dict[str, int]
    """Text -> number."""
    difficulty: dict[int, float]
    """Number -> difficulty, for length control."""


def instructions(folder: Path) -> Instructions:
    """The table of instructions.

    Raises:
        DataError: it is missing, or a row is incomplete or there twice.
    """
    numbers: dict[str, int] = {}
    difficulty: dict[int, float] = {}
    for record in records(folder / INSTRUCTIONS):
        text, number, value = record.text("instruction"), record.whole("idx"), record.number("lc_instruction_difficulty")
        if text is None or number is None or value is None:
            raise DataError("needs idx, instruction and lc_instruction_difficulty", record.where)
        if text in numbers or number in difficulty:
            raise DataError("this instruction is there twice", record.where)
        numbers[text], difficulty[number] = number, value
    return Instructions(numbers, difficulty)


def references(folder: Path) -> dict[str, dict[str | int, Reference]]:
    """Name of a set of reference outputs -> number of an instruction -> its output.

    Raises:
        DataError: the table of instructions is missing, or a row has no number.
    """
    found: dict[str, dict[str | int, Reference]] = {name: {} for name in REFERENCES}
    for record in records(folder / INSTRUCTIONS):
        number = record.whole("idx")
        if number is None:
            raise DataError("has no idx", record.where)
        for name, column in REFERENCES.items():
            text = record.text(column)
            if text is not None:
                found[name][number] = Reference.of(text)
    return found


def glm_weights(folder: Path) -> dict[str, Weights]:
    """Model -> the weights of its published regression.

    Raises:
        DataError: the table is missing or a row is incomplete.
    """
    found: dict[str, Weights] = {}
    for record in records(folder / "ae2_glm_weights.jsonl.gz"):
        found[record.text("model") or ""] = Weights(*(_needed(record, name) for name in ("w_length", "w_difficulty", "w_model")))
    return found


def gamed(folder: Path) -> Covariates:
    """The pairs that keep the length weight sane.

    Raises:
        DataError: the table is missing or a row is incomplete.
    """
    names = ("std_delta_len", "instruction_difficulty", "preference_equiv")
    rows = np.array([[_needed(record, name) for name in names] for record in records(folder / "ae2_lc_gamed_equiv.jsonl.gz")])
    return Covariates(np.tanh(rows[:, 0]), rows[:, 1], rows[:, 2])


def published(folder: Path, version: int) -> dict[str, Standing]:
    """Model -> its row of the published leaderboard of AlpacaEval 1 or 2."""
    return {row.model: row for row in read_leaderboard(folder / f"ae{version}_leaderboard.jsonl.gz")}


def _needed(record: Record, name: str) -> float:
    value = record.number(name)
    if value is None:
        raise DataError(f"has no {name}", record.where)
    return value
