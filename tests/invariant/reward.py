"""A reward that differs from answer to answer, also where a random model writes them."""

from collections.abc import Sequence

from xwin.data.conversation import Conversation


def letters(prompt: Conversation, answers: Sequence[str]) -> list[float]:
    """The mean over the characters of an answer of the last three bits of each, between 0 and 1."""
    return [sum(ord(c) % 8 for c in answer) / (7 * max(len(answer), 1)) for answer in answers]
