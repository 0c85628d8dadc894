"""REINFORCE: the plain policy gradient.

Williams 1992, "Simple statistical gradient-following algorithms for connectionist reinforcement learning", section 4. With credit against the
other answers of a prompt (credit group, baseline leave_one_out, scale none) it is RLOO: Ahmadian et al. 2024, arXiv:2402.14740, the estimator
that follows equation 8, after Kool et al. 2019.

    L_t = -A_t log pi(a_t)

There is no ratio: the answers must be the policy's own, so one pass over them, and one minibatch.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from xwin.data.batch import Batch, Outputs
from xwin.objectives._weighting import TokenMean, TokenWeighting
from xwin.objectives.base import Loss, Objective, Weighting, mean


def reinforce(logp: Tensor, advantage: Tensor) -> Tensor:
    """Per-token loss  L_t = -A_t log pi(a_t).

    Args:
        logp: [T] log-probability under the policy in training, nats. The only input with gradient.
        advantage: [T] credit, reward units.

    Returns:
        [T] loss, unmasked, unreduced. Its value means nothing; its gradient does.
    """
    return -advantage * logp


class Reinforce(Objective):
    """The plain policy gradient, for answers of the policy as it is now."""

    weighting: TokenWeighting = TokenMean()
    """How the tokens of a step share it."""

    needs: ClassVar[frozenset[str]] = frozenset({"advantage"})
    reads: ClassVar[frozenset[str]] = frozenset({"logp", "entropy"})

    def weigh(self, batch: Batch) -> Weighting:
        return self.weighting.weigh(batch)

    def loss(self, batch: Batch, out: Outputs) -> Loss:
        values = reinforce(out.get("logp"), batch.column("advantage"))
        return Loss(values, {"entropy": mean(out.get("entropy"), batch.mask)})
