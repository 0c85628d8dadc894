"""Functions for the scorer of kind function."""

from collections.abc import Sequence
from pathlib import Path

from xwin.data.conversation import Conversation


def share_of_z(prompt: Conversation, answers: Sequence[str]) -> list[float]:
    """The share of the letter z in each answer: at most 1. No special token has one in its name, so it is the share of one token."""
    return [answer.count("z") / max(len(answer), 1) for answer in answers]


def none_with_b(prompt: Conversation, answers: Sequence[str]) -> list[float | None]:
    """No score for an answer that holds an a, a b or a c; else 1 where it is longer than three letters."""
    return [None if set(answer) & set("abc") else float(len(answer) > 3) for answer in answers]


def share_of_vowels(prompt: Conversation, answers: Sequence[str]) -> list[float]:
    """The share of vowels; it breaks at the 13th prompt of the stream while there is a file `break` in the current directory."""
    if prompt.id.endswith("@12") and Path("break").exists():
        raise RuntimeError("broken on purpose")
    return [sum(c in "aeiouAEIOU" for c in answer) / max(len(answer), 1) for answer in answers]


def wild_at_7(prompt: Conversation, answers: Sequence[str]) -> list[float]:
    """The share of vowels; but the first answer to the eighth prompt of the stream is worth more than fp32 can square."""
    calm = [sum(c in "aeiouAEIOU" for c in answer) / max(len(answer), 1) for answer in answers]
    return [1e30, *calm[1:]] if prompt.id.endswith("@7") else calm


def last(prompt: Conversation, answers: Sequence[str]) -> list[float]:
    """A later answer is better."""
    return [float(i) for i in range(len(answers))]


def longer(prompt: Conversation, answers: Sequence[str]) -> list[float]:
    """The flaw that every reward model has a little of: a letter is worth a tenth, whatever it says."""
    return [len(answer) / 10 for answer in answers]


def to_the_point(prompt: Conversation, answers: Sequence[str]) -> list[float]:
    """What was meant: each letter costs the reader 3 % of the answer's worth."""
    return [1 - 0.03 * len(answer) for answer in answers]
