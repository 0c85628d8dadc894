"""KTO: learn from answers that are good or bad each by itself, measured from what the policy gains on average.

Ethayarajh et al. 2024, arXiv:2402.01306, equation 8, with its estimate of the reference point from mismatched prompts and answers.
Deviation: the paper estimates z0 in each micro-batch; here it is a column, one number for the whole optimizer step, so that the gradient
does not depend on how the step is cut. The stage `preference` fills it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from xwin.data.batch import Batch, Outputs
from xwin.objectives._preference import PreferenceObjective, distance
from xwin.objectives._weighting import answer_mean, trained_tokens
from xwin.objectives.base import Loss, Weighting, mean
from xwin.run.events import Mean, Measure


def kto(log_ratio: Tensor, reference_point: Tensor, desirable: Tensor, *, beta: float, weights: tuple[float, float]) -> Tensor:
    """Per-answer loss  L_s = w_s (1 - sigmoid(beta (r_s - z0))) for good answers, w_s (1 - sigmoid(beta (z0 - r_s))) for bad ones.

    Args:
        log_ratio: [S] r = log pi - log ref of the whole answer, nats. The only input with gradient.
        reference_point: [S] z0 >= 0, nats.
        desirable: [S] bool.
        beta: reward units per nat, > 0.
        weights: w of good and of bad answers, unitless.

    Returns:
        [S] loss, unitless.
    """
    side = torch.where(desirable, 1.0, -1.0).to(log_ratio.dtype)
    weight = torch.where(desirable, weights[0], weights[1]).to(log_ratio.dtype)
    return weight * torch.sigmoid(-side * beta * (log_ratio - reference_point))  # 1 - sigmoid(x) = sigmoid(-x), and exact for large x


def reference_point(log_ratios: Tensor) -> float:
    """z0 = max(0, mean of log pi - log ref over answers to other prompts): the KL to the reference, without gradient.

    Args:
        log_ratios: [M] of whole answers, nats, M >= 1. All of an optimizer step.
    """
    return max(0.0, float(log_ratios.detach().double().mean()))


class Kto(PreferenceObjective):
    """Prospect theory on single answers with a label; every answer alike but for the two weights."""

    beta: Annotated[float, Gt(0)] = 0.1
    """Reward units per nat of log-ratio: how soon an answer counts as gained or lost."""

    desirable: Annotated[float, Ge(0)] = 1.0
    """Weight of good answers, unitless. Where there are more of one kind, weights that make up for it are usual."""

    undesirable: Annotated[float, Ge(0)] = 1.0
    """Weight of bad answers, unitless."""

    needs: ClassVar[frozenset[str]] = frozenset({"ref_logp", "label", "reference_point"})

    @property
    def start(self) -> float | None:
        return self.desirable / 2 if self.desirable == self.undesirable else None

    def weigh(self, batch: Batch) -> Weighting:
        return answer_mean(batch)

    def loss(self, batch: Batch, out: Outputs) -> Loss:
        logp, ref_logp, zero = out.get("logp"), batch.column("ref_logp"), batch.column("reference_point")
        log_ratio, good = batch.per_sequence(logp - ref_logp), batch.column("label") > 0.5
        values = kto(log_ratio, zero, good, beta=self.beta, weights=(self.desirable, self.undesirable))
        trained, gained = trained_tokens(batch) > 0, log_ratio > zero
        stats = self._stats(self.beta * log_ratio, batch.per_sequence(logp), {"chosen": trained & good, "rejected": trained & ~good})
        stats |= {"accuracy": mean(gained == good, trained), "kl": mean(zero, trained), **distance(batch, logp, ref_logp)}
        return Loss(values, stats)

    @staticmethod
    def _stats(reward: Tensor, logp: Tensor, sides: Mapping[str, Tensor]) -> dict[str, Measure]:
        """Rewards and log-probs of good answers (chosen) and of bad ones (rejected); left out where the batch has none."""
        found: dict[str, Mean] = {}
        for side, where in sides.items():
            found |= {f"{side}_score": mean(reward, where), f"{side}_logp": mean(logp, where)}
        return {name: measure for name, measure in found.items() if measure.count}
