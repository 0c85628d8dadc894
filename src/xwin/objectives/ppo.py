"""PPO: the clipped surrogate.

Schulman et al. 2017, arXiv:1707.06347, equation 7; a larger upper slack ("clip-higher") is Yu et al. 2025, arXiv:2503.14476, equation 10;
the second clip for negative advantages is Ye et al. 2020, arXiv:1912.09729, equation 5.
Deviation from the paper: the entropy bonus of its equation 9 is left out (the KL price in the reward keeps the policy from collapsing).
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from annotated_types import Gt
from torch import Tensor

from xwin.data.batch import Batch, Outputs
from xwin.objectives._clip import Clip, bounds, drift, is_clipped, ratio_of
from xwin.objectives.base import Loss, Objective, mean


def ppo(logp: Tensor, old_logp: Tensor, advantage: Tensor, *, clip: Clip, dual_clip: float | None) -> Tensor:
    """Per-token loss  L_t = -min(r_t A_t, clip(r_t, 1 - low, 1 + high) A_t),  r_t = pi(a_t) / pi_old(a_t).

    Args:
        logp: [T] log-probability under the policy in training, nats. The only input with gradient.
        old_logp: [T] same, under the policy that sampled, nats.
        advantage: [T] credit, unitless after whitening.
        clip: slack of the ratio on both sides of 1, unitless; a pair is (low, high).
        dual_clip: where A_t < 0, the loss is at most dual_clip * |A_t|; None = no second clip.

    Returns:
        [T] loss, unmasked, unreduced.
    """
    return surrogate(ratio_of(logp - old_logp), advantage, clip=clip, dual_clip=dual_clip)


def surrogate(ratio: Tensor, advantage: Tensor, *, clip: Clip, dual_clip: float | None) -> Tensor:
    """The clipped loss of ratios, whatever they are ratios of. [any shape]; `ratio` carries the gradient. The rest as in `ppo`."""
    gain = torch.minimum(ratio * advantage, ratio.clamp(*bounds(clip)) * advantage)
    if dual_clip is not None:
        gain = torch.where(advantage < 0, torch.maximum(gain, dual_clip * advantage), gain)
    return -gain


class Ppo(Objective):
    """The clipped surrogate of proximal policy optimisation; every trained token alike."""

    clip: Clip = 0.2
    """How far the probability ratio may leave 1 before its gradient is cut, unitless; [below, above] for two slacks."""

    dual_clip: Annotated[float, Gt(1)] | None = 3.0
    """For tokens with negative advantage, largest ratio that counts, unitless; null = off."""

    needs: ClassVar[frozenset[str]] = frozenset({"old_logp", "advantage"})
    reads: ClassVar[frozenset[str]] = frozenset({"logp", "entropy"})

    def loss(self, batch: Batch, out: Outputs) -> Loss:
        logp, old_logp, advantage = out.get("logp"), batch.column("old_logp"), batch.column("advantage")
        values = ppo(logp, old_logp, advantage, clip=self.clip, dual_clip=self.dual_clip)
        clipped = is_clipped(ratio_of(logp.detach() - old_logp), advantage, self.clip, self.dual_clip)
        return Loss(values, {"clipped": mean(clipped, batch.mask), **drift(logp.detach(), old_logp, out.get("entropy"), batch.mask)})
