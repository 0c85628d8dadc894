"""Objective: math over a Batch and what the model says about it. Per-unit values out; the Learner divides by one global count."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from xwin.data.batch import Batch, Outputs
from xwin.run.events import Mean, Measure
from xwin.spec import Kind


@dataclass(frozen=True)
class Weighting:
    """loss = sum(values * weight) / global sum(count)."""

    weight: Tensor
    """Same shape as the loss values; 0 = not trained."""
    count: Tensor
    """[] adds over micro-batches and ranks."""


@dataclass(frozen=True)
class Loss:
    """What an objective returns."""

    values: Tensor
    """[T], [S] or [P], unmasked and unreduced."""
    stats: Mapping[str, Measure]
    """Each adds over micro-batches: a Mean is a (sum, count) pair."""


class Objective(Kind):
    """Math of one method. Each file in this folder is one."""

    package: ClassVar[str] = "xwin.objectives"
    needs: ClassVar[frozenset[str]] = frozenset()
    """Columns of the batch it reads; checked when the recipe is planned."""
    reads: ClassVar[frozenset[str]] = frozenset({"logp"})
    """Model outputs it reads."""

    def weigh(self, batch: Batch) -> Weighting:
        """From the batch alone, so it is known before any forward pass. Default: every trained token alike (token-mean)."""
        return token_mean(batch)

    def loss(self, batch: Batch, out: Outputs) -> Loss:
        """Values of the same shape as `weigh`'s weights."""
        raise NotImplementedError


def token_mean(batch: Batch) -> Weighting:
    """Every trained token weighs the same."""
    return Weighting(batch.mask.float(), batch.mask.sum())


def pair_mean(batch: Batch) -> Weighting:
    """Every bonded pair weighs the same. [P]"""
    pairs = len(batch.pairs())
    return Weighting(torch.ones(pairs, device=batch.tokens.device), torch.tensor(pairs, device=batch.tokens.device))


def mean(values: Tensor, where: Tensor | None = None) -> Mean:
    """The sum and count of `values` where `where` is True, None = everywhere; any shape."""
    picked = values.detach().double()
    picked = picked if where is None else picked.masked_select(where)
    return Mean(float(picked.sum()), float(picked.numel()))
