"""Reward modelling from pairs: the chosen answer should score higher.

Bradley and Terry 1952; Ouyang et al. 2022, arXiv:2203.02155, equation 1; the margin as in Touvron et al. 2023, arXiv:2307.09288, equation 2.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from annotated_types import Ge
from torch import Tensor
from torch.nn.functional import logsigmoid

from xwin.data.batch import Batch, Outputs
from xwin.objectives.base import Loss, Objective, Weighting, mean, pair_mean


def bradley_terry(chosen: Tensor, rejected: Tensor, margin: Tensor, *, centre: float) -> Tensor:
    """Per-pair loss  L_p = -log sigmoid(s_chosen - s_rejected - margin) + centre * (s_chosen + s_rejected)^2.

    The second term (Eisenstein et al. 2023, arXiv:2312.09244, section 4) holds the scores near zero, which the first leaves free.

    Args:
        chosen: [P] score of the better answer, reward units. Carries gradient.
        rejected: [P] of the other. Carries gradient.
        margin: [P] how much better it must be, reward units.
        centre: weight of the second term, unitless, >= 0.

    Returns:
        [P] loss, nats.
    """
    return -logsigmoid(chosen - rejected - margin) + centre * (chosen + rejected) ** 2


class BradleyTerry(Objective):
    """Logistic regression on score differences; every pair alike."""

    centre: Annotated[float, Ge(0)] = 0.01
    """Weight of the term that holds the sum of the two scores near zero, unitless."""

    margin_scale: Annotated[float, Ge(0)] = 0.0
    """Reward units of required difference per unit of the data's margin. 0 ignores margins."""

    needs: ClassVar[frozenset[str]] = frozenset({"margin"})
    reads: ClassVar[frozenset[str]] = frozenset({"score"})

    def weigh(self, batch: Batch) -> Weighting:
        return pair_mean(batch)

    def loss(self, batch: Batch, out: Outputs) -> Loss:
        pairs = torch.tensor(batch.pairs(), dtype=torch.long, device=batch.tokens.device).reshape(-1, 2)
        chosen, rejected = out.get("score")[pairs].unbind(1)
        margin = self.margin_scale * batch.column("margin")[pairs[:, 0]]
        values = bradley_terry(chosen, rejected, margin, centre=self.centre)
        everywhere = torch.ones_like(chosen, dtype=torch.bool)
        stats = {"accuracy": mean(chosen > rejected, everywhere), "score_margin": mean(chosen - rejected, everywhere)}
        return Loss(values, stats)
