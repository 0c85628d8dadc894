"""Which regression a model's length-controlled win rate comes from: the published one, a refit, or cross-validation; and what is wrong with it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from xwin.errors import DataError
from xwin.suites._alpaca_labels import Labels
from xwin.suites._alpaca_tables import gamed, glm_weights, instructions, published
from xwin.suites._alpaca_win_rate import Standing
from xwin.suites._length_control import (
    Covariates,
    Join,
    LengthControlled,
    Weights,
    covariates,
    cross_validate,
    doubtful,
    fit,
    from_weights,
    resampled,
)

Fit = Literal["auto", "published", "cv"] | float
"""auto: the published weights where the labels are the published ones, else cv. cv: cross-validation. A number: the strength C of a refit."""
SAME = 1e-6
"""Percent; two numbers that differ by less are the same published number."""


@dataclass(frozen=True, slots=True)
class LengthControl:
    """Everything that length control needs besides labels."""

    difficulty: Mapping[int, float]
    weights: Mapping[str, Weights]
    gamed: Covariates
    board: Mapping[str, Standing]
    """AlpacaEval 2 as published."""
    how: Fit = "auto"
    join: Join = "instruction"

    @classmethod
    def read(cls, folder: Path, how: Fit = "auto", join: Join = "instruction") -> LengthControl:
        """From the tables of a folder.

        Raises:
            DataError: a table is missing or damaged.
        """
        return cls(instructions(folder).difficulty, glm_weights(folder), gamed(folder), published(folder, 2), how, join)

    def apply(self, labels: Labels, row: Standing) -> LengthControlled:
        """The length-controlled win rate of a model.

        Args:
            labels: of the model, keyed by AlpacaEval's numbers.
            row: their win rate.

        Raises:
            DataError: a row has no lengths or no difficulty, or published weights are asked for and there are none.
            MissingExtra: a fit is needed and scikit-learn is not installed.
        """
        pairs = covariates(labels, self.difficulty, self.join)
        found = self._regression(labels, pairs, row)
        return replace(found, note=self._doubts(labels, found, row))

    def interval(self, labels: Labels, found: LengthControlled, seed: int) -> tuple[float, float]:
        """The 95 % interval of `found`, percent, both ends nan where nothing was fitted."""
        if found.c is None:
            return math.nan, math.nan
        return resampled(covariates(labels, self.difficulty, self.join), self.gamed, found.c, seed)

    def _regression(self, labels: Labels, pairs: Covariates, row: Standing) -> LengthControlled:
        known = self.weights.get(row.model)
        if self.how == "published" or (self.how == "auto" and known and self._is_published(row)):
            if known is None:
                raise DataError(f"the table of published weights has no model '{row.model}'", labels.source, "leave --fit out, or say --fit cv")
            return from_weights(known, pairs, "published weights")
        return fit(pairs, self.gamed, self.how) if isinstance(self.how, float) else cross_validate(pairs, self.gamed)

    def _is_published(self, row: Standing) -> bool:
        """Whether these labels are the ones behind the leaderboard, and not others of a model of the same name."""
        return row.model in self.board and abs(self.board[row.model].win_rate - row.win_rate) < SAME

    def _doubts(self, labels: Labels, found: LengthControlled, row: Standing) -> str:
        board = self.board[row.model].length_controlled_winrate if self._is_published(row) else None
        if board is not None and found.source == "published weights" and abs(found.win_rate - board) > SAME:
            if self.join == "instruction" and len(labels.rows) < len(self.difficulty):
                return f"the leaderboard says {board:.4f}: its rows were joined by position (--join position), and this file lacks some"
            return f"the published weights are stale: the leaderboard says {board:.4f}"
        if doubtful(found.win_rate, row.win_rate):
            return f"far from the win rate {row.win_rate:.2f}: alpaca_eval warns that the regression may have failed"
        return ""
