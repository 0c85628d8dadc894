"""Scripted: an engine that says what it is told. Public, for tests and documentation of whatever takes an Engine."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from xwin.data.rollout import Prompt, Rollout
from xwin.engines.base import EngineKind, Request, Sampling, Token
from xwin.errors import ModelError
from xwin.models.weights import Weights


class Scripted(EngineKind):
    """Answers from a table."""

    answers: dict[str, list[list[int]]] = {}
    """Prompt id -> token ids of sample 0, 1, ... without the stop token; samples beyond the list start it again."""

    other: list[int] = []
    """Answer to every prompt that is not in the table."""

    def build(self, model: Path, stop: Sequence[int], dtype: str) -> ScriptedEngine:
        return ScriptedEngine(self.answers, self.other, tuple(stop))


@dataclass
class ScriptedEngine:
    """See Engine. Every token has log-probability 0: what is certain."""

    answers: Mapping[str, Sequence[Sequence[int]]]
    other: Sequence[int]
    stop: tuple[int, ...]
    version: int = 0

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling, *, seed: int, n: int = 1) -> Iterator[Rollout]:
        """See Engine."""
        for prompt in prompts:
            for k in range(n):
                tokens = tuple(t for t, _ in self._tokens(prompt, k, sampling))
                finish = "stop" if tokens[-1] in self.stop else "length"
                yield Rollout(prompt.id, k, self.version, prompt.tokens, tokens, (0.0,) * len(tokens), finish)

    def stream(self, prompt: Prompt, sampling: Sampling, *, seed: int) -> Iterator[tuple[int, float]]:
        """See Engine."""
        yield from self._tokens(prompt, 0, sampling)

    def load(self, weights: Weights) -> None:
        """See Engine: only the version changes."""
        self.version = weights.version

    def close(self) -> None:
        """See Engine."""

    def batcher(self, tokens: int) -> ScriptedBatcher:
        """See Continuous."""
        return ScriptedBatcher(lambda r: self._tokens(r.prompt, r.sample, r.sampling), self.stop, tokens)

    def _tokens(self, prompt: Prompt, sample: int, sampling: Sampling) -> Iterator[tuple[int, float]]:
        table = self.answers.get(prompt.id) or [self.other]
        answer = [*table[sample % len(table)], self.stop[0]]
        for token in answer[: sampling.max_tokens]:
            yield token, 0.0


@dataclass
class ScriptedBatcher:
    """See Batcher. What a rule raises, the whole step raises, as a network does that computes all rows at once."""

    rule: Callable[[Request], Iterator[tuple[int, float]]]
    """(token, log-probability) of an answer, its stop token included."""
    stop: tuple[int, ...]
    tokens: int
    """The longest prompt and answer, together."""
    rows: int = 4
    """Answers that are written together."""
    waiting: deque[Request] = field(default_factory=deque)
    live: dict[str, Iterator[Token]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.waiting) + len(self.live)

    def add(self, request: Request) -> None:
        """See Batcher."""
        read, most = len(request.prompt.tokens), request.sampling.max_tokens
        if read + most > self.tokens:
            raise ModelError(f"{read} prompt tokens and {most} new ones exceed the {self.tokens} there is room for", f"request {request.id}")
        self.waiting.append(request)

    def drop(self, request: str) -> None:
        """See Batcher."""
        self.waiting = deque(each for each in self.waiting if each.id != request)
        self.live.pop(request, None)

    def step(self) -> list[Token]:
        """See Batcher."""
        while self.waiting and len(self.live) < self.rows:
            request = self.waiting.popleft()
            self.live[request.id] = self._tokens(request)
        written = [next(answer) for answer in self.live.values()]
        for token in written:
            if token.finish:
                del self.live[token.request]
        return written

    def _tokens(self, request: Request) -> Iterator[Token]:
        for number, (token, logp) in enumerate(self.rule(request), 1):
            finish = "stop" if token in self.stop else "length" if number == request.sampling.max_tokens else None
            yield Token(request.id, token, logp, finish)
