"""What a run says while it works. Mean, Max and Count add, so a metric over micro-batches, ranks and steps is exact.

`events.jsonl` is the truth and always on: one object a line, {"time", "stage", "step", "name", "value"}; `time` is unix seconds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias


@dataclass(frozen=True, slots=True)
class Mean:
    """A sum and the count it is divided by at the very end.  Example: Mean(3.0, 4) + Mean(1.0, 4) is 0.5"""

    sum: float
    count: float

    def __add__(self, other: Mean) -> Mean:
        return Mean(self.sum + other.sum, self.count + other.count)

    @property
    def value(self) -> float:
        """The mean; nan when nothing was counted."""
        return self.sum / self.count if self.count else math.nan


@dataclass(frozen=True, slots=True)
class Max:
    """The largest value seen."""

    value: float

    def __add__(self, other: Max) -> Max:
        return Max(max(self.value, other.value))


@dataclass(frozen=True, slots=True)
class Count:
    """How many."""

    value: float

    def __add__(self, other: Count) -> Count:
        return Count(self.value + other.value)


Measure: TypeAlias = Mean | Max | Count
Metrics: TypeAlias = Mapping[str, Measure]


def merged(first: Metrics, second: Metrics) -> dict[str, Measure]:
    """Both, added where both have the name.

    Raises:
        TypeError: the same name holds different kinds of measure.
    """
    out = dict(first)
    for name, measure in second.items():
        out[name] = out[name] + measure if name in out else measure  # type: ignore[operator]
    return out


@dataclass(frozen=True, slots=True)
class Event:
    """One number at one step.  Example: Event(1763870000.0, "ppo", 12, "reward", 0.31)"""

    time: float
    stage: str
    step: int
    name: str
    value: float
    samples: tuple[str, ...] = ()
    """The names of those that the value is about, where they must be known: samples that a stage passed over."""

    def to_json(self) -> str:
        """One line. Non-finite values become the strings "nan", "inf" and "-inf": JSON has no such numbers."""
        value = self.value if math.isfinite(self.value) else str(self.value)
        row = {"time": round(self.time, 3), "stage": self.stage, "step": self.step, "name": self.name, "value": value}
        return json.dumps(row | ({"samples": self.samples} if self.samples else {}))


def event_from_json(line: str) -> Event:
    """The inverse of Event.to_json."""
    row = json.loads(line)
    return Event(row["time"], row["stage"], row["step"], row["name"], float(row["value"]), tuple(row.get("samples", ())))


class Unit(NamedTuple):
    """A row of the catalogue."""

    unit: str
    meaning: str


TIMED = frozenset({"tokens_per_second", "seconds", "written_per_second", "memory"})
"""Metrics that depend on the clock or the machine; two runs of one recipe may differ in these alone."""

CATALOGUE: Mapping[str, Unit] = {
    "loss": Unit("nats", "training loss; per token for sft, per pair for a reward model"),
    "validation_loss": Unit("nats", "the same on held-out data"),
    "validation_accuracy": Unit("share", "held-out pairs in which the chosen answer scores higher"),
    "accuracy": Unit("share", "pairs of this step in which the chosen answer scores higher"),
    "validation_score_margin": Unit("reward", "held-out score of chosen minus score of rejected"),
    "validation_reward": Unit("reward", "mean score of answers to validation prompts"),
    "validation_length": Unit("tokens", "mean length of those answers"),
    "validation_failed": Unit("answers", "those of them that could not be scored"),
    "validation_gold": Unit("reward", "mean gold score of answers to validation prompts; nothing is trained on it"),
    "hacking": Unit("", "standard errors by which the score rose and gold fell since gold was at its best; the smaller of the two"),
    "length_drift": Unit("share", "how much longer answers to validation prompts are than at first"),
    "format_drift": Unit("bits", "how far the mix of letters, digits, spaces, breaks and signs is from that at first"),
    "kl_per_reward": Unit("nats/reward", "KL that went with a unit of validation reward, slope over the last looks"),
    "score_margin": Unit("reward", "score of chosen minus score of rejected"),
    "longer_wins": Unit("share", "pairs in which the chosen answer is the longer one: what length alone would score"),
    "validation_longer_wins": Unit("share", "the same of held-out pairs"),
    "labelled_right": Unit("share", "answers of this step that are labelled right"),
    "validation_labelled_right": Unit("share", "the same of held-out answers"),
    "disagreement": Unit("reward", "standard deviation over an ensemble's heads, of the score margin of a pair or the score of an answer"),
    "validation_disagreement": Unit("reward", "the same on held-out data"),
    "final_accuracy": Unit("share", "pairs that the published reward model ranks right: held-out ones where there are any"),
    "final_longer_wins": Unit("share", "the same pairs: what length alone would score"),
    "matched_accuracy": Unit("share", "of the pairs whose answers are about equally long, those ranked right"),
    "shorter_accuracy": Unit("share", "of the pairs whose better answer is the shorter one, those ranked right"),
    "length_correlation": Unit("", "Pearson correlation of score and length over answers"),
    "temperature": Unit("reward/nat", "raw score per nat of log-odds, fitted on held-out answers"),
    "calibration_error": Unit("share", "expected calibration error at temperature 1"),
    "calibrated_error": Unit("share", "the same at the fitted temperature"),
    "chosen_logp": Unit("nats", "log-prob of the chosen answers, summed over their tokens"),
    "rejected_logp": Unit("nats", "log-prob of the rejected answers, summed over their tokens"),
    "chosen_score": Unit("nats", "implied reward of the chosen answers"),
    "rejected_score": Unit("nats", "implied reward of the rejected answers"),
    "reference_kl": Unit("nats", "KL of the reference from the policy per token of the data, k3 estimator"),
    "nll": Unit("nats", "negative log-likelihood of the chosen answers per token"),
    "rows_dropped": Unit("rows", "rows left out because they are longer than a batch"),
    "rows_truncated": Unit("rows", "rows cut because they are longer than a batch"),
    "grad_norm": Unit("", "norm of the gradient before clipping"),
    "lr": Unit("", "learning rate"),
    "tokens": Unit("tokens", "tokens of this step, prompts included"),
    "tokens_per_second": Unit("tokens/s", "tokens trained a second"),
    "written_per_second": Unit("tokens/s", "tokens sampled a second"),
    "seconds": Unit("s", "wall time of this step"),
    "memory": Unit("GiB", "most resident memory of the process so far"),
    "reward": Unit("reward", "mean score of the rollouts, before the KL price"),
    "kl": Unit("nats", "KL to the reference per answer: sum over its tokens of the k1 estimator log pi - log ref"),
    "kl_k3": Unit("nats", "KL to the reference per token, k3 estimator"),
    "entropy": Unit("nats", "entropy of the policy per trained token"),
    "length": Unit("tokens", "mean length of the answers"),
    "repetition": Unit("share", "phrases of four tokens that an answer has written before"),
    "cut": Unit("share", "answers that hit the length limit"),
    "clipped": Unit("share", "tokens whose probability ratio was clipped"),
    "ratio_gap": Unit("nats", "largest |log ratio| at the first minibatch of the step; 0 but for rounding"),
    "approximate_kl": Unit("nats", "mean of (ratio - 1) - log ratio over the update's tokens"),
    "engine_gap": Unit("nats", "mean |engine log-prob - learner log-prob| on fresh rollouts"),
    "importance_weight": Unit("", "mean weight that corrects for the engine's probabilities"),
    "kl_loss": Unit("nats", "KL to the reference in the loss, per token"),
    "drawn": Unit("prompts", "prompts drawn for the round, those in vain counted"),
    "value_loss": Unit("reward^2", "half squared error of the critic"),
    "value_clipped": Unit("share", "tokens whose value was clipped"),
    "explained_variance": Unit("share", "1 - variance of (return - value) / variance of the return"),
    "advantage": Unit("reward", "mean advantage before whitening"),
    "zero_spread": Unit("share", "groups whose answers all got the same score"),
    "kl_coef": Unit("reward/nat", "price of one nat of KL"),
    "critic/loss": Unit("reward^2", "loss of the critic"),
    "critic/grad_norm": Unit("", "gradient norm of the critic"),
    "verified": Unit("share", "validation prompts whose answer the verifier accepts"),
    "accepted": Unit("share", "answers that were kept"),
    "skipped": Unit("samples", "samples of a step that was passed over after a rollback"),
    "rollbacks": Unit("", "times so far that a guard rolled the stage back"),
    "solved": Unit("share", "prompts with at least one kept answer"),
    "kept_reward": Unit("reward", "mean score of the answers that were kept"),
    "tokens_per_accepted": Unit("tokens", "tokens sampled for each answer that was kept"),
    "unique": Unit("share", "answers that differ from every earlier one to the same prompt"),
    "distinct_2": Unit("share", "different pairs of neighbouring tokens among all of them"),
    "kl_bound": Unit("nats", "most that choosing the best of n by score can move the kept answers from the policy: ln n - (n - 1) / n"),
}
"""Every metric that a stage may emit: its unit and what it means. A stage may add `reward/<part>` for parts of a score."""
