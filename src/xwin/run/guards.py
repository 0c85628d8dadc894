"""Guards watch the metrics of a stage and warn or stop. Some are always on; a recipe adds its own: {metric: kl, above: 25, for: 3, do: stop}."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from annotated_types import Ge
from pydantic import ConfigDict, Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from xwin.errors import TrainingStopped
from xwin.run.events import CATALOGUE
from xwin.spec import Spec, nearest

Action = Literal["warn", "stop"]


class Guard(Spec):
    """One thing to watch. A value that is not a number is never within the bound."""

    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True)

    metric: str
    """Name from the catalogue of metrics, or `reward/<part>`."""

    above: float | None = None
    """Alarm when the metric is larger than this, in the metric's unit."""

    below: float | None = None
    """Alarm when the metric is smaller than this, in the metric's unit."""

    for_: Annotated[int, Ge(1)] = Field(default=1, alias="for")
    """How many times in a row, counted over the steps that report the metric."""

    do: Action = "stop"
    """Stop the stage, or warn and go on."""

    @field_validator("metric")
    @classmethod
    def _is_known(cls, name: str) -> str:
        if name not in CATALOGUE and not name.startswith("reward/"):
            raise ValueError(f"unknown metric '{name}'; {nearest(name, list(CATALOGUE))}")
        return name

    @model_validator(mode="after")
    def _has_one_bound(self) -> Self:
        if (self.above is None) == (self.below is None):
            raise ValueError(f"a guard needs exactly one of 'above' and 'below'; this one has {'neither' if self.above is None else 'both'}")
        return self

    @model_serializer(mode="wrap")
    def _as_written(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """The key is `for` in a recipe, whatever class holds the guard."""
        return {"for" if key == "for_" else key: value for key, value in handler(self).items()}


@dataclass(frozen=True, slots=True)
class Alarm:
    """What a guard says.  Example: Alarm(12, "kl", 31.2, 25.0, "stop")"""

    step: int
    metric: str
    value: float
    """In the metric's unit."""
    threshold: float
    """The bound that was crossed; infinite where any number would have done."""
    action: Action


@dataclass(frozen=True, slots=True)
class _Rule:
    """A guard, built in or from a recipe: low <= value <= high must hold."""

    metric: str
    low: float = -math.inf
    high: float = math.inf
    patience: int = 1
    action: Action = "stop"

    def broken(self, value: float) -> bool:
        """Infinite values break even a rule without bounds: it asks for a number."""
        return not (math.isfinite(value) and self.low <= value <= self.high)

    def threshold(self, value: float) -> float:
        return self.low if value < self.low or math.isinf(self.high) else self.high

    def key(self) -> str:
        return f"{self.metric} {self.low} {self.high} {self.patience} {self.action}"


ENGINE_GAP = "engine_gap"
LARGEST_ENGINE_GAP = 0.05
"""Nats a token, the mean of its absolute value."""

_FINITE = ("loss", "grad_norm", "critic/loss", "critic/grad_norm")
ALWAYS_ON = (
    *(_Rule(metric) for metric in _FINITE),
    _Rule("tokens", low=1),
    _Rule(ENGINE_GAP, high=LARGEST_ENGINE_GAP),
)
"""Non-finite loss or gradient; a step without a token (the Learner itself refuses one that trains on none); an engine that disagrees
with the learner by more than 0.05 nats a token, unless the stage or the recipe has a guard of its own on that."""


class Watch:
    """Feeds the metrics of each step to the guards of a stage, and counts how often in a row each was broken.

    Args:
        guards: of the recipe and the stage; those that are always on come on top, but for one on engine_gap, which takes the place of its own.
    """

    def __init__(self, guards: Sequence[Guard] = ()) -> None:
        own = {guard.metric for guard in guards} & {ENGINE_GAP}
        always = (rule for rule in ALWAYS_ON if rule.metric not in own)
        self._rules = tuple(dict.fromkeys((*always, *(_rule(guard) for guard in guards))))
        self._counts = dict.fromkeys((rule.key() for rule in self._rules), 0)

    def feed(self, step: int, values: Mapping[str, float]) -> list[Alarm]:
        """The alarms of this step, those that stop first. A metric that is not reported leaves its counts as they are.

        A guard that warns does so once, and again only after the metric was back within its bound.
        """
        alarms = []
        for rule in self._rules:
            if rule.metric not in values:
                continue
            value = values[rule.metric]
            count = self._counts[rule.key()] = self._counts[rule.key()] + 1 if rule.broken(value) else 0
            if count == rule.patience or (count > rule.patience and rule.action == "stop"):
                alarms.append(Alarm(step, rule.metric, value, rule.threshold(value), rule.action))
        return sorted(alarms, key=lambda alarm: alarm.action != "stop")

    def to_json(self) -> dict[str, int]:
        """The counts that are not zero, for a checkpoint."""
        return {key: count for key, count in self._counts.items() if count}

    @classmethod
    def from_json(cls, guards: Sequence[Guard], counts: Mapping[str, int]) -> Watch:
        """The watch that `to_json` was called on, with the same guards. Counts of other guards are dropped."""
        watch = cls(guards)
        watch._counts |= {key: count for key, count in counts.items() if key in watch._counts}
        return watch


def explain(alarm: Alarm, stage: str = "") -> TrainingStopped:
    """The error that stops the stage: what was seen, at which step, and what to change.

    Args:
        alarm: one whose action is "stop".
        stage: name of the stage; empty when the reader knows it.
    """
    unit = CATALOGUE[alarm.metric].unit if alarm.metric in CATALOGUE else ""
    where = f"stages.{stage}, step {alarm.step}" if stage else f"step {alarm.step}"
    return TrainingStopped(f"{alarm.metric} is {_problem(alarm, f' {unit}' if unit else '')}", where, _fix(alarm))


def _problem(alarm: Alarm, unit: str) -> str:
    if not math.isfinite(alarm.value):
        return f"{alarm.value}: not a finite number"
    side = "above" if alarm.value > alarm.threshold else "below"
    return f"{alarm.value:.4g}{unit}, {side} its guard of {alarm.threshold:.4g}{unit}"


def _fix(alarm: Alarm) -> str:
    if alarm.metric == "tokens":
        return "the step had nothing to learn from: look at its rows, their masks and the length limit"
    if alarm.metric == ENGINE_GAP:
        what = "the engine does not write from the policy that is trained: check the template, the dtype and the weights it loaded"
        return f"{what}; where it must differ, set credit.correction or a guard of your own on {ENGINE_GAP}"
    if alarm.metric in _FINITE:
        return "lower lr, warm up longer, or clip the gradient harder; if it is the first step, look at the data and the dtype"
    if alarm.metric.startswith("kl"):
        return "raise kl.coef, lower lr or take fewer epochs a step; or move the guard if this much KL is wanted"
    return "look at the curve and the samples in the report, change the settings that drive it, or move the guard"


def _rule(guard: Guard) -> _Rule:
    low = -math.inf if guard.below is None else guard.below
    high = math.inf if guard.above is None else guard.above
    return _Rule(guard.metric, low, high, guard.for_, guard.do)
