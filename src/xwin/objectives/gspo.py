"""GSPO: one ratio per answer, the geometric mean of its tokens' ratios, clipped as a whole.

Zheng et al. 2025, arXiv:2507.18071, equations 5 and 7:

    L_i = -min(s_i A_i, clip(s_i, 1 - low, 1 + high) A_i),  s_i = (pi(y_i | x) / pi_old(y_i | x))^(1/|y_i|) = exp(mean_t log r_it)

The mean of logs is taken before the exponential. A mean over a whole answer moves far less than one token does, so the slacks are some
thousand times smaller than PPO's; the defaults are those of its section 5.1. Deviation: A_i is the mean of the advantages of the answer's
tokens, which is the answer's own wherever credit gives all of them the same.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from xwin.data.batch import Batch, Outputs
from xwin.objectives._clip import Clip, drift, is_clipped, ratio_of
from xwin.objectives._weighting import answer_mean, per_answer_token, trained_tokens
from xwin.objectives.base import Loss, Objective, Weighting, mean
from xwin.objectives.ppo import surrogate


def sequence_ratio(log_ratio: Tensor, batch: Batch) -> Tensor:
    """[S] exp of the mean of log_ratio [T] over each answer's trained tokens; 1 for a segment without any."""
    return ratio_of(per_answer_token(batch, log_ratio))


class Gspo(Objective):
    """The clipped surrogate with one ratio per answer; every answer alike."""

    clip: Clip = (3e-4, 4e-4)
    """How far an answer's ratio may leave 1 before its gradient is cut, unitless; [below, above] for two slacks."""

    needs: ClassVar[frozenset[str]] = frozenset({"old_logp", "advantage"})
    reads: ClassVar[frozenset[str]] = frozenset({"logp", "entropy"})

    def weigh(self, batch: Batch) -> Weighting:
        return answer_mean(batch)

    def loss(self, batch: Batch, out: Outputs) -> Loss:
        logp, old_logp = out.get("logp"), batch.column("old_logp")
        ratio = sequence_ratio(logp - old_logp, batch)
        advantage = per_answer_token(batch, batch.column("advantage"))
        values = surrogate(ratio, advantage, clip=self.clip, dual_clip=None)
        clipped = mean(is_clipped(ratio.detach(), advantage, self.clip), trained_tokens(batch) > 0)
        return Loss(values, {"clipped": clipped, **drift(logp.detach(), old_logp, out.get("entropy"), batch.mask)})
