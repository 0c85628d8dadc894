"""PPO: the clipped surrogate.

Schulman et al. 2017, arXiv:1707.06347, equation 7; the second clip for negative advantages is Ye et al. 2020, arXiv:1912.09729, equation 5.
Deviation from the paper: the entropy bonus of its equation 9 is left out (the KL price in the reward keeps the policy from collapsing).
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from annotated_types import Gt
from torch import Tensor

from xwin.data.batch import Batch, Outputs
from xwin.objectives.base import Loss, Objective, mean
from xwin.ops import kl_k3
from xwin.run.events import Max


def ppo(logp: Tensor, old_logp: Tensor, advantage: Tensor, *, clip: float, dual_clip: float | None) -> Tensor:
    """Per-token loss  L_t = -min(r_t A_t, clip(r_t, 1 - clip, 1 + clip) A_t),  r_t = pi(a_t) / pi_old(a_t).

    Args:
        logp: [T] log-probability under the policy in training, nats. The only input with gradient.
        old_logp: [T] same, under the policy that sampled, nats.
        advantage: [T] credit, unitless after whitening.
        clip: slack of the ratio on both sides of 1, unitless.
        dual_clip: where A_t < 0, the loss is at most dual_clip * |A_t|; None = no second clip.

    Returns:
        [T] loss, unmasked, unreduced.
    """
    ratio = (logp - old_logp).clamp(max=50.0).exp()  # e^50 is finite in fp32; a ratio that large is clipped or dual-clipped anyway
    surrogate = torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)
    if dual_clip is not None:
        surrogate = torch.where(advantage < 0, torch.maximum(surrogate, dual_clip * advantage), surrogate)
    return -surrogate


class Ppo(Objective):
    """The clipped surrogate of proximal policy optimisation; every trained token alike."""

    clip: Annotated[float, Gt(0)] = 0.2
    """How far the probability ratio may leave 1 before its gradient is cut, unitless."""

    dual_clip: Annotated[float, Gt(1)] | None = 3.0
    """For tokens with negative advantage, largest ratio that counts, unitless; null = off."""

    needs: ClassVar[frozenset[str]] = frozenset({"old_logp", "advantage"})
    reads: ClassVar[frozenset[str]] = frozenset({"logp", "entropy"})

    def loss(self, batch: Batch, out: Outputs) -> Loss:
        logp, old_logp, advantage = out.get("logp"), batch.column("old_logp"), batch.column("advantage")
        values = ppo(logp, old_logp, advantage, clip=self.clip, dual_clip=self.dual_clip)
        log_ratio = logp.detach() - old_logp
        clipped = ((log_ratio.exp() - 1).abs() > self.clip) & ((log_ratio > 0) == (advantage > 0))
        stats = {
            "clipped": mean(clipped, batch.mask),
            "approximate_kl": mean(kl_k3(old_logp, logp.detach()), batch.mask),
            "entropy": mean(out.get("entropy"), batch.mask),
            "ratio_gap": Max(float(log_ratio.abs().masked_fill(~batch.mask, 0.0).max())),
        }
        return Loss(values, stats)
