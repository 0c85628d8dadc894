"""Every error a person can meet, in one tree. Each says what is wrong, where, and how to fix it.

XwinError
├── UserError                exit 2: something the person can change
│   ├── RecipeError          one or many mistakes of a recipe, all listed at once
│   ├── DataError            a file or a row of data
│   ├── ModelError           a model that cannot be fetched, converted or loaded
│   ├── MissingExtra         an optional package that is not installed; prints the pip line
│   └── RunBusy              another process is working in the same run directory
├── Failure                  exit 1: the work itself went wrong
│   ├── TrainingStopped      a guard stopped the training (non-finite numbers, nothing to train ...)
│   │   └── StepRefused      a step that would do harm, before the parameters moved
│   ├── CheckpointError      a checkpoint or artefact is truncated, altered or cannot be read
│   ├── EndpointError        a remote model does not answer, refuses everybody, or answers what cannot be read
│   ├── StorageError         the disk is full, read-only or not permitted
│   ├── WorkerLost           a worker died, its machine is gone, or it hangs
│   └── OutOfMemory          an allocation failed; names the settings to lower
└── Interrupted              SIGINT (exit 130) or SIGTERM (exit 143), after a checkpoint was written
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any


class XwinError(Exception):
    """Root of the tree.

    Args:
        what: what is wrong, one sentence.
        where: file, row, setting or stage it is about; empty when `what` already says it.
        fix: what to do about it; empty when there is nothing to do.
    """

    exit_code = 1

    def __init__(self, what: str, where: str = "", fix: str = "") -> None:
        super().__init__(what, where, fix)  # the args make the error picklable
        self.what, self.where, self.fix = what, where, fix

    def __str__(self) -> str:
        head = f"{self.where}: {self.what}" if self.where else self.what
        return f"{head}\n  fix: {self.fix}" if self.fix else head


class UserError(XwinError):
    """Something the person can change: a recipe, a file, an argument."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake of a recipe.  Example: Problem("unknown setting", "tiny.yaml:9 stages.ppo.objective.clipp", "did you mean 'clip'?")"""

    what: str
    where: str
    fix: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" + (f"\n    fix: {self.fix}" if self.fix else "")


class RecipeError(UserError):
    """All mistakes found in a recipe."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        count = "1 mistake" if len(problems) == 1 else f"{len(problems)} mistakes"
        super().__init__(f"{count} in the recipe:\n" + "\n".join(f"  {p}" for p in problems))
        self.problems = tuple(problems)

    def __reduce__(self) -> tuple[type[RecipeError], tuple[Sequence[Problem]]]:
        return RecipeError, (self.problems,)


class DataError(UserError):
    """A data file or one of its rows cannot be used. `where` is `file:row`."""


class ModelError(UserError):
    """A model cannot be fetched, converted or loaded."""


class MissingExtra(UserError):
    """An optional package is needed and not installed.

    Args:
        package: what was imported.
        extra: the extra of xwin-lm that brings it.
    """

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"the package '{package}' is not installed", fix=f"pip install 'xwin-lm[{extra}]'")
        self.package, self.extra = package, extra

    def __reduce__(self) -> tuple[type[MissingExtra], tuple[str, str]]:
        return MissingExtra, (self.package, self.extra)


class RunBusy(UserError):
    """Another process holds the lock of the run directory."""


class Failure(XwinError):
    """The work itself went wrong."""


class TrainingStopped(Failure):
    """A guard stopped the training."""


class StepRefused(TrainingStopped):
    """The learner does not take a step: loss or gradient is not finite, or nothing is trained. The parameters have not moved.

    Args:
        what: as of XwinError.
        where: as of XwinError.
        fix: as of XwinError.
        metric: what is wrong: loss, grad_norm or tokens.
        value: of it.
        samples: whose fault it is, as far as that can be told; else all of the step.
    """

    def __init__(self, what: str, where: str, fix: str, *, metric: str, value: float, samples: Sequence[str] = ()) -> None:
        super().__init__(what, where, fix)
        self.metric, self.value, self.samples = metric, value, tuple(samples)

    def __reduce__(self) -> tuple[Any, ...]:
        fields = {"metric": self.metric, "value": self.value, "samples": self.samples}
        return partial(StepRefused, **fields), (self.what, self.where, self.fix)


class CheckpointError(Failure):
    """A checkpoint or artefact is truncated, altered or cannot be read."""


class EndpointError(Failure):
    """A remote model does not answer, refuses everybody, or answers what cannot be read."""


class StorageError(Failure):
    """The disk is full, read-only, or permission is missing."""


class WorkerLost(Failure):
    """A worker died, its machine is gone, or it hangs. The group it was of is of no more use; a new one goes on from the last checkpoint."""


class OutOfMemory(Failure):
    """There was less memory than the work needs."""


class Interrupted(XwinError):
    """The process was asked to stop; a checkpoint was written first.

    Args:
        signal: number of the signal, 2 (Ctrl-C) or 15 (SIGTERM).
    """

    def __init__(self, signal: int) -> None:
        super().__init__("interrupted" if signal == 2 else "terminated", fix="run the same command again: it goes on where it stopped")
        self.signal = signal
        self.exit_code = 128 + signal

    def __reduce__(self) -> tuple[type[Interrupted], tuple[int]]:
        return Interrupted, (self.signal,)
