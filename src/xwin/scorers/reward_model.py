"""A trained reward model as a scorer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge

from xwin.data.batch import Sample, pack
from xwin.data.rollout import Group, Rollout, Score
from xwin.learning.learner import Learner
from xwin.models.heads import RewardStats
from xwin.run.artifacts import RewardModelRef
from xwin.scorers.base import ScorerKind, Workshop

TOKENS = 4096
"""Of a packed batch; bounds memory, does not change a score."""


class RewardModel(ScorerKind):
    """Scores the token ids that were sampled, never a decoded and encoded copy of them, in units of the reward model's own spread."""

    model: RewardModelRef
    """The reward model: a stage or a folder."""

    unfinished: Annotated[float, Ge(0)] = 1.0
    """Taken off the score of an answer that hit the length limit, units of the spread: the model never saw an answer without its end."""

    def build(self, workshop: Workshop) -> RewardModelScorer:
        learner = workshop.frozen_scorer(self.model)
        stats = learner.model.head.stats if learner.model.head else RewardStats()
        return RewardModelScorer(learner, stats, self.unfinished)


@dataclass(frozen=True)
class RewardModelScorer:
    """See Scorer."""

    learner: Learner
    stats: RewardStats
    unfinished: float

    def score(self, groups: Sequence[Group]) -> list[list[Score]]:
        """See Scorer. A score does not depend on what else is scored with it, but for rounding."""
        samples = [_sample(r) for group in groups for r in group.rollouts]
        raw: dict[str, float] = {}
        for batch in pack(samples, tokens=max([TOKENS, *(len(s.tokens) for s in samples)]), share=True):
            (out,) = self.learner.forward([batch], frozenset({"score"}))
            raw |= {batch.ids[s]: float(out.get("score")[s]) for s in batch.samples()}
        return [[self._score(r, raw[_name(r)]) for r in group.rollouts] for group in groups]

    def _score(self, rollout: Rollout, raw: float) -> Score:
        value = (raw - self.stats.mean) / self.stats.std
        cut = self.unfinished if rollout.finish != "stop" else 0.0
        return Score(value - cut, {"model": value, "unfinished": -cut})


def _name(rollout: Rollout) -> str:
    return f"{rollout.prompt_id}/{rollout.sample}"


def _sample(rollout: Rollout) -> Sample:
    """The whole sequence; the completion is marked as trained only to say where the prompt, which siblings share, ends."""
    mask = (False,) * len(rollout.prompt) + (True,) * len(rollout.completion)
    return Sample(_name(rollout), rollout.prompt + rollout.completion, mask)
