"""Suite: what evaluation measures. Pure: from the evidence that the evaluate stage gathered to rows of a table, each with n and a 95 % interval."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

from xwin.data.conversation import Conversation, Preference
from xwin.data.sources import Rows
from xwin.data.template import Template
from xwin.engines.base import Chat, EngineKind
from xwin.learning.learner import AnyLearner
from xwin.models.causal import PackedModel
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
    stderr: float | None = None
    """Standard error of the value, where whoever publishes this metric states one."""

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
    """Nats: log-prob of the whole answer under this model less under the reference, where both read the same template and the same tokens."""
    gold: float | None = None
    """Score of the gold scorer, in its unit."""
    judged: float | None = None
    """What the judge gives it against the reference's answer: 0 lost, 1 won, 0.5 equal; None where it was not asked or not understood."""


class Workshop(Protocol):
    """What a suite that measures models or files itself may ask of the stage."""

    def path(self, ref: str) -> Path:
        """Where the model or the data that `ref` names lies."""
        ...

    def network(self, ref: str) -> PackedModel:
        """A language model in this process, loaded without an optimizer."""
        ...

    def frozen_scorer(self, model: str) -> AnyLearner:
        """A reward model, loaded without an optimizer."""
        ...

    def template(self, ref: str) -> Template:
        """The chat template of a model."""
        ...

    def preferences(self, ref: str) -> Rows[Preference]:
        """The rows of a source of preferences."""
        ...

    def chat(self, engine: EngineKind, model: str | None) -> Chat:
        """Somebody to ask: an endpoint, or `engine` over the model that `model` names. Answers are kept."""
        ...

    def asking(self, what: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
        """What to tell how many of `total` questions were answered just now; then the run may be stopped."""
        ...

    def seed(self, *path: str | int) -> int:
        """The seed of a draw."""
        ...

    def leave(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Writes rows beside the table, as a list in the file `name`, for whoever wants to look at them."""
        ...


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
    samples: Mapping[str, Sequence[Sequence[Answer]]]
    """Model that was asked for several answers -> for each prompt all of them, in the order they were drawn."""
    models: Mapping[str, str] = field(default_factory=dict)
    """Model -> reference of its weights, to ask the workshop for."""
    workshop: Workshop | None = None
    """Opens models and files; None where there is nothing but the answers."""
    talk: Callable[[str], Chat] | None = None
    """Model -> somebody to talk to: its weights in its template, by the stage's engine; None where there is nothing but the answers."""

    def families(self) -> dict[str, list[int]]:
        """Family of prompts -> indices."""
        found: dict[str, list[int]] = {}
        for i, prompt in enumerate(self.prompts):
            found.setdefault(str(prompt.meta.get("family", "all")), []).append(i)
        return found


class Suite(Kind):
    """Settings of a measurement. Each file in this folder is one."""

    package: ClassVar[str] = "xwin.suites"
    reads_answers: ClassVar[bool] = True
    """Whether it looks at the answers to the stage's prompts; one that does not asks its own questions."""

    def measure(self, evidence: Evidence) -> list[Row]:
        """Rows of the table."""
        raise NotImplementedError

    def least_samples(self) -> int:
        """How many answers to a prompt it needs of at least one model."""
        return 1

    def least_rows(self) -> int:
        """How many rows of `contenders` it asks at least."""
        return 0

    def distinct(self) -> frozenset[str]:
        """What tells its rows from those of another suite of its kind: two with one of these in common would write rows of the same names."""
        return frozenset({""})

    def questions(self, evidence: Evidence) -> Mapping[str, Sequence[str]]:
        """What it asks, by name: texts that training data should not hold."""
        return {"prompts": [prompt.prompt[-1].text for prompt in evidence.prompts]} if self.reads_answers else {}
