"""Checkable instructions: is the constraint that a prompt states kept by the answer? Pure code, no model, no data.

    family         parameter       kept when
    no_commas                      there is no comma, not even in a number ("1,234") or of another script
    word_limit     words: int      there are at most that many words
    include_word   word: str       the word occurs as a whole word, in any case
    bullets        count: int      exactly that many lines start with "* " (indented or not), each says something, no two the same
    end_phrase     phrase: str     the text ends with exactly this phrase, trailing white space ignored
    lower_case                     no letter is a capital

Whatever the family, the answer must say something: at least three different words of letters (for end_phrase: before the phrase).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from xwin.data.conversation import Conversation
from xwin.errors import DataError
from xwin.scorers._checked import Checked, stated, words
from xwin.scorers.base import Scorer, ScorerKind, Workshop

COMMAS = ",\u060c\u201a\u3001\ufe10\ufe11\ufe50\ufe51\uff0c\uff64"
"""The comma, its Arabic, ideographic, small and full-width forms, and the low quotation mark that looks like one."""

LEAST_WORDS = 3

BULLET = re.compile(r"^[ \t]*\*(?:[ \t]+(?P<text>.*))?$", re.MULTILINE)

Verdict = tuple[bool, str]


def check(constraint: Mapping[str, Any], text: str) -> Verdict:
    """Whether `text` keeps the constraint, and why or why not.

    Args:
        constraint: {"family": ..., and the parameter of the family}.
        text: the answer.

    Raises:
        DataError: the family is unknown or its parameter is missing.
    """
    family = stated(constraint, "family", str)
    if family not in CHECKERS:
        raise DataError(f"unknown constraint '{family}'", fix=f"one of: {', '.join(CHECKERS)}")
    verdict = CHECKERS[family](constraint, text)
    body = text.rstrip().removesuffix(constraint["phrase"]) if family == "end_phrase" else text
    return verdict if _says_something(body) else (False, f"fewer than {LEAST_WORDS} different words of letters")


def _says_something(text: str) -> bool:
    return len({word.casefold() for word in words(text) if any(c.isalpha() for c in word)}) >= LEAST_WORDS


def _no_commas(_: Mapping[str, Any], text: str) -> Verdict:
    found = sum(c in COMMAS for c in text)
    return found == 0, "no comma" if found == 0 else f"commas: {found}"


def _word_limit(constraint: Mapping[str, Any], text: str) -> Verdict:
    limit, count = stated(constraint, "words", int), len(words(text))
    return count <= limit, f"{count} words, at most {limit} allowed"


def _include_word(constraint: Mapping[str, Any], text: str) -> Verdict:
    word = stated(constraint, "word", str)
    found = re.search(rf"(?<![^\W_]){re.escape(word)}(?![^\W_])", text, re.IGNORECASE) is not None
    return found, f"'{word}' {'occurs' if found else 'does not occur'}"


def _bullets(constraint: Mapping[str, Any], text: str) -> Verdict:
    wanted = stated(constraint, "count", int)
    contents = [" ".join(words(match["text"] or "")).casefold() for match in BULLET.finditer(text)]
    if len(contents) != wanted:
        return False, f"{len(contents)} bullets, not {wanted}"
    if not all(any(c.isalpha() for c in content) for content in contents):
        return False, "a bullet says nothing"
    if len(set(contents)) < wanted:
        return False, "two bullets are the same"
    return True, f"{wanted} bullets"


def _end_phrase(constraint: Mapping[str, Any], text: str) -> Verdict:
    phrase = stated(constraint, "phrase", str)
    before = text.rstrip().removesuffix(phrase)
    kept = text.rstrip() != before and not before[-1:].isalnum()
    return kept, f"{'ends' if kept else 'does not end'} with '{phrase}'"


def _lower_case(_: Mapping[str, Any], text: str) -> Verdict:
    capital = next((c for c in text if c.isupper() or c.istitle()), None)
    return capital is None, "no capital letter" if capital is None else f"capital letter '{capital}'"


CHECKERS: Mapping[str, Callable[[Mapping[str, Any], str], Verdict]] = {
    "no_commas": _no_commas,
    "word_limit": _word_limit,
    "include_word": _include_word,
    "bullets": _bullets,
    "end_phrase": _end_phrase,
    "lower_case": _lower_case,
}


def check_prompt(prompt: Conversation, text: str) -> Verdict:
    """`check` of the constraint in the prompt's `meta["constraint"]`.

    Raises:
        DataError: the prompt states none, or one that is unknown or incomplete.
    """
    return check(stated(prompt.meta, "constraint", dict), text)


class Constraint(ScorerKind):
    """1 where the answer keeps the constraint that the prompt states, 0 where it does not or was cut."""

    def build(self, workshop: Workshop) -> Scorer:
        """Reads each prompt's `meta["constraint"]`."""
        return Checked(check_prompt)
