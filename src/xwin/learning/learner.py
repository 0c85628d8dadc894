"""Learner: one model, one optimizer, one objective. The verbs every algorithm shares: forward, step, publish, save, load."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from xwin.data.batch import Batch, Outputs
from xwin.distributed.world import World
from xwin.errors import StepRefused, TrainingStopped
from xwin.learning.optim import Optim, moments
from xwin.models import causal
from xwin.models.adapters import adapters_off
from xwin.models.causal import PackedModel
from xwin.models.weights import Weights
from xwin.objectives.base import Objective
from xwin.run.events import Count, Max, Mean, Measure, merged


class Reader(Protocol):
    """What a reference has to do: read."""

    def forward(self, batches: Sequence[Batch], reads: frozenset[str]) -> list[Outputs]:
        """What the model says of each batch, without gradient."""
        ...


@dataclass
class Learner:
    """One model in training, or frozen when it has no objective.

    Args:
        model: what computes.
        folder: Hugging Face folder it came from; its tokenizer goes along when it is published.
        world: where this worker stands.
        objective: None = frozen: only forward may be called.
        optim: how parameters move.
        total: optimizer steps the schedule is laid out for.
    """

    model: PackedModel
    folder: Path
    world: World
    objective: Objective | None = None
    optim: Optim = field(default_factory=Optim)
    total: int = 1
    steps_done: int = 0

    def __post_init__(self) -> None:
        self.model.to(self.world.device)
        self.optimizer = self.optim.build(self.model.parameters()) if self.objective else None

    @torch.no_grad()
    def forward(self, batches: Sequence[Batch], reads: frozenset[str]) -> list[Outputs]:
        """What the model says of each batch, without gradient."""
        return [self.model(batch.to(self.world.device), reads) for batch in batches]

    def step(self, batches: Sequence[Batch]) -> dict[str, Measure]:
        """One optimizer step. But for rounding, the gradient does not depend on how `batches` is split, packed or dealt to ranks.

        Raises:
            StepRefused: loss or gradient is not finite, or nothing is trained; raised before the parameters move.
        """
        objective, optimizer = self._training()
        metrics = self._backward(objective, [b.to(self.world.device) for b in batches])
        trained = list(self._trained())
        norm = nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
        self._require_finite(norm, metrics["loss"], batches)
        if norm > self.optim.max_norm:
            nn.utils.clip_grads_with_norm_(trained, self.optim.max_norm, norm)
        rate = self.optim.rate(self.steps_done, self.total)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        self.steps_done += 1
        tokens = sum(len(b) for b in batches)
        return metrics | {"grad_norm": Max(float(norm)), "lr": Max(rate), "tokens": Count(tokens)}

    def _backward(self, objective: Objective, batches: Sequence[Batch]) -> dict[str, Measure]:
        """Adds the gradient of all batches, each divided by the one global count; returns loss and stats."""
        weights = [objective.weigh(b) for b in batches]
        count = self.world.sum(torch.stack([w.count for w in weights]).sum())
        if not count:
            what, fix = "no token of the step is trained", "check masks and data"
            raise StepRefused(what, f"step {self.steps_done}", fix, metric="tokens", value=0.0, samples=_names(batches))
        metrics: dict[str, Measure] = {}
        for batch, w in zip(batches, weights, strict=True):
            loss = objective.loss(batch, self.model(batch, objective.reads))
            values = loss.values.masked_fill(w.weight == 0, 0.0)  # what is not trained may hold anything
            total = (values * w.weight).sum()
            (total / count).backward()
            metrics = merged(metrics, {"loss": Mean(float(total.detach()), float(w.count)), **loss.stats})
        return metrics

    @torch.no_grad()
    def evaluate(self, batches: Sequence[Batch]) -> dict[str, Measure]:
        """Loss and stats of the objective on held-out batches; nothing moves."""
        objective, _ = self._training()
        metrics: dict[str, Measure] = {}
        for batch in (b.to(self.world.device) for b in batches):
            w = objective.weigh(batch)
            loss = objective.loss(batch, self.model(batch, objective.reads))
            total = float((loss.values.masked_fill(w.weight == 0, 0.0) * w.weight).sum())
            metrics = merged(metrics, {"loss": Mean(total, float(w.count)), **loss.stats})
        return metrics

    def weights(self) -> Weights:
        """The policy as it is now, for an engine in this process; adapters merged."""
        return Weights(self.steps_done, tensors=self.model.plain())

    def publish(self, to: Path) -> None:
        """Writes a plain Hugging Face folder: safetensors in fp32, adapters merged, tokenizer beside it."""
        causal.save(self.model, self.folder, to)

    def state(self) -> dict[str, Any]:
        """Trained parameters and optimizer state as nested tensors: what a checkpoint holds and fills again in place."""
        _, optimizer = self._training()
        names = {id(p): name for name, p in self.model.named_parameters()}
        trained = [p for group in optimizer.param_groups for p in group["params"]]
        parameters = {name: p.detach() for name, p in self.model.named_parameters() if p.requires_grad}
        return {"parameters": parameters, "moments": {names[id(p)]: moments(optimizer, p) for p in trained}}

    def _training(self) -> tuple[Objective, torch.optim.Optimizer]:
        if self.objective is None or self.optimizer is None:
            raise TrainingStopped("this model is frozen", str(self.folder))
        return self.objective, self.optimizer

    def _trained(self) -> Iterator[nn.Parameter]:
        return (p for p in self.model.parameters() if p.requires_grad)

    def _require_finite(self, norm: Tensor, loss: Measure, batches: Sequence[Batch]) -> None:
        if math.isfinite(float(norm)) and math.isfinite(loss.value):
            return
        self._training()[1].zero_grad(set_to_none=True)
        names = self._guilty(batches) or _names(batches)
        metric, value = ("grad_norm", float(norm)) if math.isfinite(loss.value) else ("loss", loss.value)
        raise StepRefused(
            f"loss {loss.value:.4g} or gradient norm {float(norm):.4g} is not finite; stopped before the update",
            f"step {self.steps_done}, samples {', '.join(names[:8])}{' ...' if len(names) > 8 else ''}",
            "look at these samples, or lower lr; a guard with `do: rollback` passes over such steps",
            metric=metric,
            value=value,
            samples=names,
        )

    @torch.no_grad()
    def _guilty(self, batches: Sequence[Batch]) -> list[str]:
        """Names of the samples whose own part of the loss, weighted, is not finite or too large to be added up."""
        objective, _ = self._training()
        found: list[str] = []
        for batch in (b.to(self.world.device) for b in batches):
            weight = objective.weigh(batch).weight
            parts = (objective.loss(batch, self.model(batch, objective.reads)).values * weight).masked_fill(weight == 0, 0.0)
            segments = _segments(batch, ~(parts.abs() < LARGEST_PART))
            found += dict.fromkeys(batch.ids[s] for s in segments if batch.ids[s])
        return found


LARGEST_PART = 1e30
"""Of a step's loss in one unit of it, nats times weight: fp32 ends at 3.4e38, and squares of gradients are added."""


def _names(batches: Sequence[Batch]) -> list[str]:
    """Ids of all samples."""
    return [name for batch in batches for name in batch.ids if name]


def _segments(batch: Batch, units: Tensor) -> list[int]:
    """The segments of those units of a loss that are True.

    Args:
        batch: of S segments, T tokens and P pairs.
        units: [T], [S] or [P] bool.
    """
    places = units.nonzero().squeeze(1).tolist()
    if len(units) == len(batch):
        return [int(batch.segment[t]) for t in places]
    if len(units) == len(batch.ids):
        return places
    pairs = batch.pairs()
    return [segment for p in places for segment in pairs[p]]


@dataclass(frozen=True)
class Origin:
    """The model that a policy with adapters started from: the policy itself with its adapters off, so that no second copy is kept."""

    policy: Learner

    def forward(self, batches: Sequence[Batch], reads: frozenset[str]) -> list[Outputs]:
        """See Reader."""
        with adapters_off(self.policy.model.network):
            return self.policy.forward(batches, reads)
