"""One model's outputs judged against another's: labels as alpaca_eval keeps them, and an account of how they came about."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from xwin.run.statistics import Interval, clustered
from xwin.scorers._asking import quiet
from xwin.scorers._pairwise import Judgement, Judging, Pair
from xwin.suites._alpaca_labels import Label, Labels, Reference
from xwin.suites._outputs import Outputs


@dataclass(frozen=True, slots=True)
class Account:
    """How the judgements of many pairs came about."""

    n_pairs: int
    n_equal: int
    """Equal outputs: a draw that nobody was asked about."""
    n_drawn: int
    """Labels that chance gave, in the judge's stead."""
    n_questions: int
    """More than the pairs that differ where both orders are asked."""
    n_unread: int
    """Pairs without a label: an answer could not be read, however often it was asked for."""
    n_refused: int
    """Of them, those whose question was refused: too long, filtered."""
    n_repeated: int
    """Questions that were asked more than once."""
    first_preferred: Interval | None
    """Mean preference for the output shown first, 0 to 1, over pairs: one half for a judge without position bias."""
    consistent: Interval | None
    """Of pairs shown in both orders, the share with the same winner; None where none was."""
    usd: float
    """Price of all answers, US dollars; 0 where no prices were given."""
    usd_now: float
    """Of it, what was spent now: the rest was kept from before."""
    seconds: float
    """Waiting for answers, now and before, summed over questions."""
    tokens: int
    """Read and written by the judge."""
    examples: tuple[str, ...]
    """Answers that could not be read, or why there is none."""


@dataclass(frozen=True, slots=True)
class Judged:
    """Pairs and their judgements, in order."""

    pairs: tuple[Pair, ...]
    judgements: tuple[Judgement, ...]


def judged_pairs(reference: Outputs, model: Outputs, judge: Judging, told: Callable[[int], None] = quiet) -> Judged:
    """Every output of `model` against the reference's, on the instructions of `reference` that `model` has too."""
    pairs = tuple(Pair(text, output, model.texts[text]) for text, output in reference.texts.items() if text in model.texts)
    return Judged(pairs, tuple(judge.judge(pairs, told)))


def labels_of(judged: Judged, model: str, source: str) -> Labels:
    """What `suites._alpaca_win_rate.standing` turns into a win rate."""
    rows = zip(judged.pairs, judged.judgements, strict=True)
    made = (
        Label(pair.instruction, judgement.preference, len(pair.output_2), Reference.of(pair.output_1), f"{source}:{number}")
        for number, (pair, judgement) in enumerate(rows, 1)
    )
    return Labels(model, source, tuple(made))


def annotation_rows(judged: Judged, reference: str, model: str, annotator: str) -> list[dict[str, Any]]:
    """Rows as in alpaca_eval's annotations.json, which `xwin eval alpaca` reads. Where both orders were asked, `raw_completion` is a list."""
    out = []
    for pair, judgement in zip(judged.pairs, judged.judgements, strict=True):
        last = [asked.answer.replies[-1] for asked in judgement.asked]
        raw = [{"text": r.text, "top_logprobs": dict(r.top_logprobs)} if r.top_logprobs else r.text for r in last]
        out.append(
            {
                "instruction": pair.instruction,
                "output_1": pair.output_1,
                "generator_1": reference,
                "output_2": pair.output_2,
                "generator_2": model,
                "annotator": annotator,
                "preference": judgement.preference,
                "is_switched": [asked.switched for asked in judgement.asked],
                "raw_completion": raw[0] if len(raw) == 1 else raw or None,
                "price_per_example": sum(r.usd for asked in judgement.asked for r in asked.answer.replies),
                "time_per_example": sum(r.seconds for asked in judgement.asked for r in asked.answer.replies),
            }
        )
    return out


def account(judged: Judged) -> Account:
    """How they came about; a pair that is there twice was asked about once and counts once."""
    distinct = dict(zip(judged.pairs, judged.judgements, strict=True))
    questions = [asked for judgement in distinct.values() for asked in judgement.asked]
    replies = [reply for asked in questions for reply in asked.answer.replies]
    shown = [[2 - a.answer.value for a in j.asked if a.answer.value is not None] for j in distinct.values()]
    unread = [asked for asked in questions if asked.answer.value is None]
    return Account(
        n_pairs=len(judged.pairs),
        n_equal=sum(pair.output_1 == pair.output_2 for pair in judged.pairs),
        n_drawn=sum(judgement.drawn for judgement in judged.judgements),
        n_questions=len(questions),
        n_unread=sum(judgement.preference is None for judgement in judged.judgements),
        n_refused=sum(asked.answer.refused for asked in unread),
        n_repeated=sum(len(asked.answer.replies) > 1 for asked in questions),
        first_preferred=_over_pairs(shown),
        consistent=_consistent(distinct.values()),
        usd=sum(r.usd for r in replies),
        usd_now=sum(r.usd for r in replies if not r.kept),
        seconds=sum(r.seconds for r in replies),
        tokens=sum(r.tokens + r.prompt_tokens for r in replies),
        examples=tuple(dict.fromkeys([*(asked.answer.said for asked in unread), *(j.note for j in distinct.values() if j.note)])),
    )


def _over_pairs(groups: Iterable[Sequence[float]]) -> Interval | None:
    """The mean over all of them; None where there is nothing."""
    found = clustered([group for group in groups if group])
    return found if found.n else None


def _consistent(judgements: Iterable[Judgement]) -> Interval | None:
    """Shown in both orders, the same output wins where the two displayed preferences lie on different sides of the middle, or both on it."""
    both = [[a.answer.value for a in j.asked] for j in judgements if len(j.asked) > 1]
    sides = [(first - 1.5, second - 1.5) for first, second in both if first is not None and second is not None]
    return _over_pairs([float(a * b < 0 or a == b == 0)] for a, b in sides)
