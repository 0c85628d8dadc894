"""SimPO: the reward of an answer is its mean log-probability, and the chosen one must win by a margin. No reference.

Meng et al. 2024, arXiv:2405.14734, equation 6.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

from annotated_types import Ge, Gt
from torch import Tensor
from torch.nn.functional import logsigmoid

from xwin.data.batch import Batch, Outputs
from xwin.objectives._preference import Pairs, PreferenceObjective
from xwin.objectives._weighting import per_answer_token
from xwin.objectives.base import Loss, Weighting, pair_mean


def simpo(chosen: Tensor, rejected: Tensor, *, beta: float, gamma: float) -> Tensor:
    """Per-pair loss  L_p = -log sigmoid(beta * chosen - beta * rejected - gamma).

    Args:
        chosen: [P] log-probability per token of the better answer, nats. Carries gradient.
        rejected: [P] of the other. Carries gradient.
        beta: reward units per nat, > 0.
        gamma: by how much the better answer must win, reward units, >= 0.

    Returns:
        [P] loss, nats.
    """
    return -logsigmoid(beta * (chosen - rejected) - gamma)


class Simpo(PreferenceObjective):
    """Logistic regression on differences of mean log-probabilities; every pair alike."""

    beta: Annotated[float, Gt(0)] = 2.0
    """Reward units per nat of mean log-probability."""

    gamma: Annotated[float, Ge(0)] = 1.0
    """By how much the chosen answer must win, reward units; usually less than beta."""

    needs: ClassVar[frozenset[str]] = frozenset()

    def weigh(self, batch: Batch) -> Weighting:
        return pair_mean(batch)

    def loss(self, batch: Batch, out: Outputs) -> Loss:
        logp, pairs = out.get("logp"), Pairs.of(batch)
        chosen, rejected = pairs.split(per_answer_token(batch, logp))
        stats = pairs.stats(logp, self.beta * chosen, self.beta * rejected)
        return Loss(simpo(chosen, rejected, beta=self.beta, gamma=self.gamma), stats)
