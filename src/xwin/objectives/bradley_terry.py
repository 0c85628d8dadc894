"""Reward modelling from pairs: the chosen answer should score higher.

Bradley and Terry 1952; Ouyang et al. 2022, arXiv:2203.02155, equation 1; the margin as in Touvron et al. 2023, arXiv:2307.09288, equation 2;
smoothed labels as in Mitchell 2023, "A note on DPO with noisy preferences", equation 3, on scores instead of log-ratios.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

from annotated_types import Ge, Lt
from torch import Tensor
from torch.nn.functional import logsigmoid

from xwin.data.batch import Batch, Outputs
from xwin.objectives._preference import Pairs
from xwin.objectives._reward import RewardObjective, disagreement, each_head, longer
from xwin.objectives._weighting import trained_tokens
from xwin.objectives.base import Loss, Weighting, mean, pair_mean


def bradley_terry(chosen: Tensor, rejected: Tensor, margin: Tensor, *, centre: float, flipped: float) -> Tensor:
    """Per-pair loss  L_p = -(1 - e) log sigmoid(d) - e log sigmoid(-d) + centre * (s_chosen + s_rejected)^2,  d = s_chosen - s_rejected - margin.

    The last term (Eisenstein et al. 2023, arXiv:2312.09244, section 4) holds the scores near zero, which the others leave free. With e above
    0 the loss is least where d = log((1 - e) / e): differences stay finite.

    Args:
        chosen: [P] score of the better answer, reward units. Carries gradient. Here and below, any shape will do.
        rejected: [P] of the other. Carries gradient.
        margin: [P] how much better it must be, reward units.
        centre: weight of the last term, unitless, >= 0.
        flipped: e, the share of labels taken to be wrong, in [0, 0.5).

    Returns:
        [P] loss, nats.
    """
    difference = chosen - rejected - margin
    smoothed = -(1 - flipped) * logsigmoid(difference) - flipped * logsigmoid(-difference)
    return smoothed + centre * (chosen + rejected) ** 2


class BradleyTerry(RewardObjective):
    """Logistic regression on score differences; every pair alike."""

    centre: Annotated[float, Ge(0)] = 0.01
    """Weight of the term that holds the sum of the two scores near zero, unitless."""

    margin_scale: Annotated[float, Ge(0)] = 0.0
    """Reward units of required difference per unit of the data's margin. 0 ignores margins."""

    flipped: Annotated[float, Ge(0), Lt(0.5)] = 0.0
    """Share of pairs whose label is taken to be wrong. 0 = none."""

    needs: ClassVar[frozenset[str]] = frozenset({"margin"})

    @property
    def start(self) -> float | None:
        return None if self.margin_scale else super().start

    def weigh(self, batch: Batch) -> Weighting:
        return pair_mean(batch)

    def loss(self, batch: Batch, out: Outputs) -> Loss:
        pairs = Pairs.of(batch)
        chosen, rejected = pairs.split(each_head(out.get("score")))  # [P, K] each
        margin = self.margin_scale * batch.column("margin")[pairs.chosen]
        values = bradley_terry(chosen, rejected, margin[:, None], centre=self.centre, flipped=self.flipped).mean(1)
        gap = (chosen - rejected).mean(1)
        stats = {
            "accuracy": mean(gap > 0),
            "longer_wins": mean(longer(*pairs.split(trained_tokens(batch)))),
            "score_margin": mean(gap),
            **disagreement(chosen - rejected),
        }
        return Loss(values, stats)
