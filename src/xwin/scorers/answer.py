"""Verifiable answers: extract the final answer, compare it with the right one. 1 or 0, no partial credit.

What counts as the final answer, the surest mark first: what follows the last "####", the last \\boxed{}, what follows "the answer is" (or
"Answer:"); with take: any, else the last number, choice or formula of the text. How it is compared follows from the right answer:

    a number      as fractions: whole numbers exactly, others up to `tolerance`. Thousands commas, signs, currency, percent (50 %, 50 and 0.5 are
                  taken for each other) and units in words do not matter. What is given must be a number: an unevaluated "5 + 3" or "6/3" is
                  no answer
    A to E        the same letter, and no other beside it
    words         the same words, case and punctuation aside; letters under an operator are no words
    else          LaTeX, symbolically equal, by math-verify: an unevaluated form of the right answer passes

An answer that was cut by the length limit is 0: it is not finished. So is one in which no answer is found, and a comparison that takes too
long; the note says which.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias

from annotated_types import Ge, Gt

from xwin.data.conversation import Conversation
from xwin.data.rollout import Group, Rollout, Score
from xwin.errors import DataError, MissingExtra
from xwin.scorers._final import final, last_choice, last_math, whole
from xwin.scorers._numbers import equal, last_of, plain, quantity
from xwin.scorers._workers import Reply, Workers
from xwin.scorers.base import Scorer, ScorerKind, Workshop

Verdict: TypeAlias = tuple[bool | None, str]
"""(right, or None when it takes algebra to know; why)."""

LETTER = re.compile(r"\(?([A-Ea-e])\)?\.?")
# "a" before another word is an article, unless the word goes on about the choice.
NO_ARTICLE = r"(?:[B-Eb-e]|[Aa](?!\s+(?!(?:because|since|as|is|for|or|and)\b)\w))(?![\w'\u2019])"
LEADING_LETTER = re.compile(rf"^\W*(?:(?:option|choice)\W+)?\(?({NO_ARTICLE})", re.IGNORECASE)
OTHER_LETTER = re.compile(rf"(?<![\w'])\(?([A-E])\)?(?![\w'])|(?:\b(?:or|and)\b|[,/&])\s*\(?({NO_ARTICLE})")
LETTERS = r"[A-Za-z]+(?:['\u2019][A-Za-z]+)*"
# A hyphen joins words when one of them has two letters or more: "X-ray" is a word, "x-y" a difference.
WORDS = re.compile(rf"(?=.*[A-Za-z]{{2}}){LETTERS}(?:(?: +|(?<=[A-Za-z]{{2}})-|-(?=[A-Za-z]{{2}})){LETTERS})*")
WORD_OR_SIGN = re.compile(r"\w+|[+/=^<>\\]")


def reference(prompt: Conversation) -> str:
    """The right answer: `meta["answer"]` (of GSM8K's form "... #### 42", what follows the mark), else the answer of `meta["task"]`.

    Raises:
        DataError: the prompt holds none; names the prompt.
    """
    task = prompt.meta.get("task")
    found = prompt.meta.get("answer", task.get("answer") if isinstance(task, dict) else None)
    if isinstance(found, bool) or not isinstance(found, str | int | float) or not str(found).strip():
        raise DataError(f"has no right answer in meta: {found!r}", f"prompt {prompt.id}", 'each row needs "answer": "42"')
    return str(found).rpartition("####")[2].strip()


def judge(right: str, text: str, *, marked_only: bool, tolerance: float) -> Verdict:
    """Whether `text` gives the right answer, as the module's docstring says.

    Args:
        right: the right answer alone.
        text: the whole reply.
        marked_only: whether an answer without a mark counts as none.
        tolerance: relative difference of equal numbers.
    """
    compare, fallback = _comparison(right, tolerance)
    given = final(text, None if marked_only else fallback)
    if given is None or not given.strip():
        return False, "no final answer found"
    return compare(right, given)


def vote(right: str, text: str) -> str | None:
    """The final answer of a reply in a form that is equal for equal answers; None when it gives none.

    Example: vote("1/2", "So the answer is 0.50.") and vote("1/2", "#### 1/2") are both "1/2"

    Args:
        right: the right answer: whether a number, a choice or words are looked for.
        text: the whole reply.
    """
    given = final(text, _comparison(right, 0.0)[1])
    if given is None or not given.strip():
        return None
    if LETTER.fullmatch(right):
        lead = LEADING_LETTER.match(given)
        return lead[1].upper() if lead else given.strip().casefold()
    found = quantity(given)
    if found is not None:
        return f"{found.value}{'%' * found.percent}"
    return (_said(given) if WORDS.fullmatch(right) else "") or _bare(given)


def _comparison(right: str, tolerance: float) -> tuple[Callable[[str, str], Verdict], Callable[[str], str | None]]:
    if LETTER.fullmatch(right):
        return _same_letter, last_choice
    if quantity(right) is not None:
        return (lambda a, b: _same_number(a, b, tolerance)), last_of
    if WORDS.fullmatch(right):
        return _same_words, whole
    return _same_formula, last_math


def _same_letter(right: str, given: str) -> Verdict:
    wanted = right.strip("(). ").upper()
    lead = LEADING_LETTER.match(given)
    if lead is None:
        return False, f"'{given}' is not a choice"
    chosen = lead[1].upper()
    others = {(match[1] or match[2]).upper() for match in OTHER_LETTER.finditer(given)} - {chosen}
    if others:
        return False, f"several choices: {', '.join(sorted(others | {chosen}))}"
    return chosen == wanted, f"{chosen}, right is {wanted}"


def _same_number(right: str, given: str, tolerance: float) -> Verdict:
    wanted, found = quantity(right), quantity(given)
    assert wanted is not None
    if found is None:
        return False, f"'{given}' is not one number"
    return equal(wanted, found, tolerance), f"{given}, right is {right}"


def _same_words(right: str, given: str) -> Verdict:
    return _said(given) == _said(right), f"{given}, right is {right}"


def _said(text: str) -> str:
    """The words of a text, and the signs that make it none; case, punctuation and hyphens do not count."""
    return " ".join(WORD_OR_SIGN.findall(plain(text).casefold()))


def _same_formula(right: str, given: str) -> Verdict:
    said, wanted = (_bare(text) for text in (given, right))
    return (True if said == wanted else None), f"{given}, right is {right}"


def _bare(text: str) -> str:
    """A formula without what is never read: dollars, spaces, sizes of brackets, the full stop behind it."""
    text = re.sub(r"\\left|\\right|\\[,!;: ]|[\s$]", "", text).rstrip(".")
    return re.sub(r"\\[dt]frac", r"\\frac", text)


class Answer(ScorerKind):
    """1 where the final answer is the prompt's right one, 0 where it is not, is missing, or was cut."""

    take: Literal["any", "marked"] = "any"
    """Whether the last number, choice or formula counts where no answer is marked by ####, \\boxed{} or "the answer is"."""

    tolerance: Annotated[float, Ge(0)] = 1e-6
    """Relative difference of two numbers, not both whole, that are still the same, unitless."""

    seconds: Annotated[float, Gt(0)] = 5.0
    """Time limit of a symbolic comparison; one that takes longer is 0."""

    processes: Annotated[int, Ge(1)] = 2
    """Processes that compare symbolically, started when the first formula comes."""

    def build(self, workshop: Workshop) -> Scorer:
        """Reads each prompt's `meta["answer"]`."""
        return AnswerScorer(self, Workers("xwin.scorers._latex:same", self.seconds, self.processes))


@dataclass(frozen=True)
class AnswerScorer:
    """See Scorer."""

    settings: Answer
    workers: Workers

    def score(self, groups: Sequence[Group]) -> list[list[Score]]:
        """Values are 1.0 or 0.0.

        Raises:
            DataError: a prompt has no right answer; names it.
            MissingExtra: a right answer is a formula, and math-verify is not installed.
        """
        rows = [[self._verdict(reference(g.prompt), *pair) for pair in zip(g.rollouts, g.texts, strict=True)] for g in groups]
        asked = [(g, k) for g, row in enumerate(rows) for k, (passed, _) in enumerate(row) if passed is None]
        replies = self._symbolic([self._pair(groups[g], k) for g, k in asked])
        for (g, k), reply in zip(asked, replies, strict=True):
            note = rows[g][k][1]
            rows[g][k] = (reply.value is True, f"{note}: {reply.error}" if reply.error else note)
        return [[Score(float(bool(passed)), note=note) for passed, note in row] for row in rows]

    def _verdict(self, right: str, rollout: Rollout, text: str) -> Verdict:
        if rollout.finish != "stop":
            return False, "the answer was cut before its end"
        return judge(right, text, marked_only=self.settings.take == "marked", tolerance=self.settings.tolerance)

    def _pair(self, group: Group, k: int) -> list[str]:
        """[right, given] without their dollars."""
        given = final(group.texts[k], None if self.settings.take == "marked" else last_math) or ""
        return [text.strip().strip("$").strip() for text in (reference(group.prompt), given)]

    def _symbolic(self, pairs: Sequence[list[str]]) -> list[Reply]:
        if pairs and importlib.util.find_spec("math_verify") is None:
            raise MissingExtra("math_verify", "math")
        return self.workers.ask(pairs)
