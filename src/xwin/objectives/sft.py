"""SFT: cross-entropy of the assistant's tokens.

Smoothed labels are those of Szegedy et al. 2015, arXiv:1512.00567, section 7: the target is 1 - e on the token and e spread evenly over the
vocabulary.

The column `weight` (per token, from Message.weight) makes some messages count more than others; without it every trained token counts 1.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge, Lt
from torch import Tensor

from xwin.data.batch import Batch, Outputs
from xwin.objectives.base import Loss, Objective, Weighting, mean


def token_weights(batch: Batch) -> Tensor:
    """[T] how much each token counts: its column `weight` where there is one, 0 outside the mask."""
    weight = batch.columns.get("weight", torch.ones_like(batch.tokens, dtype=torch.float32))
    return weight.masked_fill(~batch.mask, 0.0)


def cross_entropy(logp: Tensor, uniform: Tensor, *, smoothing: float) -> Tensor:
    """Per-token loss  L_t = -(1 - e) log pi(a_t) - e mean_v log pi(v).

    Args:
        logp: [T] of the token, nats. Carries gradient.
        uniform: [T] mean over the vocabulary, nats. Carries gradient.
        smoothing: e, in [0, 1).

    Returns:
        [T] loss, nats, unmasked, unreduced.
    """
    return -(1 - smoothing) * logp - smoothing * uniform


class Sft(Objective):
    """Maximum likelihood of the answers.  L_t = -log pi(a_t | before)"""

    weighting: Literal["token_mean", "sequence_mean"] = "token_mean"
    """Every trained token alike, or every conversation alike, so that long ones count no more than short ones."""

    label_smoothing: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Share of the target that is spread evenly over the vocabulary. 0 = none."""

    needs: ClassVar[frozenset[str]] = frozenset()

    @property
    def reads(self) -> frozenset[str]:  # pyright: ignore[reportIncompatibleVariableOverride] - here it depends on a setting
        """The mean over the vocabulary too when labels are smoothed."""
        return frozenset({"logp", "uniform"} if self.label_smoothing else {"logp"})

    def weigh(self, batch: Batch) -> Weighting:
        """token_mean: sum(w L) / sum(w). sequence_mean: the mean over conversations of sum(w L) / sum(w) in each."""
        weight = token_weights(batch)
        if self.weighting == "token_mean":
            return Weighting(weight, weight.sum())
        total = batch.per_sequence(weight)
        each = batch.per_token(torch.where(total > 0, total, 1.0))
        return Weighting(weight / each, (total > 0).sum())

    def loss(self, batch: Batch, out: Outputs) -> Loss:
        logp = out.get("logp")
        if not self.label_smoothing:
            return Loss(-logp, {})
        return Loss(cross_entropy(logp, out.get("uniform"), smoothing=self.label_smoothing), {"nll": mean(-logp, batch.mask)})
