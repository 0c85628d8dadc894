"""An answer that grows token by token, as the text that a client may be shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from xwin.data.rollout import Finish
from xwin.engines.base import Sampling, Token

HALF = "\N{REPLACEMENT CHARACTER}"
"""How a character reads whose last bytes are still to come."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A bit of an answer and the tokens it is made of."""

    text: str
    tokens: tuple[Token, ...]
    start: int = 0
    """Characters of the answer before it."""


@dataclass
class Growing:
    """One answer. `take` says what became certain since it was last asked, so nothing that was shown is ever taken back."""

    read: Callable[[Sequence[int]], str]
    """Tokens of an answer -> its text, without its end token."""
    sampling: Sampling
    ends: tuple[int, ...]
    """Tokens that end an answer; they are no part of its text."""
    tokens: list[Token] = field(default_factory=list)
    finish: Finish | None = None
    characters: int = 0
    """That were shown."""
    given: int = 0
    """Tokens that were given out with what was shown."""

    def add(self, token: Token) -> None:
        """One more token of the engine."""
        self.tokens.append(token)
        self.finish = token.finish

    def take(self) -> Piece:
        """What is new and certain: all of it once the answer is over; before, no half character and nothing that may begin a stop text."""
        text = self.read([t.token for t in self.tokens])
        if self.finish is None:
            sure = "" if text.endswith(HALF) else self.sampling.shown(text)
            whole = len(self.tokens)
        else:
            sure = self.sampling.cut(text)
            whole = self._tokens_of(sure, text)
        if len(sure) <= self.characters and self.finish is None:
            return Piece("", ())
        piece = Piece(sure[self.characters :], tuple(self.tokens[self.given : whole]), self.characters)
        self.characters, self.given = max(self.characters, len(sure)), max(self.given, whole)
        return piece

    def _tokens_of(self, sure: str, text: str) -> int:
        """How many tokens the answer has without its end: an end token, or those behind a stop text."""
        if len(sure) < len(text):
            ids = [t.token for t in self.tokens]
            while ids and len(self.read(ids[:-1])) >= len(sure):  # from the end: a stop text is among the last tokens
                ids.pop()
            return len(ids)
        return len(self.tokens) - (bool(self.tokens) and self.tokens[-1].token in self.ends)
