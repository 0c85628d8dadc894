"""What a scorer may return, and what happens when it does not: a named error, or a score marked as failed that nothing is learned from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any, Literal, TypeAlias

import numpy as np

from xwin.data.rollout import Group, Score
from xwin.errors import UserError

FAILED = "failed"
"""Part of a Score that is 1.0 where the scorer failed: its value is 0 and means nothing. No stage chooses, pairs or learns from such an answer."""

REAL = (Real, np.bool_)
"""What a scorer may return for a number: numpy's numbers are real ones to Python, its truth values are not."""

OnFailure: TypeAlias = Literal["stop", "mask"]


class ScorerError(UserError):
    """A scorer raised, took too long, or returned something that is not a score."""


def failed(note: str) -> Score:
    """The score of an answer that could not be scored."""
    return Score(0.0, {FAILED: 1.0}, note)


def has_failed(score: Score | None) -> bool:
    """Whether there is no score to learn from."""
    return score is None or score.parts.get(FAILED, 0.0) > 0


def score_of(value: Any) -> Score:
    """A number, a truth value, numpy's too, or a Score as a Score of plain numbers.

    Raises:
        ScorerError: it is none of them, or not finite; the message has no place, the caller knows it.
    """
    if isinstance(value, Score):
        numbers = [value.value, *value.parts.values()]
        if all(_is_finite(number) for number in numbers):
            return Score(float(value.value), {name: float(part) for name, part in value.parts.items()}, value.note)
        raise ScorerError(f"the scorer returned a score that is not finite: {value}")
    if not _is_finite(value):
        raise ScorerError(f"the scorer returned {value!r}: not a finite number")
    return Score(float(value))


def _is_finite(value: Any) -> bool:
    try:
        return isinstance(value, REAL) and math.isfinite(value)
    except OverflowError:  # a whole number that no float can hold
        return False


def complete(groups: Sequence[Group], scores: Any) -> list[list[Score]]:
    """The scores, when there is one for every answer; numbers and truth values become Scores.

    Args:
        groups: whose answers were scored.
        scores: what the scorer returned, whatever it is.

    Raises:
        ScorerError: names the prompt whose scores are missing, too many or not finite.
    """
    rows = _listed(scores, "prompts", len(groups), "")
    return [_row(group, row) for group, row in zip(groups, rows, strict=True)]


def _row(group: Group, scores: Any) -> list[Score]:
    where = f"prompt {group.prompt.id}"
    found = []
    for value in _listed(scores, "answers", len(group.rollouts), where):
        try:
            found.append(score_of(value))
        except ScorerError as error:
            raise ScorerError(error.what, where, error.fix) from None
    return found


def _listed(scores: Any, what: str, count: int, where: str) -> Sequence[Any]:
    if not isinstance(scores, Sequence) or isinstance(scores, str):
        raise ScorerError(f"the scorer returned {scores!r}, not scores for {count} {what}", where)
    if len(scores) != count:
        raise ScorerError(f"the scorer returned scores for {len(scores)} {what}, not {count}", where)
    return scores
