"""What a scorer may return, and what happens when it does not: a named error, or a score marked as failed that nothing is learned from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

from xwin.data.rollout import Group, Score
from xwin.errors import UserError

FAILED = "failed"
"""Part of a Score that is 1.0 where the scorer failed: its value is 0 and means nothing. The rl stage leaves such answers out and counts them."""

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
    """A number, a truth value or a Score as a Score.

    Raises:
        ScorerError: it is none of them, or not finite; the message has no place, the caller knows it.
    """
    if isinstance(value, Score):
        numbers = [value.value, *value.parts.values()]
        if all(_is_finite(number) for number in numbers):
            return value
        raise ScorerError(f"the scorer returned a score that is not finite: {value}")
    if not _is_finite(value):
        raise ScorerError(f"the scorer returned {value!r}: not a finite number")
    return Score(float(value))


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def complete(groups: Sequence[Group], scores: Sequence[Sequence[Score]]) -> Sequence[Sequence[Score]]:
    """The scores, when there is one finite Score for every answer.

    Raises:
        ScorerError: names the prompt whose scores are missing, too many or not finite.
    """
    if len(scores) != len(groups):
        raise ScorerError(f"the scorer returned scores for {len(scores)} prompts, not {len(groups)}")
    for group, row in zip(groups, scores, strict=True):
        where = f"prompt {group.prompt.id}"
        if len(row) != len(group.rollouts):
            raise ScorerError(f"the scorer returned {len(row)} scores for {len(group.rollouts)} answers", where)
        for score in row:
            try:
                score_of(score)
            except ScorerError as error:
                raise ScorerError(error.what, where, error.fix) from None
    return scores
