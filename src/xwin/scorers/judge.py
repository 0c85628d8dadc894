"""A judge as a scorer: an answer's value is the share of the other answers to its prompt that it beats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

from annotated_types import Ge

from xwin.data.rollout import Group, Score
from xwin.engines.base import EngineKind
from xwin.run.artifacts import ModelRef
from xwin.scorers._outcome import failed
from xwin.scorers._pairwise import ASKINGS, PROMPTS, ChatJudge, Judgement, Orders, Pair, Style, instruction_of
from xwin.scorers.base import Acquainted, ScorerKind, Workshop


class Judge(ScorerKind):
    """Compares every two answers to a prompt: n (n - 1) / 2 questions for n answers. Answers are kept, so a killed stage asks none twice."""

    engine: EngineKind
    """Who is asked: `{kind: remote, model: ...}`, or an engine of ours over `model`."""

    model: ModelRef | None = None
    """The judge, where the engine runs one of ours; null = the engine knows."""

    style: Style = "ranking"
    """ranking: the judge writes who is first (AlpacaEval 1); token: the probabilities of its one-letter answer count (AlpacaEval 2)."""

    orders: Orders = "one"
    """one: the order of the two is drawn per prompt, as AlpacaEval does; both: each pair is shown in both orders, and the mean counts."""

    retries: Annotated[int, Ge(0)] = 2
    """How often a question is repeated when its answer cannot be read."""

    def build(self, workshop: Workshop) -> JudgeScorer:
        return JudgeScorer(self.over(workshop))

    def over(self, workshop: Acquainted) -> ChatJudge:
        """The judge that these settings describe."""
        name = str(getattr(self.engine, "model", None) or self.model)
        asking = replace(ASKINGS[self.style], retries=self.retries)
        return ChatJudge(name, workshop.chat(self.engine, self.model), asking, PROMPTS[self.style], self.orders)


@dataclass(frozen=True)
class JudgeScorer:
    """See Scorer."""

    judge: ChatJudge

    def score(self, groups: Sequence[Group]) -> list[list[Score]]:
        """See Scorer. 0 loses to all, 1 beats all; an answer without siblings is 0.5; one without a readable judgement has failed."""
        pairs = [pair for group in groups for pair in _pairs(group)]
        judged = iter(self.judge.judge(pairs))
        return [_scores(len(group.texts), [next(judged) for _ in _pairs(group)]) for group in groups]


def _pairs(group: Group) -> list[Pair]:
    """Every two answers, in the order (0, 1), (0, 2), ... (1, 2), ..."""
    asked = instruction_of(group.prompt.prompt)
    return [Pair(asked, first, second) for i, first in enumerate(group.texts) for second in group.texts[i + 1 :]]


def _scores(n: int, judged: Sequence[Judgement]) -> list[Score]:
    shares: list[list[float]] = [[] for _ in range(n)]
    places = [(i, j) for i in range(n) for j in range(i + 1, n)]
    for (first, second), judgement in zip(places, judged, strict=True):
        if judgement.preference is not None:
            shares[second].append(judgement.preference - 1)
            shares[first].append(2 - judgement.preference)
    if n == 1:
        return [Score(0.5, note="no other answer to compare with")]
    return [Score(sum(mine) / len(mine)) if mine else failed("the judge's answers could not be read") for mine in shares]
