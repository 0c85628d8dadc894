"""GRPO and its successors: PPO's clipped surrogate without a critic, a choice of weighting, KL in the loss if wanted.

Shao et al. 2024, arXiv:2402.03300, equation 3:

    L = -1/G sum_i 1/|o_i| sum_t [ min(r_it A_it, clip(r_it, 1 - low, 1 + high) A_it) - beta KL_it ],  r_it = pi(o_it) / pi_old(o_it)

    GRPO as published   weighting sequence_mean, kl {coef: 0.04, estimator: k3, gradient: estimator}, credit group with scale std
    DAPO                weighting token_mean, clip [0.2, 0.28], no KL (Yu et al. 2025, arXiv:2503.14476, equation 8)
    Dr. GRPO            weighting fixed_length, credit group with scale none, no KL (Liu et al. 2025, arXiv:2503.20783, section 3.2)
    REINFORCE++         credit round; its baseline form takes kl {estimator: k2} (Hu et al. 2025, arXiv:2501.03262, equations 5, 7, 8)

Deviations from the paper: the defaults are DAPO's weighting and no KL in the loss; KL in the loss has the gradient of KL(pi || ref) unless
the published one is asked for; its count is over all answers of a step, not a mean over prompts of means over their answers (the same when
every prompt has as many answers).
"""

from __future__ import annotations

from typing import ClassVar

from xwin.data.batch import Batch, Outputs
from xwin.objectives._clip import Clip, drift, is_clipped, ratio_of
from xwin.objectives._kl import KlTerm
from xwin.objectives._weighting import TokenMean, TokenWeighting
from xwin.objectives.base import Loss, Objective, Weighting, mean
from xwin.objectives.ppo import ppo

PLAIN: frozenset[str] = frozenset({"old_logp", "advantage"})


class Grpo(Objective):
    """The clipped surrogate for answers judged against each other."""

    clip: Clip = (0.2, 0.28)
    """How far the probability ratio may leave 1 before its gradient is cut, unitless; [below, above] for two slacks."""

    weighting: TokenWeighting = TokenMean()
    """How the tokens of a step share it."""

    kl: KlTerm | None = None
    """KL to the reference in the loss; null = none. Not together with a KL price in the reward."""

    reads: ClassVar[frozenset[str]] = frozenset({"logp", "entropy"})

    @property
    def needs(self) -> frozenset[str]:  # pyright: ignore[reportIncompatibleVariableOverride] - here it depends on a setting
        """The reference's log-probs too when KL is in the loss."""
        return PLAIN | {"ref_logp"} if self.kl else PLAIN

    def weigh(self, batch: Batch) -> Weighting:
        return self.weighting.weigh(batch)

    def loss(self, batch: Batch, out: Outputs) -> Loss:
        logp, old_logp, advantage = out.get("logp"), batch.column("old_logp"), batch.column("advantage")
        values = ppo(logp, old_logp, advantage, clip=self.clip, dual_clip=None)
        clipped = is_clipped(ratio_of(logp.detach() - old_logp), advantage, self.clip)
        stats = {"clipped": mean(clipped, batch.mask), **drift(logp.detach(), old_logp, out.get("entropy"), batch.mask)}
        if self.kl is not None:
            term = self.kl.loss(logp, old_logp, batch.column("ref_logp"))
            values, stats = values + self.kl.coef * term, {**stats, "kl_loss": mean(term, batch.mask)}
        return Loss(values, stats)
