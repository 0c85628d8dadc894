"""The loop of a training stage: where it starts, what it says, when it saves, when it stops."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from xwin.errors import CheckpointError
from xwin.learning import checkpoint
from xwin.learning.learner import Learner
from xwin.models.weights import write_weights
from xwin.run import memory
from xwin.run.console import Console, Progress
from xwin.run.directory import StageDirectory
from xwin.run.events import Measure
from xwin.run.guards import Guard, Watch, explain
from xwin.run.log import AlarmLog, EventLog
from xwin.run.signals import StopFlag
from xwin.run.storage import digest_file, storage_errors, sync

LARGEST_RATIO_GAP = 0.01
"""Nats. Old and new log-probs are computed by one function on one layout, so the ratio starts at 1 but for rounding."""


@dataclass
class Best:
    """The best validation value so far, lower is better."""

    value: float = math.inf
    step: int = -1
    worse: int = 0
    """Evaluations since then."""
    sha256: str = ""
    """Of the file that holds its parameters."""


@dataclass
class Loop:
    """Iterate over it to get step numbers; call `done` once per step.

    Args:
        name: of the stage.
        total: steps.
        learners: what is trained, by role; the first one is kept at its best.
        directory: where checkpoints and events go.
        state: anything else that must survive a kill, as JSON.
        every: seconds between checkpoints.
        kept: checkpoints that stay.
    """

    name: str
    total: int
    learners: Mapping[str, Learner]
    directory: StageDirectory
    console: Console
    stop: StopFlag
    guards: Sequence[Guard]
    every: float
    state: dict[str, Any]
    patience: int | None = None
    kept: int = 1
    best: Best = field(default_factory=Best)
    last: dict[str, float] = field(default_factory=dict)
    """Last value of every metric."""
    start: int = 0
    _progress: Progress | None = None

    def __post_init__(self) -> None:
        self._watch = Watch(self.guards)
        self._events = EventLog(self.directory.events, self.name)
        self._alarms = AlarmLog(self.directory.alarms)
        found = checkpoint.latest(self.directory.checkpoints)
        if found is not None:
            self._restore(found)
        self._events.rewind(self.start - 1)
        self._alarms.rewind(self.start - 1)
        self._saved = self._began = time.monotonic()
        self._step = self.start
        self.ended = bool(self.state.get("_ended"))

    def _restore(self, found: Path) -> None:
        saved = checkpoint.load(found, {role: learner.state() for role, learner in self.learners.items()})
        for role, learner in self.learners.items():
            learner.steps_done = saved["steps_done"][role]
        self.state = saved["state"]
        self.best = Best(**{**saved["best"], "value": float(saved["best"]["value"])})
        self._watch = Watch.from_json(self.guards, saved["watch"])
        self.last = saved["last"]
        self.start = saved["step"]
        self.console.message(f"{self.name}: going on from step {self.start} of {self.total}")

    def __iter__(self) -> Iterator[int]:
        with self.console.progress(self.name, self.total, "step", done=self.start) as progress:
            self._progress = progress
            for step in range(self.start, self.total):
                if self.ended:
                    break
                self._step = step
                self._began = time.monotonic()
                yield step

    def done(self, metrics: Mapping[str, Measure | float], *, validation: Mapping[str, float] | None = None, score: float | None = None) -> None:
        """Ends the step: writes events, asks the guards, keeps the best, saves when it is time, obeys a signal.

        Args:
            metrics: of this step.
            validation: numbers on held-out data, when they were taken at this step.
            score: the one of them that decides what is best, lower is better.

        Raises:
            TrainingStopped: a guard says so.
            Interrupted: a signal came; a checkpoint was written first.
        """
        seconds = time.monotonic() - self._began
        values = {name: m if isinstance(m, float | int) else m.value for name, m in metrics.items()} | dict(validation or {})
        tokens = int(values.get("tokens", 0))
        if tokens:
            values["tokens_per_second"] = tokens / max(seconds, 1e-9)
        values |= {"seconds": seconds, "memory": memory.peak()}
        self._events.append(self._step, values)
        self.last |= values
        alarms = self._watch.feed(self._step, values)
        self._alarms.append(alarms)
        for alarm in alarms:
            if alarm.action == "stop":
                raise explain(alarm, self.name)
            self.console.message(f"{self.name}: guard: {alarm.metric} is {alarm.value:.4g} at step {alarm.step}")
        if score is not None:
            self._compare(score)
        if self._progress is not None:
            shown = {n: values[n] for n in ("loss", "reward", "kl", "validation_loss") if n in values}
            self._progress.advance(1, tokens=tokens, **shown)
        self._save_if_due()

    def _compare(self, score: float) -> None:
        """Keeps the trained parameters of the first learner when they are the best so far; ends when patience is out."""
        if score < self.best.value:
            path = self._best_file(self._step)
            with storage_errors(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                part = path.with_suffix(".tmp")
                write_weights(part, next(iter(self.learners.values())).state()["parameters"], {"step": str(self._step)})
                sync(part)
                part.replace(path)
            self.best = Best(score, self._step, sha256=digest_file(path))
        else:
            self.best.worse += 1
        if self.patience is not None and self.best.worse >= self.patience:
            self.ended = self.state["_ended"] = True
            self.console.message(f"{self.name}: stopped early at step {self._step}: the best was step {self.best.step}")

    def _best_file(self, step: int) -> Path:
        """Named by its step: the one that the last checkpoint speaks of stays until there is a newer checkpoint."""
        return self.directory.checkpoints / f"best-{step:06d}.safetensors"

    def _save_if_due(self) -> None:
        if self._step + 1 == self.total:
            return  # what is left is to publish: stopping here would lose the steps since the last checkpoint
        if time.monotonic() - self._saved >= self.every or self.stop.is_set:
            self.save()
        self.stop.obey()

    def save(self) -> None:
        """Writes a checkpoint of the state after the current step."""
        tensors = {role: learner.state() for role, learner in self.learners.items()}
        state = {
            "step": self._step + 1,
            "steps_done": {role: learner.steps_done for role, learner in self.learners.items()},
            "state": self.state,
            "best": asdict(self.best) | {"value": str(self.best.value)},
            "watch": self._watch.to_json(),
            "last": {n: v for n, v in self.last.items() if math.isfinite(v)},
        }
        checkpoint.save(self.directory.checkpoints, self._step + 1, tensors, state, keep=self.kept)
        spoken_of = {self._best_file(kept["best"]["step"]) for kept in checkpoint.states(self.directory.checkpoints)}
        for path in set(self.directory.checkpoints.glob("best-*")) - spoken_of:
            path.unlink()
        self._saved = time.monotonic()

    def restore_best(self) -> None:
        """Puts the best parameters back into the first learner, when validation chose any.

        Raises:
            CheckpointError: the file that holds them is missing, cut short or altered.
        """
        if self.best.step < 0 or self.best.step == self._step:
            return
        path = self._best_file(self.best.step)
        if not path.is_file() or digest_file(path) != self.best.sha256:
            fix = f"delete the folder {self.directory.folder} and run again: the stage starts anew"
            raise CheckpointError("the best parameters are missing, cut short or altered", str(path), fix)
        saved = load_file(path)
        with torch.no_grad():
            for name, parameter in next(iter(self.learners.values())).state()["parameters"].items():
                parameter.copy_(saved[name])
