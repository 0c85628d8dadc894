"""Keep: what a stage trains, saved and loaded together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file

from xwin.distributed.shard import joined, local, split
from xwin.distributed.world import World
from xwin.learning import checkpoint
from xwin.learning.learner import Learner
from xwin.models.weights import write_weights
from xwin.run.storage import storage_errors, sync


class Keeper(Protocol):
    """Saves and loads the learners of a stage, wherever they compute."""

    def save(self, folder: Path, step: int, state: Mapping[str, Any], *, keep: int, reach: int) -> None:
        """Writes a checkpoint; see learning.checkpoint.save."""
        ...

    def load(self, path: Path) -> dict[str, Any]:
        """Reads a checkpoint into the learners; returns the state that was saved, in which `steps_done` is theirs."""
        ...

    def save_first(self, path: Path, step: int) -> None:
        """Writes the trained parameters of the first learner, all of them into one file."""
        ...

    def load_first(self, path: Path) -> None:
        """Reads them back."""
        ...


@dataclass(frozen=True)
class Keep:
    """Learners of this process. Of several workers, each has its part of them, and all call the same at the same time.

    Args:
        learners: by role; at least one, in training.
    """

    learners: Mapping[str, Learner]

    @property
    def _first(self) -> Learner:
        return next(iter(self.learners.values()))

    @property
    def _world(self) -> World:
        return self._first.world

    def save(self, folder: Path, step: int, state: Mapping[str, Any], *, keep: int, reach: int) -> None:
        """See Keeper."""
        tensors = {role: learner.state() for role, learner in self.learners.items()}
        checkpoint.save(folder, step, tensors, state, keep=keep, reach=reach, world=self._world)

    def load(self, path: Path) -> dict[str, Any]:
        """See Keeper."""
        saved = checkpoint.load(path, {role: learner.state() for role, learner in self.learners.items()}, self._world)
        for role, learner in self.learners.items():
            learner.steps_done = saved["steps_done"][role]
        return saved

    def save_first(self, path: Path, step: int) -> None:
        """See Keeper. A reader sees all of the file or nothing."""
        writes = self._world.rank == 0
        tensors = joined(self._first.state()["parameters"], keep=writes)
        with self._world.together(), storage_errors(path):
            if writes:
                path.parent.mkdir(parents=True, exist_ok=True)
                part = path.with_suffix(".tmp")
                write_weights(part, tensors, {"step": str(step)})
                sync(part)
                part.replace(path)

    def load_first(self, path: Path) -> None:
        """See Keeper."""
        saved = load_file(path)
        if self._world.size > 1:
            saved = split(saved, self._world)
        with torch.no_grad():
            for name, parameter in self._first.state()["parameters"].items():
                local(parameter).copy_(local(saved[name]))
