"""Scripted: an engine that says what it is told. Public, for tests and documentation of whatever takes an Engine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from xwin.data.rollout import Prompt, Rollout
from xwin.engines.base import EngineKind, Sampling
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

    def _tokens(self, prompt: Prompt, sample: int, sampling: Sampling) -> Iterator[tuple[int, float]]:
        table = self.answers.get(prompt.id) or [self.other]
        answer = [*table[sample % len(table)], self.stop[0]]
        for token in answer[: sampling.max_tokens]:
            yield token, 0.0
