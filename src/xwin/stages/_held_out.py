"""Looks at what the policy answers to prompts that it is not trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from xwin.data.conversation import Conversation
from xwin.data.rollout import Group
from xwin.engines.base import Sampling
from xwin.run.hacking import Look, Looks, after, mean, mix, signs
from xwin.scorers._outcome import ScorerError, has_failed
from xwin.scorers.base import Scorer
from xwin.stages._sampling import Writer, judged

if TYPE_CHECKING:
    from xwin.stages._context import Context


@dataclass(frozen=True, slots=True)
class Seen:
    """What a look gave."""

    metrics: Mapping[str, float]
    looks: Mapping[str, Any] | None
    """`Looks` as JSON, for the next look and the checkpoint; None = nothing was seen yet."""


@dataclass(frozen=True)
class HeldOut:
    """Validation prompts, and who judges the answers to them beside the scorer that is trained on."""

    prompts: Sequence[Conversation]
    gold: Scorer | None

    def look(self, ctx: Context, writer: Writer, sampling: Sampling, before: Mapping[str, Any] | None, kl: float | None) -> Seen:
        """One answer to each prompt by the weights that the engine holds; answers that could not be scored are left out and said.

        Args:
            ctx: of the stage.
            writer: who answers.
            sampling: as in training.
            before: `looks` of the last look; None = there was none.
            kl: of the last round, nats per answer; None = not measured.

        Raises:
            ScorerError: no answer could be scored.
        """
        groups = writer.write(self.prompts, sampling, seed=ctx.seed("validation"), n=1)
        length = sum(len(g.rollouts[0].completion) for g in groups) / len(groups)
        gold = values(ctx, judged(groups, self.gold), "gold") if self.gold else []
        now = Look(values(ctx, groups, "scorer"), gold, length, mix([g.texts[0] for g in groups]), kl)
        earlier = Looks.from_json(before) if before else None
        metrics = {"validation_reward": mean(now.score), "validation_length": length, **signs(earlier, now)}
        if gold:
            metrics["validation_gold"] = mean(gold)
        return Seen(metrics, after(earlier, now).to_json())


def values(ctx: Context, groups: Sequence[Group], who: str) -> list[float | None]:
    """The score of each prompt's answer, None where there is none, which is counted and said.

    Raises:
        ScorerError: there is none at all.
    """
    found = [score.value if (score := g.rollouts[0].score) and not has_failed(score) else None for g in groups]
    failed = found.count(None)
    if failed == len(found):
        raise ScorerError("no answer to a validation prompt could be scored", f"{ctx.name}.{who}", "mend the scorer")
    if failed:
        ctx.metrics["validation_failed"] = float(failed)
        ctx.console.message(f"{ctx.name}: {failed} of {len(found)} validation answers could not be scored by {ctx.name}.{who}")
    return found
