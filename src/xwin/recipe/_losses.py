"""Losses: how often a stage may lose a worker and go on."""

from __future__ import annotations

from dataclasses import dataclass, field

from xwin.errors import WorkerLost

SHOWN = 8
"""Samples that a message names."""


@dataclass
class Losses:
    """Of one stage.

    Args:
        stage: its name.
        most: times that it may go on.
    """

    stage: str
    most: int
    _steps: list[int | None] = field(default_factory=list)

    def bear(self, lost: WorkerLost, at: tuple[int, tuple[str, ...]] | None) -> None:
        """Counts one more.

        Args:
            lost: what happened.
            at: step and samples that the stage was at; None where it has no steps, or had not begun.

        Raises:
            WorkerLost: it was one too many, or the same step has lost a worker before: then it is the step, not the worker.
        """
        step, samples = at if at is not None else (None, ())
        again = step is not None and step in self._steps
        self._steps.append(step)
        where = f"stages.{self.stage}" if step is None else f"stages.{self.stage}, step {step}"
        if again:
            named = f" Its samples: {', '.join(samples[:SHOWN])}{' ...' if len(samples) > SHOWN else ''}." if samples else ""
            fix = "look at these samples and at the memory of the workers; lower tokens_per_batch if it ran out"
            raise WorkerLost(f"the same step lost a worker twice; the last time {lost.where}: {lost.what}.{named}", where, fix) from lost
        if len(self._steps) > self.most:
            fix = f"run the same command again: it goes on where it stopped; ray.retries is {self.most}"
            raise WorkerLost(f"a worker was lost {len(self._steps)} times; the last time {lost.where}: {lost.what}", where, fix) from lost
