"""Rejection sampling: n answers to every prompt, the best one kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from annotated_types import Ge

from xwin.data.conversation import conversation_to_json, write_jsonl
from xwin.data.rollout import Group
from xwin.engines.base import EngineKind, Sampling
from xwin.engines.local import Local
from xwin.errors import DataError
from xwin.models.hub import TemplateName
from xwin.run.artifacts import Artifact, Conversations, ConversationsRef, ModelRef
from xwin.scorers._outcome import has_failed
from xwin.scorers.base import ScorerKind
from xwin.stages._sampling import judged, sample, tell_failures
from xwin.stages.base import Stage

if TYPE_CHECKING:
    from xwin.stages._context import Context


class BestOfN(Stage):
    """Samples n answers to every prompt, scores them, and keeps the best as a conversation."""

    policy: ModelRef
    """Who answers."""

    template: Literal["model"] | TemplateName = "model"
    """How prompts are rendered: as the model was taught or its entry says, in a published template, or in the tokenizer's own."""

    prompts: ConversationsRef
    """What is asked: conversations without their last answer."""

    limit: Annotated[int, Ge(1)] | None = None
    """Prompts used, from the first on; null = all."""

    scorer: ScorerKind
    """Who judges."""

    n: Annotated[int, Ge(1)] = 8
    """Answers per prompt."""

    above: float | None = None
    """Only answers that score more than this are kept, reward units of the scorer; null = no bar."""

    most: Annotated[int, Ge(1)] = 1
    """Kept answers per prompt, at most; different texts only."""

    sampling: Sampling = Sampling()
    """How answers are drawn."""

    engine: EngineKind = Local()
    """What writes them."""

    makes: ClassVar[Mapping[str, type[Artifact]]] = {"conversations": Conversations}

    def summary(self) -> str:
        return f"{self.n} answers a prompt, at most {self.most} kept"

    def run(self, ctx: Context) -> None:
        template = ctx.template(self.policy, None if self.template == "model" else self.template)
        engine = ctx.engine(self.engine, self.policy, template)
        groups = sample(ctx, engine, template, ctx.conversations(self.prompts)[: self.limit], self.sampling, self.n)
        engine.close()
        groups = judged(groups, ctx.scorer(self.scorer, self.policy))
        tell_failures(ctx, groups)
        kept = {group.prompt.id: chosen(group, above=self.above, most=self.most) for group in groups}
        rows = [group.prompt.answered(group.texts[i], score=value) for group in groups for i, value in kept[group.prompt.id]]
        if not rows:
            raise DataError("no answer passed the bar", f"{ctx.name}.above", "lower `above` or raise `n`")
        write_jsonl(ctx.out("conversations"), (conversation_to_json(row) for row in rows))
        ctx.metrics |= {
            "accepted": len(rows) / sum(len(g.rollouts) for g in groups),
            "solved": sum(1 for k in kept.values() if k) / len(groups),
            "length": sum(len(r.completion) for g in groups for r in g.rollouts) / sum(len(g.rollouts) for g in groups),
        }


def chosen(group: Group, *, above: float | None, most: int) -> list[tuple[int, float]]:
    """(index, score) of the answers kept: best first, different texts, none empty, cut or unscored. Ties go to the earlier sample."""
    order = sorted(range(len(group.rollouts)), key=lambda i: (-_value(group, i), i))
    kept: list[tuple[int, float]] = []
    seen: set[str] = set()
    for i in order:
        whole = group.texts[i].strip() and group.rollouts[i].finish == "stop" and not has_failed(group.rollouts[i].score)
        if whole and group.texts[i] not in seen and (above is None or _value(group, i) > above) and len(kept) < most:
            kept.append((i, _value(group, i)))
            seen.add(group.texts[i])
    return kept


def _value(group: Group, index: int) -> float:
    score = group.rollouts[index].score
    if score is None:
        raise DataError("has not been scored", f"prompt {group.prompt.id}")
    return score.value
