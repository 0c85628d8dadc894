"""REINFORCE++: credit against all answers of the round; no critic, and one answer per prompt is enough.

Hu et al. 2025, arXiv:2501.03262 (version 9). Equation 4 and, with baseline mean, equation 6; then equations 5 and 7:

    A_t = r - b - kl_coef * sum_{i >= t} (log pi_old - log ref)_i,   A_t <- (A_t - mean A) / std A over all tokens of the round

Deviations: with baseline mean the KL price may be paid here too (the paper puts it into the loss, equation 8: objective grpo with
kl {estimator: k2} and kl.coef 0); the variance is that of the population plus 1e-8.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from xwin.credit._correction import Correction, credited
from xwin.credit.base import Columns, Credit, Credited, prices, scores_of
from xwin.data.rollout import Group
from xwin.ops import Estimator, whiten


def to_go(values: Tensor) -> Tensor:
    """[L] the sum from each token to the last."""
    return values.flip(0).cumsum(0).flip(0)


class Round(Credit):
    """An answer is as good as it is better than the round's. A round of equal scores without a KL price teaches nothing."""

    baseline: Literal["none", "mean"] = "none"
    """What is taken off a score first: nothing, or the mean of the group (the paper's form for verifiable tasks)."""

    correction: Correction | None = None
    """What is done about an engine whose log-probs are not the learner's; null = nothing."""

    needs: ClassVar[frozenset[str]] = frozenset({"old_logp"})
    gives: ClassVar[frozenset[str]] = frozenset({"old_logp", "advantage"})

    def assign(self, groups: Sequence[Group], columns: Columns, kl_coef: float, estimator: Estimator = "k1") -> Credited:
        rollouts = [r for group in groups for r in group.rollouts]
        scores = [scores_of(group) for group in groups]
        rewards = torch.cat([s - s.mean() if self.baseline == "mean" else s for s in scores])
        tokens = [reward - to_go(price) for reward, price in zip(rewards, prices(groups, columns, kl_coef, estimator), strict=True)]
        flat = torch.cat(tokens)
        white = whiten(flat, torch.ones_like(flat, dtype=torch.bool)).split([len(t) for t in tokens])
        return credited(self.correction, rollouts, columns, white, flat)
