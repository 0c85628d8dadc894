"""Guards watch the metrics of a stage and warn, stop or roll back.

Some are always on; a recipe adds its own: {metric: kl, above: 25, for: 3, do: stop}, {metric: loss, spike: 8, do: rollback}. What rolling
back means is in run/turns.py.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Annotated, Any, Literal, NamedTuple, Protocol, Self

from annotated_types import Ge, Gt
from pydantic import ConfigDict, Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from xwin.errors import TrainingStopped
from xwin.run.events import CATALOGUE, TIMED
from xwin.run.robust import spike_bound, trend
from xwin.spec import Spec, nearest

Action = Literal["warn", "stop", "rollback"]

TESTS = ("above", "below", "spike", "drift", "against")
BLAMES_A_STEP = frozenset({"above", "below", "spike"})
"""Tests that find fault with the last steps; a drift has no step that could be left out."""

REACH = 16
"""Steps before an alarm that rolling back may leave out, at most."""


class Guard(Spec):
    """One thing to watch. A value that is not a number is never in order."""

    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True)

    metric: str
    """Name from the catalogue of metrics, or `reward/<part>`."""

    above: float | None = None
    """Alarm when the metric is larger than this, in the metric's unit."""

    below: float | None = None
    """Alarm when the metric is smaller than this, in the metric's unit."""

    spike: Annotated[float, Gt(0)] | None = None
    """Alarm when the metric is more than this many robust standard deviations above the median of the `window` values before; 8 is rarely wrong."""

    drift: Annotated[float, Gt(0)] | None = None
    """Alarm when the median of the last `window` values is further than this from that of the first `window`, in the metric's unit."""

    against: str | None = None
    """Alarm when over the last `window` values the metric rises while this one falls, both clearly: a reward that a trusted measure contradicts."""

    window: Annotated[int, Ge(5)] = 16
    """Values that spike, drift and against look at; until there are as many they say nothing."""

    for_: Annotated[int, Ge(1)] = Field(default=1, alias="for")
    """How many times in a row, counted over the steps that report the metric."""

    do: Action = "stop"
    """Stop the stage; warn and go on; or rollback: return to a checkpoint before those steps, pass over them and go on."""

    @field_validator("metric", "against")
    @classmethod
    def _is_known(cls, name: str | None) -> str | None:
        if name is not None and name not in CATALOGUE and not name.startswith("reward/"):
            raise ValueError(f"unknown metric '{name}'; {nearest(name, list(CATALOGUE))}")
        return name

    @model_validator(mode="after")
    def _has_one_test(self) -> Self:
        given = [name for name in TESTS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"a guard needs exactly one of {', '.join(TESTS)}; this one has {' and '.join(given) or 'none'}")
        if self.do == "rollback" and not BLAMES_A_STEP & set(given):
            raise ValueError(f"{given[0]} is not the fault of single steps, so there is nothing to pass over; choose stop or warn")
        if self.do == "rollback" and self.metric in TIMED:
            raise ValueError(f"{self.metric} depends on the clock: a run that rolls back for it could not be repeated")
        if self.do == "rollback" and self.for_ > REACH:
            raise ValueError(f"a rollback reaches {REACH} steps back, not {self.for_}")
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
    """The bound that was crossed; infinite where any number would have done, nan where there is none."""
    action: Action
    steps: int = 1
    """How many steps in a row were not in order."""
    why: str = ""
    """More than the threshold says."""

    def to_json(self) -> dict[str, Any]:
        """The fields; non-finite numbers as text, for JSON has none."""
        return {key: str(value) if isinstance(value, float) and not math.isfinite(value) else value for key, value in asdict(self).items()}


def alarm_from_json(line: str | Mapping[str, Any]) -> Alarm:
    """The inverse of Alarm.to_json, or of it as text."""
    row = json.loads(line) if isinstance(line, str) else line
    return Alarm(**{**row, "value": float(row["value"]), "threshold": float(row["threshold"])})


Row = list[float]
"""One report: the metric, and the one it is compared with if there is one."""


class Verdict(NamedTuple):
    """What is not in order."""

    threshold: float
    why: str = ""


class _Test(Protocol):
    def judge(self, seen: Sequence[Row]) -> Verdict | None:
        """What is not in order about the last row, if anything."""
        ...

    def kept(self, seen: Sequence[Row]) -> list[Row]:
        """The rows that later ones are judged by."""
        ...


@dataclass(frozen=True, slots=True)
class _Bounds:
    """low <= value <= high must hold. Without bounds it asks for a number."""

    low: float = -math.inf
    high: float = math.inf

    def judge(self, seen: Sequence[Row]) -> Verdict | None:
        value = seen[-1][0]
        return None if self.low <= value <= self.high else Verdict(self.low if value < self.low else self.high)

    def kept(self, seen: Sequence[Row]) -> list[Row]:
        return []


@dataclass(frozen=True, slots=True)
class _Spike:
    deviations: float
    window: int

    def judge(self, seen: Sequence[Row]) -> Verdict | None:
        *before, (value,) = seen
        if len(before) < self.window:
            return None
        bound = spike_bound([row[0] for row in before], self.deviations)
        return Verdict(bound, f"{self.deviations:g} deviations over the {self.window} values before") if value > bound else None

    def kept(self, seen: Sequence[Row]) -> list[Row]:
        return list(seen[-self.window :])


@dataclass(frozen=True, slots=True)
class _Drift:
    most: float
    window: int

    def judge(self, seen: Sequence[Row]) -> Verdict | None:
        if len(seen) < 2 * self.window:
            return None
        then, now = (median(row[0] for row in rows) for rows in (seen[: self.window], seen[-self.window :]))
        if abs(now - then) <= self.most:
            return None
        return Verdict(then + math.copysign(self.most, now - then), f"its median was {then:.4g} in the first {self.window} values, now {now:.4g}")

    def kept(self, seen: Sequence[Row]) -> list[Row]:
        return [*seen[: self.window], *seen[self.window :][-self.window :]]


CLEAR = 2.0
"""z from which a trend is clear: about one in forty where there is none."""


@dataclass(frozen=True, slots=True)
class _Against:
    other: str
    window: int

    def judge(self, seen: Sequence[Row]) -> Verdict | None:
        if len(seen) < self.window:
            return None
        mine, theirs = (trend([row[i] for row in seen[-self.window :]]) for i in (0, 1))
        return Verdict(math.nan, f"it rises while {self.other} falls, over {self.window} values") if mine > CLEAR and theirs < -CLEAR else None

    def kept(self, seen: Sequence[Row]) -> list[Row]:
        return list(seen[-self.window :])


@dataclass(frozen=True, slots=True)
class _Rule:
    """A guard, built in or from a recipe."""

    reads: tuple[str, ...]
    """The metric, and the one it is compared with if there is one."""
    test: _Test = _Bounds()
    patience: int = 1
    action: Action = "stop"


@dataclass
class _Memory:
    """What a rule knows of the steps so far."""

    count: int = 0
    """How often in a row it was broken."""
    seen: list[Row] = field(default_factory=list)


ENGINE_GAP = "engine_gap"
LARGEST_ENGINE_GAP = 0.05
"""Nats a token, the mean of its absolute value: what no engine of the same weights has for long. In bfloat16 a step of few tokens, most of them
uncertain, may pass it once by rounding alone (0.06, answers of four tokens)."""
ENGINE_GAP_STEPS = 3
"""In a row."""
FOREIGN_ENGINE_GAP = 0.5
"""Nats a token that no rounding explains: other weights, another template."""

_FINITE = ("loss", "grad_norm", "critic/loss", "critic/grad_norm")


def _always_on(action: Action) -> tuple[_Rule, ...]:
    """Non-finite loss or gradient; a step without a token (the Learner itself refuses one that trains on none); an engine that disagrees
    with the learner by more than 0.05 nats a token three times in a row, or by more than 0.5 once, unless there is a guard of its own on that.

    Args:
        action: upon what may be the fault of single rows. It is not that of the engine.
    """
    finite = (_Rule((metric,), action=action) for metric in _FINITE)
    gap = (_Rule((ENGINE_GAP,), _Bounds(high=LARGEST_ENGINE_GAP), ENGINE_GAP_STEPS), _Rule((ENGINE_GAP,), _Bounds(high=FOREIGN_ENGINE_GAP)))
    return (*finite, _Rule(("tokens",), _Bounds(low=1), action=action), *gap)


class Watch:
    """Feeds the metrics of each step to the guards of a stage, and remembers what they need of earlier steps.

    A recipe that rolls back for anything also rolls back where loss or gradient are not finite and where a step trains nothing; else these
    stop the stage: a run that leaves out rows is another run than was asked for, so it must be asked for.

    Args:
        guards: of the recipe and the stage; those that are always on come on top, but for one on engine_gap, which takes the place of its own.
    """

    def __init__(self, guards: Sequence[Guard] = ()) -> None:
        self.rolls_back = any(guard.do == "rollback" for guard in guards)
        """Whether any guard does."""
        own = {(guard.metric,) for guard in guards} & {(ENGINE_GAP,)}
        always = (rule for rule in _always_on("rollback" if self.rolls_back else "stop") if rule.reads not in own)
        self._memory = {rule: _Memory() for rule in (*always, *map(_rule, guards))}

    def feed(self, step: int, values: Mapping[str, float]) -> list[Alarm]:
        """The alarms of this step: those that stop, those that roll back, those that warn. Guards on what is not reported wait.

        A guard that warns does so once, and again only after the metric was in order again.
        """
        found = (self._judged(rule, step, [values[name] for name in rule.reads]) for rule in self._memory if values.keys() >= set(rule.reads))
        return sorted((alarm for alarm in found if alarm), key=lambda alarm: ("stop", "rollback", "warn").index(alarm.action))

    def _judged(self, rule: _Rule, step: int, row: Row) -> Alarm | None:
        memory = self._memory[rule]
        seen = [*memory.seen, row]
        finite = all(math.isfinite(value) for value in row)
        verdict = rule.test.judge(seen) if finite else Verdict(math.inf)
        memory.count = memory.count + 1 if verdict else 0
        memory.seen = rule.test.kept(seen) if finite else memory.seen
        if verdict is None or memory.count < rule.patience or (memory.count > rule.patience and rule.action == "warn"):
            return None
        return Alarm(step, rule.reads[0], row[0], verdict.threshold, rule.action, rule.patience, verdict.why)

    def to_json(self) -> dict[str, Any]:
        """What is remembered, for a checkpoint."""
        return {str(rule): asdict(memory) for rule, memory in self._memory.items() if memory != _Memory()}

    @classmethod
    def from_json(cls, guards: Sequence[Guard], saved: Mapping[str, Any]) -> Watch:
        """The watch that `to_json` was called on, with the same guards. What other guards remembered is dropped."""
        watch = cls(guards)
        watch._memory = {rule: _Memory(**saved[str(rule)]) if str(rule) in saved else memory for rule, memory in watch._memory.items()}
        return watch


def explain(alarm: Alarm, stage: str = "", more: str = "") -> TrainingStopped:
    """The error that stops the stage: what was seen, at which step, and what to change.

    Args:
        alarm: what went off.
        stage: name of the stage; empty when the reader knows it.
        more: what else to say of it.
    """
    where = f"stages.{stage}, step {alarm.step}" if stage else f"step {alarm.step}"
    return TrainingStopped(f"{problem(alarm)}{more}", where, _fix(alarm))


def problem(alarm: Alarm) -> str:
    """What was seen, as half a sentence.  Example: "kl is 31.2 nats, above its guard of 25 nats" """
    unit = f" {CATALOGUE[alarm.metric].unit}" if alarm.metric in CATALOGUE and CATALOGUE[alarm.metric].unit else ""
    more = f" ({alarm.why})" if alarm.why else ""
    if not math.isfinite(alarm.value):
        return f"{alarm.metric} is {alarm.value}: not a finite number{more}"
    if not math.isfinite(alarm.threshold):
        return f"{alarm.metric} is {alarm.value:.4g}{unit}{more}"
    side = "above" if alarm.value > alarm.threshold else "below"
    return f"{alarm.metric} is {alarm.value:.4g}{unit}, {side} its guard of {alarm.threshold:.4g}{unit}{more}"


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
    return _Rule((guard.metric, guard.against) if guard.against else (guard.metric,), _test(guard), guard.for_, guard.do)


def _test(guard: Guard) -> _Test:
    if guard.spike is not None:
        return _Spike(guard.spike, guard.window)
    if guard.drift is not None:
        return _Drift(guard.drift, guard.window)
    if guard.against is not None:
        return _Against(guard.against, guard.window)
    return _Bounds(-math.inf if guard.below is None else guard.below, math.inf if guard.above is None else guard.above)
