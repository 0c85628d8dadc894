"""Who judges: a Scorer gives each rollout of each group a Score. Built from its ScorerKind by the Context of a stage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Protocol

from xwin.data.rollout import Group, Score
from xwin.spec import Kind

if TYPE_CHECKING:
    from xwin.data.reading import Reading
    from xwin.engines.base import Chat, EngineKind
    from xwin.learning.learner import AnyLearner


class Scorer(Protocol):
    """Scores groups."""

    def score(self, groups: Sequence[Group]) -> list[list[Score]]:
        """One Score per rollout, in the same order as groups and their rollouts."""
        ...


class Acquainted(Protocol):
    """Who knows somebody to ask."""

    def chat(self, engine: EngineKind, model: str | None) -> Chat:
        """Somebody to ask: an endpoint, or `engine` over the model that `model` names. Answers are kept."""
        ...


class Workshop(Acquainted, Protocol):
    """What a ScorerKind may ask of the stage that builds it."""

    def frozen_scorer(self, model: str) -> AnyLearner:
        """The reward model that `model` names, loaded without an optimizer."""
        ...

    def reading(self, model: str, scorer: AnyLearner) -> Reading:
        """How that reward model reads what is to be scored."""
        ...


class ScorerKind(Kind):
    """Settings of a scorer. Each file in this folder is one."""

    package: ClassVar[str] = "xwin.scorers"

    def build(self, workshop: Workshop) -> Scorer:
        """The scorer these settings describe."""
        raise NotImplementedError
