"""ORPO: fine-tune on the chosen answer and, in the same loss, make its odds larger than those of the rejected one. No reference.

Hong et al. 2024, arXiv:2403.07691, equations 4 (odds), 6 (the sum) and 7 (the odds ratio); the probability of an answer is the geometric
mean over its tokens (equation 3).
Deviations: probabilities are kept below 1 - 1e-6, where the odds are no longer finite in fp32. The log-likelihood is a mean over the
tokens of each chosen answer, and every pair weighs the same; trl takes the mean over all tokens of the batch, prompts included.
"""

from __future__ import annotations

import math
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge
from torch import Tensor
from torch.nn.functional import logsigmoid

from xwin.data.batch import Batch, Outputs
from xwin.objectives._preference import Pairs, PreferenceObjective
from xwin.objectives._weighting import per_answer_token
from xwin.objectives.base import Loss, Weighting, mean, pair_mean

SUREST = -1e-6
"""Nats. A mean log-probability above it counts as this."""


def log_odds(logp: Tensor) -> Tensor:
    """log(p / (1 - p)) of p = exp(logp).

    Args:
        logp: [...] nats, at most 0; above SUREST it is taken as SUREST. May carry gradient.
    """
    logp = logp.clamp(max=SUREST)
    near = logp > -math.log(2)  # each form where it is accurate; where() feeds the other a harmless number, or its gradient would be nan
    close = torch.log(-torch.expm1(torch.where(near, logp, -1.0)))
    far = torch.log1p(-torch.exp(torch.where(near, -1.0, logp)))
    return logp - torch.where(near, close, far)


def orpo(chosen: Tensor, rejected: Tensor, *, weight: float) -> Tensor:
    """Per-pair loss  L_p = -log p_chosen - weight * log sigmoid(log odds(p_chosen) - log odds(p_rejected)).

    Args:
        chosen: [P] log p of the better answer, mean over its tokens, nats. Carries gradient.
        rejected: [P] of the other. Carries gradient.
        weight: of the second term, unitless, >= 0.

    Returns:
        [P] loss, nats.
    """
    return -chosen - weight * logsigmoid(log_odds(chosen) - log_odds(rejected))


class Orpo(PreferenceObjective):
    """Log-likelihood of the chosen answer and a log-odds ratio; every pair alike."""

    weight: Annotated[float, Ge(0)] = 0.1
    """Weight of the odds ratio beside the log-likelihood, unitless (lambda in the paper)."""

    needs: ClassVar[frozenset[str]] = frozenset()

    def weigh(self, batch: Batch) -> Weighting:
        return pair_mean(batch)

    def loss(self, batch: Batch, out: Outputs) -> Loss:
        logp, pairs = out.get("logp"), Pairs.of(batch)
        chosen, rejected = pairs.split(per_answer_token(batch, logp))
        stats = pairs.stats(logp, self.weight * log_odds(chosen), self.weight * log_odds(rejected))
        stats["nll"] = mean(-chosen)
        return Loss(orpo(chosen, rejected, weight=self.weight), stats)
