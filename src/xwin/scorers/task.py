"""Short-answer tasks: extract the one answer that a reply commits to, then compare it exactly. No partial credit.

What is extracted follows from the type of the right answer: an integer, yes or no, or the name of a weekday. The reply must be the answer and
little else: at most 12 words, and only one candidate of that type, so listing them all does not pass. An equation may be written out:
what comes after its last "=" is the reply.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from xwin.data.conversation import Conversation
from xwin.errors import DataError
from xwin.scorers._checked import Checked, stated, words
from xwin.scorers.base import Scorer, ScorerKind, Workshop

MOST_WORDS = 12

WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

# A minus belongs to the number unless it stands behind a digit, a letter or a closing bracket, where it subtracts or joins.
NUMBER = re.compile(r"(?P<sign>(?<![\w)\]])[-\u2212])?(?P<digits>\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?P<part>\.\d+)?")
YES_NO = re.compile(r"\b(?:yes|no)\b", re.IGNORECASE)
WEEKDAY = re.compile(rf"\b(?:{'|'.join(WEEKDAYS)})\b", re.IGNORECASE)


def check(task: Mapping[str, Any], text: str) -> tuple[bool, str]:
    """Whether `text` gives the right answer and nothing that competes with it, and why or why not.

    Args:
        task: {"family": name, "answer": the right answer: "-37", "Yes", "Friday"}.
        text: the reply.

    Raises:
        DataError: the task has no answer, or one of another type.
    """
    right = stated(task, "answer", str)
    wanted = candidates(right, right)
    if len(wanted) != 1:
        raise DataError(f"'{right}' is not an integer, yes, no or a weekday", fix="a task needs an answer of one of these types")
    if len(words(text)) > MOST_WORDS:
        return False, f"more than {MOST_WORDS} words: the answer alone was asked for"
    found = candidates(text.rpartition("=")[2], right)
    if not found:
        return False, "no answer found"
    if len(found) > 1:
        return False, f"several answers: {', '.join(sorted(found))}"
    return found == wanted, f"{''.join(found)}, right is {''.join(wanted)}"


def candidates(text: str, right: str) -> set[str]:
    """The different answers in `text` that are of the same type as `right`, in one spelling: "-1234", "yes", "friday"."""
    if NUMBER.fullmatch(right):
        return {_number(match) for match in NUMBER.finditer(text)}
    pattern = YES_NO if YES_NO.fullmatch(right) else WEEKDAY
    return {match[0].lower() for match in pattern.finditer(text)}


def _number(match: re.Match[str]) -> str:
    """One spelling per value: "1,234", "1234" and "1234.0" are the same, and so are "-0" and "0". As text: exact, however many digits."""
    value = (match["digits"].replace(",", "").lstrip("0") or "0") + (match["part"] or "").rstrip("0").rstrip(".")
    return f"-{value}" if match["sign"] and value != "0" else value


def check_prompt(prompt: Conversation, text: str) -> tuple[bool, str]:
    """`check` of the task in the prompt's `meta["task"]`.

    Raises:
        DataError: the prompt holds none, or one without a usable answer.
    """
    return check(stated(prompt.meta, "task", dict), text)


class Task(ScorerKind):
    """1 where the reply is the right answer alone, 0 where it is not or was cut."""

    def build(self, workshop: Workshop) -> Scorer:
        """Reads each prompt's `meta["task"]`."""
        return Checked(check_prompt)
