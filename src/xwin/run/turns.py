"""Rolling back: where a stage turned back, which steps it passes over from then on, and why.

An alarm at step g blames the steps that broke its guard, the last of them g. The stage returns to a checkpoint before the first of them,
goes forward again as before, and passes over the blamed steps: their rows are not trained on. Which checkpoint it was makes no difference
to the result, because everything between it and the first blamed step is done again exactly. So the result is a function of the recipe,
and not of when checkpoints were written.

The update that did the harm may come before the step that shows it. Then the alarm comes again at the first step after those passed over,
and the stretch grows: it doubles backwards, and takes in the new step. (Chowdhery et al. 2022, arXiv:2204.02311, section 5.1, also passed
over batches before and during a spike.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from xwin.run.guards import REACH, Alarm, alarm_from_json


@dataclass(frozen=True, slots=True)
class Turn:
    """One time that a stage turned back."""

    first: int
    """The first step to pass over; the last one is that of the alarm."""
    floor: int
    """No step before this one is blamed, however often the alarm comes again: a checkpoint is kept that is no later."""
    alarm: Alarm


@dataclass(frozen=True, slots=True)
class Turns:
    """Every time that a stage turned back, in order. Alarms come at later and later steps."""

    made: tuple[Turn, ...] = ()

    def skips(self, step: int) -> bool:
        """Whether the step is passed over."""
        return any(turn.first <= step <= turn.alarm.step for turn in self.made)

    def until(self, step: int) -> tuple[Turn, ...]:
        """Those whose alarm came at `step` or before."""
        return tuple(turn for turn in self.made if turn.alarm.step <= step)

    def after(self, alarm: Alarm) -> Turns:
        """With one more."""
        first, floor = alarm.step - alarm.steps + 1, max(0, alarm.step - REACH)
        last = self.made[-1] if self.made else None
        if last is not None and first <= last.alarm.step + 1:
            first, floor = last.first - (last.alarm.step - last.first + 1), last.floor
        return Turns((*self.made, Turn(max(first, floor), floor, alarm)))

    def to_json(self) -> list[Any]:
        """For a checkpoint."""
        return [{"first": turn.first, "floor": turn.floor, "alarm": turn.alarm.to_json()} for turn in self.made]


def turns_from_json(rows: Sequence[Any]) -> Turns:
    """The inverse of Turns.to_json."""
    return Turns(tuple(Turn(row["first"], row["floor"], alarm_from_json(row["alarm"])) for row in rows))
