"""Preferences from a policy's own samples, labelled by a scorer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar

from annotated_types import Ge

from xwin.data.conversation import Message, Preference, preference_to_json, write_jsonl
from xwin.data.rollout import Group
from xwin.errors import DataError
from xwin.run.artifacts import Artifact, Preferences
from xwin.scorers._outcome import has_failed
from xwin.seeds import permutation
from xwin.stages._sampling import Asking
from xwin.stages._selection import whole
from xwin.stages._work import Amount, Phase

if TYPE_CHECKING:
    from xwin.stages._context import Context


class Pairs(Asking):
    """Samples n answers to every prompt and pairs better with worse ones."""

    n: Annotated[int, Ge(2)] = 6
    """Answers per prompt."""

    most: Annotated[int, Ge(1)] = 3
    """Pairs per prompt, at most. Each answer is in one pair, so no prompt outweighs the others."""

    gap: Annotated[float, Ge(0)] = 0.0
    """Smallest difference of scores in a pair, exclusive, reward units of the scorer."""

    makes: ClassVar[Mapping[str, type[Artifact]]] = {"preferences": Preferences}

    def summary(self) -> str:
        return f"{self.n} answers a prompt, at most {self.most} pairs"

    def work(self) -> Sequence[Phase]:
        return (self.asking(self.n),)

    def gives(self, output: str, amount: Callable[[str], Amount | None]) -> Amount | None:
        return self.made(amount, min(self.most, self.n // 2), sides=2)

    def run(self, ctx: Context) -> None:
        groups = self.ask(ctx, self.n)
        rows = [pair for group in groups for pair in paired(group, most=self.most, gap=self.gap, seed=ctx.seed("pair", group.prompt.id))]
        if not rows:
            raise DataError("no prompt has answers of different scores", ctx.name, "raise n, or choose prompts that the policy sometimes solves")
        write_jsonl(ctx.out("preferences"), map(preference_to_json, rows))
        values = [r.score.value for g in groups for r in g.rollouts if r.score and not has_failed(r.score)]
        ctx.metrics |= {
            "pairs": float(len(rows)),
            "reward": sum(values) / len(values),
            "longer_wins": sum(len(p.chosen.text) > len(p.rejected.text) for p in rows) / len(rows),
        }


def paired(group: Group, *, most: int, gap: float, seed: int) -> list[Preference]:
    """Pairs of different texts whose scores differ by more than `gap`: the best with the worst, then the next; equal scores in random order.

    An answer is in one pair at most. Empty and cut answers are left out: a reward model must not earn its accuracy on the first, and the
    second would be shown to it with an end that was never written. So are those that could not be scored.
    """
    prompt = group.prompt
    values = [r.score.value if r.score else 0.0 for r in group.rollouts]
    order = [i for i in permutation(len(values), seed) if whole(group, i)]
    order.sort(key=lambda i: -values[i])  # stable: equal scores stay in random order
    pairs = []
    for better, worse in zip(order, reversed(order), strict=True):
        margin = values[better] - values[worse]
        if margin <= gap or len(pairs) == most:
            break
        if group.texts[better] != group.texts[worse]:
            both = (Message("assistant", group.texts[i]) for i in (better, worse))
            pairs.append(Preference(f"{prompt.id}/{len(pairs)}", prompt.prompt, *both, margin=margin, meta=dict(prompt.meta)))
    return pairs
