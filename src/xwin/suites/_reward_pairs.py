"""What is measured of a reward model over pairs of a better and a worse answer, and of mere length beside it. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from xwin.run.calibration import calibration_error, reliability
from xwin.run.statistics import mean_interval
from xwin.suites.base import Row

MATCHED = 0.1
"""Two answers are of one length when they differ by at most this share of the longer one, in characters."""
MATCHING = "rm_length_matched"
"""Accuracy over pairs of one length; it needs two prompts, since one says nothing of the spread."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers to one prompt and what the reward model gives them.  Example: Pair("q7", 1.5, 0.25, chars=(120, 80))"""

    prompt: str
    chosen: float
    """Raw score of the better answer."""
    rejected: float
    chars: tuple[int, int]
    """Length of the better and of the worse one."""

    @property
    def right(self) -> float:
        """1 where the better answer scores more, 1/2 where the two are equal."""
        return _wins(self.chosen, self.rejected)

    @property
    def longer(self) -> float:
        """The same of their lengths."""
        return _wins(*self.chars)

    @property
    def matched(self) -> bool:
        """Whether the two are of one length."""
        return abs(self.chars[0] - self.chars[1]) <= MATCHED * max(self.chars)


def accuracy_rows(model: str, name: str, pairs: Sequence[Pair]) -> list[Row]:
    """Accuracy, accuracy of "the longer one wins", and accuracy over pairs of one length.

    The unit of each interval is the prompt (the mean over its pairs), since the pairs of one prompt are not independent; it is Student's t.

    Args:
        model: the reward model's row.
        name: of the set, behind the metric's name; empty for none.
        pairs: at least one.
    """
    matched = [pair for pair in pairs if pair.matched]
    measured = {
        "rm_accuracy": (pairs, [p.right for p in pairs]),
        "longer_wins": (pairs, [p.longer for p in pairs]),
        MATCHING: (matched, [p.right for p in matched]),
    }
    rows = []
    for metric, (chosen, values) in measured.items():
        by_prompt = _by_prompt(chosen, values)
        note = f"{len(chosen)} pairs of {len(by_prompt)} prompts"
        if metric != MATCHING or len(by_prompt) > 1:
            rows.append(Row.of(model, _named(metric, name), mean_interval(by_prompt, bounds=(0.0, 1.0)), note=note))
    return rows


def confidence_row(model: str, name: str, pairs: Sequence[Pair]) -> Row:
    """Mean confidence less accuracy, Student's t interval over pairs: above 0 the reward model is surer than it is right.

    Its confidence is the chance sigmoid(difference of scores) that the Bradley-Terry model gives the answer it prefers. The note has the expected
    calibration error, over ten bins from one half to 1.

    Args:
        model, name: as in `accuracy_rows`.
        pairs: raw scores, in the unit they were trained in.
    """
    sure = np.array([1 / (1 + math.exp(-min(abs(p.chosen - p.rejected), 700.0))) for p in pairs])
    right = np.array([p.right for p in pairs])
    error = calibration_error(reliability(sure.tolist(), right.tolist(), low=0.5))
    note = f"confidence {sure.mean():.3f}, accuracy {right.mean():.3f}, expected calibration error {error:.3f}"
    return Row.of(model, _named("rm_overconfidence", name), mean_interval((sure - right).tolist(), bounds=(-1.0, 1.0)), note=note)


def _by_prompt(pairs: Sequence[Pair], values: Sequence[float]) -> list[float]:
    """The mean of each prompt."""
    found: dict[str, list[float]] = {}
    for pair, value in zip(pairs, values, strict=True):
        found.setdefault(pair.prompt, []).append(value)
    return [math.fsum(mine) / len(mine) for mine in found.values()]


def _wins(good: float, bad: float) -> float:
    return 0.5 + 0.5 * ((good > bad) - (good < bad))


def _named(metric: str, name: str) -> str:
    return f"{metric}/{name}" if name else metric
