"""A scorer for the chain: `xwin`, started by forks.py, finds this file beside it."""

from collections.abc import Sequence

from xwin.data.conversation import Conversation


def wild(prompt: Conversation, answers: Sequence[str]) -> list[float]:
    """The share of vowels; but the first answer to the fourth prompt of the stream is worth more than fp32 can square."""
    calm = [sum(c in "aeiouAEIOU" for c in answer) / max(len(answer), 1) for answer in answers]
    return [1e30, *calm[1:]] if prompt.id.endswith("@3") else calm
