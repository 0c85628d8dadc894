"""Learner: one model, one optimizer, one objective. The verbs every algorithm shares: forward, step, publish, save, load.

In a world of several workers each has a Learner, which holds its part of one model. All call the same verbs at the same time, each with its own
share of the batches (`distributed.deal`), and all get the same metrics and raise the same errors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from xwin.data.batch import Batch, Outputs
from xwin.distributed.shard import full, gathered, joined, shard, split
from xwin.distributed.world import World
from xwin.errors import ModelError, StepRefused, TrainingStopped
from xwin.learning.about import About, about
from xwin.learning.optim import Optim, moments
from xwin.models import causal
from xwin.models.adapters import adapters_off
from xwin.models.bitsandbytes import is_quantized
from xwin.models.causal import PackedModel
from xwin.models.heads import RewardStats
from xwin.models.recompute import layers
from xwin.models.weights import Weights
from xwin.objectives.base import Objective
from xwin.run.events import Count, Max, Mean, Measure, merged


class Reader(Protocol):
    """What a reference has to do: read."""

    def forward(self, batches: Sequence[Batch], reads: frozenset[str]) -> list[Outputs]:
        """What the model says of each batch, without gradient."""
        ...


class AnyLearner(Reader, Protocol):
    """A model in training or frozen: a Learner in this process, or one that workers share. What a stage sees of either."""

    steps_done: int

    @property
    def about(self) -> About:
        """The model in a few numbers."""
        ...

    def step(self, batches: Sequence[Batch]) -> dict[str, Measure]:
        """One optimizer step; see Learner."""
        ...

    def evaluate(self, batches: Sequence[Batch]) -> dict[str, Measure]:
        """Loss and stats of the objective on held-out batches; nothing moves."""
        ...

    def origin(self) -> Reader:
        """The model as it was before it had adapters."""
        ...

    def measure_in(self, stats: RewardStats) -> None:
        """Says what the scores of a reward model mean; published with it."""
        ...

    def weights(self) -> Weights:
        """The policy as it is now, for an engine; adapters merged."""
        ...

    def publish(self, to: Path) -> None:
        """Writes a plain Hugging Face folder."""
        ...


@dataclass
class Learner:
    """One model in training, or frozen when it has no objective.

    Args:
        model: what computes; whole and alike on every worker, it leaves each its part.
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
        if self.world.size == 1:
            self.model.to(self.world.device)
        else:
            _require_shardable(self.model, self.optim)
            shard(self.model, layers(self.model.network), self.world, dtype=self.model.dtype)
            self.model.masters = split(self.model.masters, self.world)
        self.optimizer = self.optim.build(self.model.parameters()) if self.objective else None

    @property
    def about(self) -> About:
        """See AnyLearner."""
        return about(self.model)

    def origin(self) -> Reader:
        """See AnyLearner."""
        return Origin(self)

    def measure_in(self, stats: RewardStats) -> None:
        """See AnyLearner."""
        assert self.model.head is not None
        self.model.head.stats = stats

    @torch.no_grad()
    def forward(self, batches: Sequence[Batch], reads: frozenset[str]) -> list[Outputs]:
        """What the model says of each batch, without gradient."""
        return [self.model(batch.to(self.world.device), reads) for batch in batches]

    def step(self, batches: Sequence[Batch]) -> dict[str, Measure]:
        """One optimizer step. But for rounding, the gradient does not depend on how `batches` is split, packed or dealt to workers.

        Args:
            batches: this worker's share: as many as every other worker has, one of them perhaps empty.

        Returns:
            What is measured over the shares of all workers.

        Raises:
            StepRefused: loss or gradient is not finite, or nothing is trained; raised before the parameters move.
        """
        objective, optimizer = self._training()
        metrics = self._backward(objective, [b.to(self.world.device) for b in batches])
        trained = list(self._trained())
        norm = full(nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None]))
        self._require_finite(norm, metrics["loss"], batches)
        if norm > self.optim.max_norm:
            nn.utils.clip_grads_with_norm_(trained, self.optim.max_norm, norm)
        rate = self.optim.rate(self.steps_done, self.total)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        self.steps_done += 1
        return metrics | {"grad_norm": Max(float(norm)), "lr": Max(rate)}

    def _backward(self, objective: Objective, batches: Sequence[Batch]) -> dict[str, Measure]:
        """Adds the gradient of all batches, each divided by the one global count; returns loss and stats, and how many tokens there were."""
        weights = [objective.weigh(b) for b in batches]
        count = self.world.sum(torch.stack([w.count for w in weights]).sum())
        if not count:
            what, fix = "no token of the step is trained", "check masks and data"
            raise StepRefused(what, f"step {self.steps_done}", fix, metric="tokens", value=0.0, samples=self._everywhere(_names(batches)))
        metrics: dict[str, Measure] = {}
        for batch, w in zip(batches, weights, strict=True):
            loss = objective.loss(batch, self.model(batch, objective.reads))
            values = loss.values.masked_fill(w.weight == 0, 0.0)  # what is not trained may hold anything
            total = (values * w.weight).sum()
            (total / count).backward()
            metrics = merged(metrics, {"loss": Mean(float(total.detach()), float(w.count)), **loss.stats})
        return self._summed(metrics | {"tokens": Count(sum(len(b) for b in batches if any(b.ids)))})

    @torch.no_grad()
    def evaluate(self, batches: Sequence[Batch]) -> dict[str, Measure]:
        """Loss and stats of the objective on held-out batches, over the shares of all workers; nothing moves."""
        objective, _ = self._training()
        metrics: dict[str, Measure] = {}
        for batch in (b.to(self.world.device) for b in batches):
            w = objective.weigh(batch)
            loss = objective.loss(batch, self.model(batch, objective.reads))
            total = float((loss.values.masked_fill(w.weight == 0, 0.0) * w.weight).sum())
            metrics = merged(metrics, {"loss": Mean(total, float(w.count)), **loss.stats})
        return self._summed(metrics)

    def weights(self) -> Weights:
        """The policy as it is now, for an engine in this process; adapters merged. Of several workers, each has all of it."""
        with self._whole(keep=True):
            return Weights(self.steps_done, tensors=self.model.plain())

    def publish(self, to: Path) -> None:
        """Writes a plain Hugging Face folder: safetensors in fp32, adapters merged, tokenizer beside it. Of several workers, the first writes.

        Raises:
            StorageError: the disk is full, read-only, or permission is missing.
            TrainingStopped: a number is not finite.
        """
        first = self.world.rank == 0
        with self._whole(keep=first), self.world.together():
            if first:
                causal.save(self.model, self.folder, to)

    def state(self) -> dict[str, Any]:
        """Trained parameters and optimizer state as nested tensors: what a checkpoint holds and fills again in place.

        Of several workers, each has its part (DTensors); `learning.checkpoint` knows how to save them and load them into another number.
        """
        _, optimizer = self._training()
        names = {id(p): name for name, p in self.model.named_parameters()}
        trained = [p for group in optimizer.param_groups for p in group["params"]]
        parameters = {name: p.detach() for name, p in self.model.named_parameters() if p.requires_grad}
        return {"parameters": parameters, "moments": {names[id(p)]: moments(optimizer, p) for p in trained}}

    @contextmanager
    def _whole(self, *, keep: bool) -> Iterator[None]:
        """Inside, workers that keep it hold the whole model, which they can write and not compute with."""
        parts = self.model.masters
        with gathered(self.model, keep=keep):
            self.model.masters = joined(parts, keep=keep)
            try:
                yield
            finally:
                self.model.masters = parts

    def _summed(self, mine: Mapping[str, Measure]) -> dict[str, Measure]:
        """Metrics over all workers."""
        metrics: dict[str, Measure] = {}
        for one in self.world.gather(mine):
            metrics = merged(metrics, one)
        return metrics

    def _everywhere(self, names: Sequence[str]) -> list[str]:
        """The names that all workers have."""
        return [name for found in self.world.gather(names) for name in found]

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
        names = self._everywhere(self._guilty(batches)) or self._everywhere(_names(batches))
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


def _require_shardable(model: PackedModel, optim: Optim) -> None:
    if any(map(is_quantized, model.modules())):
        raise ModelError("4-bit weights cannot be dealt to several workers", "tune.quantize", "remove it, or set workers to 1")
    if optim.moments != "float32":
        raise ModelError("moments of 8 bits cannot be dealt to several workers", "optim.moments", "set it to float32, or workers to 1")


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
