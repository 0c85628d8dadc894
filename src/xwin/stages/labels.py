"""Answers of a policy, each labelled right or wrong by a scorer: what an outcome reward model and KTO learn from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, ClassVar

from annotated_types import Ge

from xwin.data.conversation import Conversation, conversation_to_json, write_jsonl
from xwin.data.rollout import Group
from xwin.errors import DataError
from xwin.run.artifacts import Artifact, Conversations
from xwin.stages._sampling import Asking
from xwin.stages._selection import whole
from xwin.stages._work import Amount, Phase

if TYPE_CHECKING:
    from xwin.stages._context import Context


class Labels(Asking):
    """Samples n answers to every prompt and labels each by its score."""

    n: Annotated[int, Ge(1)] = 8
    """Answers per prompt."""

    above: float = 0.5
    """An answer that scores more than this is labelled true, any other false; reward units of the scorer."""

    makes: ClassVar[Mapping[str, type[Artifact]]] = {"conversations": Conversations}

    def summary(self) -> str:
        return f"{self.n} answers a prompt, right above {self.above:g}"

    def work(self) -> Sequence[Phase]:
        return (self.asking(self.n),)

    def gives(self, output: str, amount: Callable[[str], Amount | None]) -> Amount | None:
        return self.made(amount, self.n)

    def run(self, ctx: Context) -> None:
        groups = self.ask(ctx, self.n)
        rows = [row for group in groups for row in labelled(group, self.above)]
        right = sum(row.label is True for row in rows)
        if not rows:
            raise DataError("each answer is empty, cut or without a score", ctx.name, "raise sampling.max_tokens, or look at rollouts.jsonl")
        if right in {0, len(rows)}:
            what = f"all {len(rows)} answers are labelled {'right' if right else 'wrong'}, so nothing can be learned from the labels"
            raise DataError(what, f"{ctx.name}.above", "move `above`, raise n, or choose prompts that the policy sometimes solves")
        write_jsonl(ctx.out("conversations"), map(conversation_to_json, rows))
        ctx.metrics |= {"labelled": float(len(rows)), "labelled_right": right / len(rows)}


def labelled(group: Group, above: float) -> Iterator[Conversation]:
    """The different texts among the whole answers to a prompt, in order of samples, each with its label and score."""
    seen: set[str] = set()
    for k, (rollout, text) in enumerate(zip(group.rollouts, group.texts, strict=True)):
        if whole(group, k) and text not in seen and rollout.score is not None:
            seen.add(text)
            row = group.prompt.answered(text, score=rollout.score.value)
            yield replace(row, id=f"{row.id}/{k}", label=rollout.score.value > above)
