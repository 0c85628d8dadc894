"""Generalised advantage estimation with a critic, and the KL price inside the reward.

Schulman et al. 2016, arXiv:1506.02438, equation 16; the per-token KL in the reward is Ziegler et al. 2019, arXiv:1909.08593, equation 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Le
from torch import Tensor

from xwin.credit._correction import Correction, corrected
from xwin.credit.base import Columns, Credit, Credited, prices, to_sample
from xwin.data.rollout import Group
from xwin.ops import Estimator, whiten


def gae(rewards: Tensor, values: Tensor, *, gamma: float, lam: float, bootstrap: float) -> Tensor:
    """Advantages of one answer.  A_t = delta_t + gamma * lam * A_{t+1},  delta_t = r_t + gamma * V_{t+1} - V_t

    Args:
        rewards: [L] reward of each completion token, reward units.
        values: [L] expected return before each token is written, reward units. No gradient flows.
        gamma: discount per token, unitless.
        lam: 0 = one-step, 1 = Monte Carlo, unitless.
        bootstrap: V after the last token: 0 where the answer really ended.

    Returns:
        [L] advantages, reward units.
    """
    following = torch.cat([values[1:], values.new_tensor([bootstrap])])
    delta = (rewards + gamma * following - values).tolist()
    advantage, out = 0.0, []
    for step in reversed(delta):
        advantage = step + gamma * lam * advantage
        out.append(advantage)
    return torch.tensor(out[::-1], dtype=rewards.dtype)


class Gae(Credit):
    """A critic tells each token's share. The score lands on the last token; every token pays `kl_coef` x its KL, by default k1.

    An answer cut by the length limit is treated as ended: its score already says what the cut cost.
    """

    gamma: Annotated[float, Ge(0), Le(1)] = 1.0
    """Discount per token, unitless."""

    lam: Annotated[float, Ge(0), Le(1)] = 0.95
    """Trade of bias against variance: 0 trusts the critic, 1 the return, unitless."""

    correction: Correction | None = None
    """What is done about an engine whose log-probs are not the learner's; null = nothing."""

    needs: ClassVar[frozenset[str]] = frozenset({"old_logp", "value"})
    gives: ClassVar[frozenset[str]] = frozenset({"old_logp", "advantage", "value", "returns"})

    def assign(self, groups: Sequence[Group], columns: Columns, kl_coef: float, estimator: Estimator = "k1") -> Credited:
        rollouts = [r for group in groups for r in group.rollouts]
        values = [torch.tensor(row, dtype=torch.float64) for row in columns["value"]]
        advantages = []
        for rollout, price, value in zip(rollouts, prices(groups, columns, kl_coef, estimator), values, strict=True):
            rewards = -price
            rewards[-1] += rollout.score.value if rollout.score else 0.0
            advantages.append(gae(rewards, value, gamma=self.gamma, lam=self.lam, bootstrap=0.0))
        flat = torch.cat(advantages)
        lengths = [len(a) for a in advantages]
        everywhere = torch.ones_like(flat, dtype=torch.bool)
        returns = (flat + torch.cat(values)).split(lengths)
        white, stats = corrected(self.correction, rollouts, columns, whiten(flat, everywhere).split(lengths))
        names = ("old_logp", "value", "advantage", "returns")
        rows = zip(columns["old_logp"], columns["value"], (a.tolist() for a in white), (g.tolist() for g in returns), strict=True)
        samples = tuple(to_sample(r, dict(zip(names, row, strict=True))) for r, row in zip(rollouts, rows, strict=True))
        return Credited(samples, {"advantage": (float(flat.sum()), float(flat.numel())), **stats})
