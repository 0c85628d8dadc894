"""A score of length alone, for sums: 0 where an answer is short enough, below 0 where it is too long."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Self, TypeAlias

from annotated_types import Ge, Gt
from pydantic import Field, model_validator

from xwin.data.rollout import Group, Score
from xwin.scorers.base import Scorer, ScorerKind, Workshop
from xwin.spec import Spec


class Overlong(Spec):
    """DAPO's soft overlong punishment: it grows from 0 to -1 over the last `buffer` tokens (Yu et al. 2025, arXiv:2503.14476, equation 13)."""

    kind: Literal["overlong"] = "overlong"

    longest: Annotated[int, Ge(1)]
    """Length from which on the score is -1, tokens: the max_tokens of the sampling."""

    buffer: Annotated[int, Ge(1)]
    """Tokens below it in which the score falls."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.buffer > self.longest:
            raise ValueError(f"the buffer of {self.buffer} tokens is longer than the longest answer of {self.longest}")
        return self

    def of(self, tokens: int) -> float:
        """0 up to longest - buffer, then a straight line down to -1 at `longest`."""
        return max(min((self.longest - self.buffer - tokens) / self.buffer, 0.0), -1.0)


class Linear(Spec):
    """Every token beyond a free length costs the same."""

    kind: Literal["linear"] = "linear"

    free: Annotated[int, Ge(0)] = 0
    """Tokens that cost nothing."""

    price: Annotated[float, Gt(0)] = 0.001
    """Reward units per token beyond."""

    def of(self, tokens: int) -> float:
        """-price * max(tokens - free, 0)"""
        return -self.price * max(tokens - self.free, 0)


Shape: TypeAlias = Annotated[Overlong | Linear, Field(discriminator="kind")]


class Length(ScorerKind):
    """Scores the number of tokens, the stop token included."""

    shape: Shape
    """How the score falls with length."""

    def build(self, workshop: Workshop) -> Scorer:
        return LengthScorer(self.shape)


@dataclass(frozen=True)
class LengthScorer:
    """See Scorer."""

    shape: Overlong | Linear

    def score(self, groups: Sequence[Group]) -> list[list[Score]]:
        return [[Score(self.shape.of(len(r.completion))) for r in group.rollouts] for group in groups]
