"""A learner on several workers, each of which holds its part of the model, seen from the driver as one learner."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter, methodcaller
from pathlib import Path
from typing import Any

from torch import Tensor

from xwin.data.batch import Batch, Outputs
from xwin.distributed.deal import deal
from xwin.distributed.workers import Elsewhere, Key, Workers
from xwin.learning.about import About
from xwin.learning.blueprint import Blueprint
from xwin.learning.keep import Keep, Keeper
from xwin.learning.learner import AnyLearner, Learner, Origin, Reader
from xwin.models.heads import RewardStats
from xwin.models.weights import Weights
from xwin.run.events import Measure


@dataclass
class SharedLearner:
    """See AnyLearner. Batches are dealt to the workers, which compute in step with each other; what they say comes back in order.

    Args:
        workers: who share it.
        key: under which each holds its part.
        about: the model.
    """

    workers: Workers
    key: Key
    about: About
    steps_done: int = 0

    @classmethod
    def build(cls, workers: Workers, blueprint: Blueprint) -> SharedLearner:
        """Makes it on the workers. Raises what `Workers.hold` raises."""
        key = workers.hold(blueprint.build)
        return cls(workers, key, workers.do(attrgetter("about"), key)[0])

    def forward(self, batches: Sequence[Batch], reads: frozenset[str]) -> list[Outputs]:
        """See Reader."""
        return _read(self.workers, self.key, batches, partial(_forward, reads=reads))

    def step(self, batches: Sequence[Batch]) -> dict[str, Measure]:
        """See Learner."""
        said, *_ = self.workers.do(Learner.step, self.key, shares=deal(batches, self.workers.size).shares)
        self.steps_done += 1
        return said

    def evaluate(self, batches: Sequence[Batch]) -> dict[str, Measure]:
        """See Learner."""
        said, *_ = self.workers.do(Learner.evaluate, self.key, shares=deal(batches, self.workers.size).shares)
        return said

    def origin(self) -> Reader:
        """See AnyLearner."""
        return SharedOrigin(self)

    def measure_in(self, stats: RewardStats) -> None:
        """See AnyLearner."""
        self.workers.do(methodcaller("measure_in", stats), self.key)
        self.about = self.workers.do(attrgetter("about"), self.key)[0]

    def weights(self) -> Weights:
        """See Learner. The tensors stay with the workers, whose engines take them there; they come here when somebody reads them."""
        return Weights(self.steps_done, tensors=Elsewhere(self.workers, self.key, _tensors))

    def publish(self, to: Path) -> None:
        """See Learner."""
        self.workers.do(methodcaller("publish", to.resolve()), self.key)


@dataclass(frozen=True)
class SharedOrigin:
    """See Origin."""

    policy: SharedLearner

    def forward(self, batches: Sequence[Batch], reads: frozenset[str]) -> list[Outputs]:
        """See Reader."""
        return _read(self.policy.workers, self.policy.key, batches, partial(_forward_of_origin, reads=reads))


@dataclass(frozen=True)
class SharedKeep:
    """See Keeper. Each worker writes its part of a checkpoint."""

    learners: Mapping[str, SharedLearner]

    def save(self, folder: Path, step: int, state: Mapping[str, Any], *, keep: int, reach: int) -> None:
        """See Keeper."""
        self._do(methodcaller("save", folder.resolve(), step, dict(state), keep=keep, reach=reach))

    def load(self, path: Path) -> dict[str, Any]:
        """See Keeper."""
        saved, *_ = self._do(methodcaller("load", path.resolve()))
        for role, learner in self.learners.items():
            learner.steps_done = saved["steps_done"][role]
        return saved

    def save_first(self, path: Path, step: int) -> None:
        """See Keeper."""
        self._do(methodcaller("save_first", path.resolve(), step))

    def load_first(self, path: Path) -> None:
        """See Keeper."""
        self._do(methodcaller("load_first", path.resolve()))

    def _do(self, what: Callable[[Keep], Any]) -> list[Any]:
        learners = list(self.learners.values())
        return learners[0].workers.do(partial(_kept, roles=tuple(self.learners), what=what), *(learner.key for learner in learners))


def keeper(learners: Mapping[str, AnyLearner]) -> Keeper:
    """Who saves and loads the learners of a stage, which are all here or all on workers."""
    here = {role: learner for role, learner in learners.items() if isinstance(learner, Learner)}
    away = {role: learner for role, learner in learners.items() if isinstance(learner, SharedLearner)}
    return SharedKeep(away) if away else Keep(here)


def _read(workers: Workers, key: Key, batches: Sequence[Batch], what: Any) -> list[Outputs]:
    dealt = deal(batches, workers.size)
    return dealt.collect(workers.do(what, key, shares=dealt.shares))


# What follows runs on the workers, of each learner its part.


def _forward(learner: Learner, batches: Sequence[Batch], *, reads: frozenset[str]) -> list[Outputs]:
    return [out.cpu() for out in learner.forward(batches, reads)]


def _forward_of_origin(learner: Learner, batches: Sequence[Batch], *, reads: frozenset[str]) -> list[Outputs]:
    return [out.cpu() for out in Origin(learner).forward(batches, reads)]


def _tensors(learner: Learner) -> Mapping[str, Tensor] | None:
    """Every worker has to take part, and one of them answers."""
    tensors = learner.weights().tensors
    return {name: tensor.cpu() for name, tensor in (tensors or {}).items()} if learner.world.rank == 0 else None


def _kept(*learners: Learner, roles: Sequence[str], what: Callable[[Keep], Any]) -> Any:
    return what(Keep(dict(zip(roles, learners, strict=True))))
