"""A reward model as a judge of pairs: how likely it thinks the second output is to be preferred."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from xwin.data.conversation import Conversation, Message
from xwin.data.reading import Reading
from xwin.data.rollout import Group, Rollout, Score
from xwin.data.template import Template
from xwin.learning.learner import AnyLearner
from xwin.models.heads import RewardStats
from xwin.scorers._asking import quiet
from xwin.scorers._outcome import has_failed
from xwin.scorers._pairwise import EQUAL, Judgement, Pair
from xwin.scorers.reward_model import Judge, RewardModelScorer

BLOCK = 16
"""Pairs that are scored together."""


@dataclass(frozen=True)
class RewardJudge:
    """See scorers._pairwise.Judging. No order, no questions: P(output_2 is better) = sigmoid(r_2 - r_1).

    Bradley and Terry's model, which the rewards were trained for (arXiv:2203.02155, equation 1); r in the reward model's own units. A pair with an
    output that is longer than the model can read has no label.
    """

    name: str
    learner: AnyLearner
    template: Template

    def judge(self, pairs: Sequence[Pair], told: Callable[[int], None] = quiet) -> list[Judgement]:
        """See Judging."""
        reading = Reading(self.template, by_text=False, context=self.learner.about.context)  # the texts are rendered here
        scorer = RewardModelScorer((Judge(self.learner, reading, RewardStats(), "spread"),), caution=0.0, unfinished=0.0)
        found: dict[Pair, Judgement] = {}
        distinct = [pair for pair in dict.fromkeys(pairs) if pair.output_1 != pair.output_2]
        for start in range(0, len(distinct), BLOCK):
            block = distinct[start : start + BLOCK]
            for pair, scores in zip(block, scorer.score([self._group(p, start + i) for i, p in enumerate(block)]), strict=True):
                found[pair] = _judgement(*scores)
            told(len(block))
        return [found.get(pair) or Judgement(EQUAL) for pair in pairs]

    def _group(self, pair: Pair, number: int) -> Group:
        asked = (Message("user", pair.instruction),)
        prompt = self.template.prompt(asked)
        rollouts = []
        for k, text in enumerate((pair.output_1, pair.output_2)):
            whole = self.template.render((*asked, Message("assistant", text)))
            answer = whole.tokens[len(prompt) : len(whole.mask) - whole.mask[::-1].index(True)]
            rollouts.append(Rollout(str(number), k, 0, prompt, answer, (0.0,) * len(answer), "stop"))
        return Group(Conversation(str(number), asked), tuple(rollouts), (pair.output_1, pair.output_2))


def _judgement(first: Score, second: Score) -> Judgement:
    unread = next((score.note for score in (first, second) if has_failed(score)), None)
    return Judgement(1 + _sigmoid(second.value - first.value)) if unread is None else Judgement(None, note=f"an output {unread}")


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
