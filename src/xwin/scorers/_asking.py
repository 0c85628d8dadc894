"""Asking a judge until its answer can be read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from xwin.data.conversation import Conversation
from xwin.engines.base import Chat, Reply, Sampling
from xwin.errors import UserError
from xwin.seeds import derive

T = TypeVar("T")
WARMER = 0.7
"""Temperature at least, when a question is asked again: a greedy judge would say the same."""
SHOWN = 160
"""Of an answer that could not be read, characters in a message."""


def quiet(answered: int) -> None:
    """Tells nobody."""


@dataclass(frozen=True, slots=True)
class Answered(Generic[T]):
    """What came of a question."""

    value: T | None
    """None = no answer that can be read."""
    replies: tuple[Reply, ...]
    """The last one was read; those before could not be."""

    @property
    def refused(self) -> bool:
        """Whether the question was refused: too long, filtered."""
        return self.replies[-1].finish == "error"

    @property
    def said(self) -> str:
        """The last answer, or why there is none."""
        return f"({self.replies[-1].note})" if self.refused else self.replies[-1].text


@dataclass(frozen=True)
class Asking(Generic[T]):
    """How a judge is asked and read."""

    sampling: Sampling
    read: Callable[[Reply], T | None]
    top: int = 0
    """First tokens whose probabilities are asked for."""
    retries: int = 2
    """How often a question is asked again when its answer cannot be read. One that was refused is not."""
    seed: int = 0

    def ask(self, chat: Chat, questions: Sequence[Conversation], told: Callable[[int], None] = quiet) -> list[Answered[T]]:
        """An answer per question, in order; one that is there twice is asked once.

        Args:
            chat: whom to ask.
            questions: named by their content.
            told: called with how many were answered just now, the first time.
        """
        found: dict[str, Answered[T]] = {}
        waiting = list({question.id: question for question in questions}.values())
        for attempt in range(1 + self.retries):
            warm = max(self.sampling.temperature, WARMER if attempt else 0.0)
            sampling = self.sampling.model_copy(update={"temperature": warm})
            replies = chat.reply(waiting, sampling, seed=derive(self.seed, "judge", attempt), top=self.top)
            for question, reply in zip(waiting, replies, strict=True):
                before = found[question.id].replies if attempt else ()
                found[question.id] = Answered(self.read(reply), (*before, reply))
                if not attempt:
                    told(1)
            waiting = [q for q in waiting if found[q.id].value is None and not found[q.id].refused]
            if not waiting:
                break
        return [found[question.id] for question in questions]

    def unreadable(self, first: Answered[T], judge: str) -> UserError:
        """The error when not one answer could be read."""
        reply = first.replies[-1]
        if first.refused:
            return UserError(f"the judge answered nothing: {reply.note}", judge, "see what it says, or take another judge")
        if self.top and not reply.top_logprobs:
            fix = "judge by ranking, or by an endpoint that gives top_logprobs"
            return UserError("the judge tells no log-probabilities of its first token", judge, fix)
        what = f"no answer of the judge can be read; the first is {reply.text[:SHOWN]!r}"
        return UserError(what, judge, "take a larger model as the judge, or a prompt that it follows")
