"""Every model's answers against the reference's, by a judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from xwin.data.conversation import Conversation
from xwin.scorers._pairwise import Pair, instruction_of
from xwin.scorers.judge import Judge
from xwin.suites._judged_pairs import Judged, account
from xwin.suites.base import Answer

if TYPE_CHECKING:
    from xwin.stages._context import Context


def judged_answers(
    ctx: Context, judge: Judge, prompts: Sequence[Conversation], answers: Mapping[str, Sequence[Answer]], reference: str
) -> dict[str, Sequence[Answer]]:
    """The answers with `judged` filled in, but for the reference's own.

    What the judge said is kept outside the run, so a killed stage asks nothing twice. Its price, and how much of what it said could not be read,
    become metrics.
    """
    asked = [instruction_of(prompt.prompt) for prompt in prompts]
    models = [model for model in answers if model != reference]
    pairs = [Pair(q, b.text, a.text) for model in models for q, a, b in zip(asked, answers[model], answers[reference], strict=True)]
    asking = judge.over(ctx)
    with ctx.asking("judge", len(pairs) * (1 + (judge.orders == "both"))) as told:
        judgements = asking.judge(pairs, told)
    found = account(Judged(tuple(pairs), tuple(judgements)))
    ctx.metrics |= {"judge_usd": found.usd, "judge_unread": float(found.n_unread)}
    if found.n_unread:
        ctx.console.message(f"{ctx.name}: {found.n_unread} of {len(pairs)} judgements could not be read; the first: {found.examples[0][:160]!r}")
    shares = iter(None if j.preference is None else j.preference - 1 for j in judgements)
    return {model: [replace(a, judged=next(shares)) for a in row] if model != reference else row for model, row in answers.items()}
