"""DPO: make the chosen answer more likely than the rejected one, each measured from a reference.

Rafailov et al. 2023, arXiv:2305.18290, equation 7. Against wrong labels: cDPO, Mitchell 2023, "A note on DPO with noisy preferences",
equation 3; or rDPO, Chowdhury et al. 2024, arXiv:2403.00409, section 3.1. The log-likelihood term is that of Pang et al. 2024,
arXiv:2404.19733, per token of the chosen answer; Llama 3 (arXiv:2407.21783, section 4.1.4) gives it the weight 0.2. Means instead of sums
are the length-normalised DPO of Lambert et al. 2024, arXiv:2411.15124.
Deviation: Pang et al. divide the log-likelihood by the length of prompt and answer together when the prompt is part of the chain; here
only the answer's tokens are counted, as only they are trained.
"""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Gt, Lt
from torch import Tensor
from torch.nn.functional import logsigmoid

from xwin.data.batch import Batch, Outputs
from xwin.objectives._preference import Pairs, PreferenceObjective, distance
from xwin.objectives._weighting import per_answer_token
from xwin.objectives.base import Loss, Weighting, mean, pair_mean

Smoothing = Literal["conservative", "robust"]


def dpo(chosen: Tensor, rejected: Tensor, *, beta: float, flipped: float, smoothing: Smoothing) -> Tensor:
    """Per-pair loss, with h = log-ratio of the chosen answer - log-ratio of the rejected one and e = share of flipped labels:

        plain          L_p = -log sigmoid(beta h)
        conservative   L_p = -(1 - e) log sigmoid(beta h) - e log sigmoid(-beta h)
        robust         L_p = (-(1 - e) log sigmoid(beta h) + e log sigmoid(-beta h)) / (1 - 2 e)

    Args:
        chosen: [P] log pi - log ref of the better answer, nats. Carries gradient.
        rejected: [P] of the other. Carries gradient.
        beta: reward units per nat, > 0.
        flipped: e, in [0, 0.5). 0 = plain.
        smoothing: what is done about them; "robust" is unbiased, and may be negative for a pair.

    Returns:
        [P] loss, nats.
    """
    margin = beta * (chosen - rejected)
    as_labelled, as_flipped = -logsigmoid(margin), -logsigmoid(-margin)
    if smoothing == "conservative":
        return (1 - flipped) * as_labelled + flipped * as_flipped
    return ((1 - flipped) * as_labelled - flipped * as_flipped) / (1 - 2 * flipped)


class Dpo(PreferenceObjective):
    """Logistic regression on differences of log-ratios; every pair alike."""

    beta: Annotated[float, Gt(0)] = 0.1
    """Reward units per nat of log-ratio: how dear it is to leave the reference."""

    log_ratio: Literal["sum", "mean"] = "sum"
    """Of an answer: the sum over its tokens (DPO), or the mean (length-normalised DPO, whose beta is larger: Tülu 3 takes 5)."""

    flipped: Annotated[float, Ge(0), Lt(0.5)] = 0.0
    """Share of pairs whose label is taken to be wrong."""

    smoothing: Smoothing = "conservative"
    """What is done about them: conservative (cDPO) keeps margins finite, robust (rDPO) takes the bias out of the gradient."""

    nll: Annotated[float, Ge(0)] = 0.0
    """Weight of the negative log-likelihood per token of the chosen answer, unitless. 0 = off."""

    needs: ClassVar[frozenset[str]] = frozenset({"ref_logp"})

    @property
    def start(self) -> float | None:
        return math.log(2) if self.nll == 0 else None

    def weigh(self, batch: Batch) -> Weighting:
        return pair_mean(batch)

    def loss(self, batch: Batch, out: Outputs) -> Loss:
        logp, ref_logp, pairs = out.get("logp"), batch.column("ref_logp"), Pairs.of(batch)
        of_answer = batch.per_sequence(logp - ref_logp) if self.log_ratio == "sum" else per_answer_token(batch, logp - ref_logp)
        chosen, rejected = pairs.split(of_answer)
        values = dpo(chosen, rejected, beta=self.beta, flipped=self.flipped, smoothing=self.smoothing)
        stats = pairs.stats(logp, self.beta * chosen, self.beta * rejected) | distance(batch, logp, ref_logp)
        if self.nll:
            nll, _ = pairs.split(-per_answer_token(batch, logp))
            values = values + self.nll * nll
            stats["nll"] = mean(nll)
        return Loss(values, stats)
