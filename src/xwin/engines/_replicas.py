"""Replicas: one engine on each worker, seen as one. Prompts are dealt to them; what is written does not depend on how many there are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import methodcaller
from pathlib import Path
from typing import Any, Protocol

from xwin.data.rollout import Prompt, Rollout
from xwin.distributed.workers import Elsewhere, Key, Workers
from xwin.engines.base import Engine, EngineKind, Sampling
from xwin.models.weights import Weights


class Source(Protocol):
    """Whose weights an engine takes."""

    def weights(self) -> Weights:
        """They, as they are now."""
        ...


@dataclass(frozen=True)
class Replicas:
    """See Engine. Each prompt is answered by one replica, all its samples together.

    Args:
        workers: each holds a whole engine.
        key: under which.
    """

    workers: Workers
    key: Key

    @classmethod
    def build(cls, workers: Workers, kind: EngineKind, model: Path, stop: Sequence[int], dtype: str) -> Replicas:
        """Builds the engine on every worker; see EngineKind.build. Raises what `Workers.hold` raises."""
        return cls(workers, workers.hold(partial(_build, kind=kind, model=model.resolve(), stop=tuple(stop), dtype=dtype)))

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling, *, seed: int, n: int = 1) -> Iterator[Rollout]:
        """See Engine. All come when the last one is written."""
        shares = [tuple(prompts[rank :: self.workers.size]) for rank in range(self.workers.size)]
        for found in self.workers.do(partial(_generate, sampling=sampling, seed=seed, n=n), self.key, shares=shares):
            yield from found

    def stream(self, prompt: Prompt, sampling: Sampling, *, seed: int) -> Iterator[tuple[int, float]]:
        """See Engine. All tokens come when the last one is written."""
        (rollout,) = self.generate([prompt], sampling, seed=seed)
        yield from zip(rollout.completion, rollout.logp, strict=True)

    def likeliest(self, prompt: Prompt, n: int) -> list[tuple[int, float]]:
        """See engines.base.Foresight."""
        return self.workers.do(methodcaller("likeliest", prompt, n), self.key)[0]

    def load(self, weights: Weights) -> None:
        """See Engine. Weights that the same workers have do not leave them."""
        tensors = weights.tensors
        if isinstance(tensors, Elsewhere) and tensors.workers is self.workers:
            self.workers.do(partial(_take, version=weights.version), self.key, tensors.key)
        else:
            whole = Weights(weights.version, weights.folder, None if tensors is None else dict(tensors))
            self.workers.do(methodcaller("load", whole), self.key)

    def close(self) -> None:
        """See Engine."""
        self.workers.do(methodcaller("close"), self.key)


def _build(_world: Any, *, kind: EngineKind, model: Path, stop: Sequence[int], dtype: str) -> Engine:
    """Runs on a worker."""
    return kind.build(model, stop, dtype)


def _generate(engine: Engine, prompts: Sequence[Prompt], *, sampling: Sampling, seed: int, n: int) -> list[Rollout]:
    """Runs on a worker, of its share."""
    return list(engine.generate(prompts, sampling, seed=seed, n=n)) if prompts else []


def _take(engine: Engine, source: Source, *, version: int) -> None:
    """Runs on a worker."""
    engine.load(replace(source.weights(), version=version))
