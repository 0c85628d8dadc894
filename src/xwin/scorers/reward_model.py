"""A trained reward model as a scorer, or an ensemble with its disagreement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge, MinLen
from torch import Tensor

from xwin.data.batch import Sample, pack
from xwin.data.reading import Reading
from xwin.data.rollout import Group, Rollout, Score
from xwin.errors import ModelError
from xwin.learning.learner import AnyLearner
from xwin.models.heads import RewardStats
from xwin.run.artifacts import RewardModelRef
from xwin.scorers._outcome import ScorerError, failed
from xwin.scorers.base import ScorerKind, Workshop

TOKENS = 4096
"""Of a packed batch; bounds memory, does not change a score."""

Unit = Literal["spread", "probability"]


class RewardModel(ScorerKind):
    """Scores the token ids that were sampled, never a decoded and encoded copy of them; but of a policy that has other tokens than the reward
    model, or writes in another chat template, the text, rendered anew in the reward model's own template. An answer that does not survive that, or
    is longer than the reward model can read, is not scored.

    The members of an ensemble are all heads of all models named. Its score is their mean less `caution` times their standard deviation
    (population form), and the part `disagreement` is that deviation. Coste et al. 2023, arXiv:2310.02743, uncertainty-weighted optimization;
    deviation: they take off the variance, which has another unit than the score.
    """

    revision: ClassVar[int] = 1

    model: RewardModelRef | Annotated[tuple[RewardModelRef, ...], MinLen(1)]
    """The reward model: a stage or a folder; or several, as one ensemble."""

    unit: Literal["spread", "probability"] = "spread"
    """spread: in units of each model's own spread, 0 is its mean training answer. probability: of being right, or for a model of preferences of
    beating an answer of the mean score; for a model that was calibrated."""

    caution: Annotated[float, Ge(0)] = 0.0
    """Standard deviations of the members taken off their mean; 0 = the mean. Above 0 it needs an ensemble."""

    unfinished: Annotated[float, Ge(0)] = 1.0
    """Taken off the score of an answer that hit the length limit, in `unit`: the model never saw an answer without its end."""

    def build(self, workshop: Workshop) -> RewardModelScorer:
        refs = (self.model,) if isinstance(self.model, str) else self.model
        judges = tuple(self._judge(workshop, ref) for ref in refs)
        if self.caution and sum(judge.members for judge in judges) == 1:
            fix = "set caution: 0, name several models, or train one with `heads` above 1"
            raise ScorerError("one reward model with one head never disagrees with itself", f"caution of the scorer over {refs[0]}", fix)
        return RewardModelScorer(judges, self.caution, self.unfinished)

    def _judge(self, workshop: Workshop, ref: str) -> Judge:
        learner = workshop.frozen_scorer(ref)
        return Judge.of(learner, workshop.reading(ref, learner), ref, self.unit)


@dataclass(frozen=True)
class Judge:
    """A reward model and what its scores mean."""

    learner: AnyLearner
    reading: Reading
    stats: RewardStats
    unit: Unit

    @classmethod
    def of(cls, learner: AnyLearner, reading: Reading, ref: str, unit: Unit) -> Judge:
        """Of a loaded model.

        Raises:
            ModelError: a probability is wanted of a model that was not calibrated.
        """
        stats = learner.about.stats or RewardStats()
        if unit == "probability" and stats.temperature is None:
            fix = "give its reward_model stage enough held-out answers as `validation`, or set unit: spread"
            raise ModelError("was not calibrated, so its scores are no probabilities", ref, fix)
        return cls(learner, reading, stats, unit)

    @property
    def members(self) -> int:
        """Heads."""
        return self.learner.about.heads or 1

    def score(self, samples: Sequence[Sample]) -> Tensor:
        """[N, K] of whole answers, in the unit, float64."""
        if not samples:
            return torch.empty(0, self.members, dtype=torch.float64)
        raw = raw_scores(self.learner, samples)
        return self.stats.standard(raw) if self.unit == "spread" else self.stats.probability(raw)


@dataclass(frozen=True)
class RewardModelScorer:
    """See Scorer."""

    judges: Sequence[Judge]
    caution: float
    unfinished: float

    def score(self, groups: Sequence[Group]) -> list[list[Score]]:
        """See Scorer. A score does not depend on what else is scored with it, but for rounding; an answer that one model cannot read has failed."""
        told = [[read for group in groups for read in judge.reading.samples(group)] for judge in self.judges]
        faults = [next((read for read in reads if isinstance(read, str)), "") for reads in zip(*told, strict=True)]
        members = torch.cat([judge.score(_readable(reads, faults)) for judge, reads in zip(self.judges, told, strict=True)], 1).numpy()
        known = iter(zip(members.mean(1).tolist(), members.std(1).tolist(), strict=True))  # of the N answers that were read
        alone, fault = members.shape[1] == 1, iter(faults)
        return [[failed(why) if (why := next(fault)) else self._score(r, *next(known), alone=alone) for r in g.rollouts] for g in groups]

    def _score(self, rollout: Rollout, value: float, spread: float, *, alone: bool) -> Score:
        cut = self.unfinished if rollout.finish != "stop" else 0.0
        parts = {"model": value, "unfinished": -cut} | ({} if alone else {"disagreement": spread})
        return Score(value - self.caution * spread - cut, parts)


def raw_scores(learner: AnyLearner, samples: Sequence[Sample], tokens: int = TOKENS) -> Tensor:
    """[N, K] what the K heads of a reward model say of N answers, at least one, each of another id; float64.  tokens: of a batch."""
    batches = pack(samples, tokens=max([tokens, *(len(s.tokens) for s in samples)]), share=True)
    said = learner.forward(batches, frozenset({"score"}))
    found = {batch.ids[s]: out.get("score")[s].reshape(-1).tolist() for batch, out in zip(batches, said, strict=True) for s in batch.samples()}
    return torch.tensor([found[s.id] for s in samples], dtype=torch.float64)


def _readable(reads: Sequence[Sample | str], faults: Sequence[str]) -> list[Sample]:
    """The samples of the answers that every model can read."""
    return [read for read, fault in zip(reads, faults, strict=True) if not fault and isinstance(read, Sample)]
