"""Suite: what evaluation measures. Pure: from the evidence that the evaluate stage gathered to rows of a table, each with n and a 95 % interval."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from xwin.data.conversation import Conversation
from xwin.run.statistics import Interval, Paired
from xwin.spec import Kind


@dataclass(frozen=True, slots=True)
class Row:
    """A number of the table.  Example: Row("ppo", "accuracy", 0.61, 0.55, 0.67, 240, p=0.003, against="sft2")"""

    model: str
    metric: str
    value: float
    low: float
    """Lower end of the 95 % interval."""
    high: float
    n: int
    p: float | None = None
    """Of the paired test against `against`."""
    against: str | None = None
    note: str = ""

    @classmethod
    def of(cls, model: str, metric: str, interval: Interval, test: Paired | None = None, against: str | None = None, *, note: str = "") -> Row:
        """A row from an interval and, where there is one, a paired test."""
        return cls(model, metric, interval.value, interval.low, interval.high, interval.n, test.p if test else None, against if test else None, note)

    def to_json(self) -> dict[str, Any]:
        """Every field that is set. An interval of one prompt has no ends: JSON knows no nan, so they are left out."""
        known = {name: value for name, value in asdict(self).items() if value not in (None, "")}
        return {name: value for name, value in known.items() if not (isinstance(value, float) and math.isnan(value))}


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer of one model to one prompt."""

    text: str
    passed: bool
    """Whether the gold scorer accepts it."""
    length: int
    """Tokens, the stop token included."""
    reward: float | None = None
    """Score of the reward model, where it was asked."""
    kl: float | None = None
    """Nats: log-prob of the whole answer under this model less under the reference, where both read the same template."""
    judged: float | None = None
    """What the judge gives it against the reference's answer: 0 lost, 1 won, 0.5 equal; None where it was not asked or not understood."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the evaluate stage gathered."""

    prompts: Sequence[Conversation]
    answers: Mapping[str, Sequence[Answer]]
    """Model, in order of training -> one answer per prompt."""
    before: Mapping[str, str]
    """Model -> the model of the stage before it, for paired tests."""
    reference: str
    """Model that win rates and KL are measured against."""
    samples: Sequence[Sequence[Answer]]
    """For each prompt several answers of one policy, with rewards: what a reward model is tested on."""

    def families(self) -> dict[str, list[int]]:
        """Family of prompts -> indices."""
        found: dict[str, list[int]] = {}
        for i, prompt in enumerate(self.prompts):
            found.setdefault(str(prompt.meta.get("family", "all")), []).append(i)
        return found


class Suite(Kind):
    """Settings of a measurement. Each file in this folder is one."""

    package: ClassVar[str] = "xwin.suites"

    def measure(self, evidence: Evidence) -> list[Row]:
        """Rows of the table."""
        raise NotImplementedError
