"""Rejection sampling: n answers to every prompt, the best one kept, or the best few, or those that pass a bar."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar

from annotated_types import Ge

from xwin.data.conversation import conversation_to_json, write_jsonl
from xwin.errors import DataError
from xwin.run.artifacts import Artifact, Conversations
from xwin.stages._sampling import Asking
from xwin.stages._selection import accounted, chosen
from xwin.stages._work import Amount, Phase

if TYPE_CHECKING:
    from xwin.stages._context import Context


class BestOfN(Asking):
    """Samples n answers to every prompt, scores them, and keeps the best as a conversation."""

    n: Annotated[int, Ge(1)] = 8
    """Answers per prompt."""

    above: float | None = None
    """Only answers that score more than this are kept, reward units of the scorer; null = no bar."""

    most: Annotated[int, Ge(1)] = 1
    """Kept answers per prompt, at most; different texts only."""

    makes: ClassVar[Mapping[str, type[Artifact]]] = {"conversations": Conversations}

    def summary(self) -> str:
        return f"{self.n} answers a prompt, at most {self.most} kept"

    def work(self) -> Sequence[Phase]:
        return (self.asking(self.n),)

    def gives(self, output: str, amount: Callable[[str], Amount | None]) -> Amount | None:
        return self.made(amount, min(self.most, self.n))

    def run(self, ctx: Context) -> None:
        groups = self.ask(ctx, self.n)
        kept = [chosen(group, above=self.above, most=self.most) for group in groups]
        rows = [g.prompt.answered(g.texts[one.place], score=one.score) for g, some in zip(groups, kept, strict=True) for one in some]
        if not rows:
            raise DataError("no answer passed the bar", f"{ctx.name}.above", "lower `above` or raise `n`")
        write_jsonl(ctx.out("conversations"), (conversation_to_json(row) for row in rows))
        ctx.metrics |= accounted(groups, kept, above=self.above)
