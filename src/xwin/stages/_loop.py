"""The loop of a training stage: where it starts, what it says, when it saves, when it turns back, when it stops.

for step in loop:
    if loop.skips(names_of_its_samples):
        continue
    with loop.trial():
        loop.done(learner.step(batches))
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from xwin.errors import CheckpointError, StepRefused
from xwin.learning import checkpoint
from xwin.learning.group import keeper
from xwin.learning.learner import AnyLearner
from xwin.run import memory
from xwin.run.console import Console, Progress
from xwin.run.directory import StageDirectory
from xwin.run.events import Measure
from xwin.run.guards import REACH, Alarm, Guard, Watch, explain, problem
from xwin.run.log import AlarmLog, EventLog
from xwin.run.signals import StopFlag
from xwin.run.storage import digest_file
from xwin.run.turns import Turns, turns_from_json

SHOWN = 8
"""Samples that a message names; events.jsonl has all of them."""

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
    """Iterate over it to get step numbers; ask `skips` first, then call `done` once per step, within `trial`.

    After a rollback the numbers go on from an earlier step. Whatever a stage carries from step to step must be in its learners or in `state`.

    Args:
        name: of the stage.
        total: steps.
        learners: what is trained, by role; the first one is kept at its best.
        directory: where checkpoints and events go.
        state: anything else that must survive a kill, as JSON.
        every: seconds between checkpoints.
        kept: checkpoints that stay.
        max_rollbacks: times that it may turn back.
        rewind: takes back what the stage wrote of a step and later ones, apart from events and alarms.
    """

    name: str
    total: int
    learners: Mapping[str, AnyLearner]
    directory: StageDirectory
    console: Console
    stop: StopFlag
    guards: Sequence[Guard]
    every: float
    state: dict[str, Any]
    patience: int | None = None
    kept: int = 1
    max_rollbacks: int = 0
    rewind: Callable[[int], None] | None = None
    best: Best = field(default_factory=Best)
    last: dict[str, float] = field(default_factory=dict)
    """Last value of every metric."""
    start: int = 0
    _progress: Progress | None = None

    def __post_init__(self) -> None:
        self._keeper = keeper(self.learners)
        self._watch, self._turns = Watch(self.guards), Turns()
        self._samples: tuple[str, ...] = ()
        self._events = EventLog(self.directory.events, self.name)
        self._alarms = AlarmLog(self.directory.alarms)
        found = checkpoint.latest(self.directory.checkpoints)
        if found is not None:
            self._restore(found)
            self.console.message(f"{self.name}: going on from step {self.start} of {self.total}")
        self._take_back()
        self._saved = self._began = time.monotonic()
        if found is None and self._watch.rolls_back:
            self.save()  # somewhere to return to

    @property
    def at(self) -> tuple[int, tuple[str, ...]]:
        """The step that it is at, and its samples."""
        return self._step, self._samples

    @property
    def ended(self) -> bool:
        """Whether patience is out."""
        return bool(self.state.get("_ended"))

    def _restore(self, found: Path) -> None:
        saved = self._keeper.load(found)
        self.state = saved["state"]
        self.best = Best(**{**saved["best"], "value": float(saved["best"]["value"])})
        self._watch = Watch.from_json(self.guards, saved["watch"])
        self._turns = turns_from_json(saved["turns"])
        self.last = saved["last"]
        self.start = saved["step"]

    def _take_back(self) -> None:
        """Puts the logs to where the loop starts from."""
        self._events.rewind(self.start - 1)
        self._alarms.rewind(self.start - 1)
        if self.rewind is not None:
            self.rewind(self.start)
        self._step = self.start - 1

    def __iter__(self) -> Iterator[int]:
        with self.console.progress(self.name, self.total, "step", done=self.start) as progress:
            self._progress = progress
            while self._step + 1 < self.total and not self.ended:
                self._step += 1
                self._began = time.monotonic()
                yield self._step

    def skips(self, samples: Sequence[str], state: Mapping[str, Any] | None = None) -> bool:
        """Whether this step is passed over, because a guard rolled back past it. If so it ends here: it is logged, and saved when it is time.

        Args:
            samples: names of what the step learns from.
            state: what `state` is after a step that is passed over; None = as it is.
        """
        self._samples = tuple(samples)
        if not self._turns.skips(self._step):
            return False
        self.state = self.state if state is None else dict(state)
        turns = self._turns.until(self._step)
        self._events.append(self._step, {"skipped": float(len(samples))}, samples)
        self._events.append(self._step, {"rollbacks": float(len(turns))})
        self._alarms.append([turn.alarm for turn in turns if turn.alarm.step == self._step])
        self.last["rollbacks"] = float(len(turns))
        self._advance(1)
        self._save_if_due()
        return True

    @contextmanager
    def trial(self) -> Iterator[None]:
        """Around a step: where the learner refuses it, that is an alarm of the guards that are always on.

        Raises:
            StepRefused: the stage does not roll back.
            TrainingStopped: it did so too often.
        """
        try:
            yield
        except StepRefused as refused:
            alarm = Alarm(self._step, refused.metric, refused.value, math.inf, "stop", why=_listed("samples", refused.samples))
            if not self._watch.rolls_back:
                self._alarms.append([alarm])
                raise
            self._samples = ()  # the alarm names those that matter
            self._roll_back(replace(alarm, action="rollback"))

    def done(self, metrics: Mapping[str, Measure | float], *, validation: Mapping[str, float] | None = None, score: float | None = None) -> None:
        """Ends the step: writes events, asks the guards, keeps the best, saves when it is time, obeys a signal.

        Args:
            metrics: of this step.
            validation: numbers on held-out data, when they were taken at this step.
            score: the one of them that decides what is best, lower is better.

        Raises:
            TrainingStopped: a guard says so, or has rolled back too often.
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
        if alarms and alarms[0].action == "rollback":
            self._roll_back(alarms[0])
            return
        self._alarms.append(alarms)
        for alarm in alarms:
            if alarm.action == "stop":
                raise explain(alarm, self.name, self._told())
            self.console.message(f"{self.name}: guard: {problem(alarm)}, at step {alarm.step}")
        if score is not None:
            self._compare(score)
        self._advance(1, tokens, {n: values[n] for n in ("loss", "reward", "kl", "validation_loss") if n in values})
        self._save_if_due()

    def _advance(self, steps: int, tokens: int = 0, shown: Mapping[str, float] | None = None) -> None:
        if self._progress is not None:
            self._progress.advance(steps, tokens=tokens, **(shown or {}))

    def _told(self) -> str:
        """The samples of this step, for a message."""
        return _listed("; its samples:", self._samples)

    def _roll_back(self, alarm: Alarm) -> None:
        """Returns to a checkpoint before the steps that are to blame. From then on they are passed over; see run/turns.py.

        Raises:
            TrainingStopped: it has done so too often, or no step would be left.
        """
        turns = self._turns.after(alarm)
        turn, stopped = turns.made[-1], replace(alarm, action="stop")
        if len(turns.made) > self.max_rollbacks or all(map(turns.skips, range(self.total))):
            self._alarms.append([stopped])
            raise explain(stopped, self.name, f"{self._told()}; gave up after {len(self._turns.made)} rollbacks")
        at = self._step
        self._restore(checkpoint.before(self.directory.checkpoints, turn.first))
        self._turns = turns
        self._take_back()
        self.save()  # the history that was left goes
        passed = f"step {turn.first}" if turn.first == at else f"steps {turn.first} to {at}"
        self.console.message(f"{self.name}: {problem(alarm)}; rolled back to step {self.start}, {passed} will be passed over{self._told()}")
        self._advance(self.start - at)

    def _compare(self, score: float) -> None:
        """Keeps the trained parameters of the first learner when they are the best so far; ends when patience is out."""
        if score < self.best.value:
            path = self._best_file(self._step)
            self._keeper.save_first(path, self._step)
            self.best = Best(score, self._step, sha256=digest_file(path))
        else:
            self.best.worse += 1
        if self.patience is not None and self.best.worse >= self.patience:
            self.state["_ended"] = True
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
        state = {
            "step": self._step + 1,
            "steps_done": {role: learner.steps_done for role, learner in self.learners.items()},
            "state": self.state,
            "best": asdict(self.best) | {"value": str(self.best.value)},
            "watch": self._watch.to_json(),
            "turns": self._turns.to_json(),
            "last": {n: v for n, v in self.last.items() if math.isfinite(v)},
        }
        reach = REACH if self._watch.rolls_back else 0
        self._keeper.save(self.directory.checkpoints, self._step + 1, state, keep=self.kept, reach=reach)
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
        self._keeper.load_first(path)


def _listed(what: str, samples: Sequence[str]) -> str:
    """The first samples by name; nothing when there are none."""
    return f"{what} {', '.join(samples[:SHOWN])}{' ...' if len(samples) > SHOWN else ''}" if samples else ""
