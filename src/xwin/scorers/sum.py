"""A weighted sum of scorers; every part stays visible."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Self

from annotated_types import MinLen
from pydantic import model_validator

from xwin.data.rollout import Group, Score
from xwin.scorers._outcome import FAILED, complete, failed, has_failed
from xwin.scorers.base import Scorer, ScorerKind, Workshop
from xwin.spec import Spec


class Part(Spec):
    """One term of the sum."""

    scorer: ScorerKind
    """Who judges."""

    weight: float = 1.0
    """What a unit of this scorer is worth in the sum."""


class Sum(ScorerKind):
    """Adds scorers. The score of each, before its weight, is a part of the sum's score under the name given here."""

    parts: Annotated[dict[str, Part], MinLen(1)]
    """Name -> scorer and weight."""

    @model_validator(mode="after")
    def _leaves_the_mark_alone(self) -> Self:
        if FAILED in self.parts:
            raise ValueError(f"a part may not be named '{FAILED}': that is what marks an answer that could not be scored")
        return self

    def build(self, workshop: Workshop) -> Scorer:
        return SumScorer({name: (part.weight, part.scorer.build(workshop)) for name, part in self.parts.items()})


@dataclass(frozen=True)
class SumScorer:
    """See Scorer."""

    scorers: Mapping[str, tuple[float, Scorer]]

    def score(self, groups: Sequence[Group]) -> list[list[Score]]:
        """See Scorer. Where one part failed, the sum has.

        Raises:
            ScorerError: a part returned the wrong number of scores, or one that is not finite.
        """
        rows = {name: complete(groups, scorer.score(groups)) for name, (_, scorer) in self.scorers.items()}
        return [[self._sum({name: row[g][k] for name, row in rows.items()}) for k in range(len(group.rollouts))] for g, group in enumerate(groups)]

    def _sum(self, found: Mapping[str, Score]) -> Score:
        notes = "; ".join(f"{name}: {score.note}" for name, score in found.items() if score.note)
        if any(has_failed(score) for score in found.values()):
            return failed(notes)
        inner = {f"{name}.{part}": value for name, score in found.items() for part, value in score.parts.items() if part != FAILED}
        value = sum(self.scorers[name][0] * score.value for name, score in found.items())
        return Score(value, {**{name: score.value for name, score in found.items()}, **inner}, notes)
