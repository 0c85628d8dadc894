"""Credit against the other answers to the same prompt; no critic.

    baseline mean, scale std            GRPO: Shao et al. 2024, arXiv:2402.03300, section 4.1.2,  A_i = (r_i - mean r) / std r
    baseline mean, scale none           Dr. GRPO: Liu et al. 2025, arXiv:2503.20783, section 3.2, A_i = r_i - mean r
    baseline leave_one_out, scale none  RLOO: Ahmadian et al. 2024, arXiv:2402.14740, after equation 8, A_i = r_i - mean_{j != i} r_j

Every token of an answer gets the answer's advantage. Deviations: std is that of a sample (n - 1) plus 1e-4, so scores that are equal but
for rounding teach nothing; the KL price of an answer, the sum of kl_coef * (log pi_old - log ref) over its tokens, is compared with its
siblings' by the same baseline but never divided by their spread, else a group of equal scores would be taught the noise in its KL.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from xwin.credit._correction import Correction, credited
from xwin.credit.base import Columns, Credit, Credited, prices, scores_of
from xwin.data.rollout import Group
from xwin.ops import Estimator

Baseline = Literal["mean", "leave_one_out"]

SMALLEST_SPREAD = 1e-4
"""Reward units, added to the spread that scores are divided by."""


def centred(values: Tensor, baseline: Baseline) -> Tensor:
    """[n] each value less the mean of all, or of the others. One value alone has nothing to be compared with: 0."""
    if len(values) == 1:
        return torch.zeros_like(values)
    apart = values - values.mean()
    return apart * len(values) / (len(values) - 1) if baseline == "leave_one_out" else apart


def spread(values: Tensor) -> Tensor:
    """[] sample standard deviation, two passes: the mean first, then the squares around it. 0 for one value."""
    if len(values) == 1:
        return values.new_zeros(())
    apart = values - values.mean()
    return ((apart * apart).sum() / (len(values) - 1)).sqrt()


class GroupRelative(Credit):
    """An answer is as good as it is better than its siblings. Equal scores, and an answer without siblings, teach nothing."""

    baseline: Baseline = "mean"
    """What a score is compared with: the mean of the group, or of the other answers."""

    scale: Literal["none", "std"] = "std"
    """Whether the difference is divided by the standard deviation of the group's scores."""

    correction: Correction | None = None
    """What is done about an engine whose log-probs are not the learner's; null = nothing."""

    needs: ClassVar[frozenset[str]] = frozenset({"old_logp"})
    gives: ClassVar[frozenset[str]] = frozenset({"old_logp", "advantage"})

    def assign(self, groups: Sequence[Group], columns: Columns, kl_coef: float, estimator: Estimator = "k1") -> Credited:
        rollouts = [r for group in groups for r in group.rollouts]
        paid = torch.stack([price.sum() for price in prices(groups, columns, kl_coef, estimator)]).split([len(g.rollouts) for g in groups])
        answers = torch.cat([self._advantages(scores_of(group), price) for group, price in zip(groups, paid, strict=True)])
        tokens = [a.expand(len(r.completion)) for a, r in zip(answers, rollouts, strict=True)]
        return credited(self.correction, rollouts, columns, tokens, torch.cat(tokens))

    def _advantages(self, scores: Tensor, paid: Tensor) -> Tensor:
        """[n] of one group's answers."""
        better = centred(scores, self.baseline)
        scaled = better / (spread(scores) + SMALLEST_SPREAD) if self.scale == "std" else better
        return scaled - centred(paid, self.baseline)
