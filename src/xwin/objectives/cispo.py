"""CISPO: cap the importance weight instead of clipping the update, so every token keeps a gradient.

MiniMax-M1, Chen et al. 2025, arXiv:2506.13585, equations 4 and 5. Deviations: no lower bound on the weight (the paper sets one so low that it
does nothing); every trained token of the step alike, where the paper averages over the tokens of one prompt's answers first.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

from annotated_types import Gt
from torch import Tensor

from xwin.data.batch import Batch, Outputs
from xwin.objectives._clip import drift
from xwin.objectives.base import Loss, Objective, mean


def cispo(logp: Tensor, old_logp: Tensor, advantage: Tensor, *, ratio_cap: float) -> Tensor:
    """Per-token loss  L_t = -sg(min(r_t, cap)) * A_t * log pi(a_t),  r_t = pi(a_t) / pi_old(a_t).

    Args:
        logp: [T] log-probability under the policy in training, nats. The only input with gradient.
        old_logp: [T] same, under the policy that sampled, nats.
        advantage: [T] credit, reward units.
        ratio_cap: largest weight a token may carry, unitless, > 1.

    Returns:
        [T] loss, unmasked, unreduced.
    """
    weight = (logp.detach() - old_logp).exp().clamp(max=ratio_cap)
    return -weight * advantage * logp


class Cispo(Objective):
    """REINFORCE with a capped importance weight; every trained token alike."""

    ratio_cap: Annotated[float, Gt(1)] = 5.0
    """Largest importance weight, unitless. The cap itself, not slack above 1."""

    needs: ClassVar[frozenset[str]] = frozenset({"old_logp", "advantage"})
    reads: ClassVar[frozenset[str]] = frozenset({"logp", "entropy"})

    def loss(self, batch: Batch, out: Outputs) -> Loss:
        logp, old_logp = out.get("logp"), batch.column("old_logp")
        values = cispo(logp, old_logp, batch.column("advantage"), ratio_cap=self.ratio_cap)
        capped = (logp.detach() - old_logp).exp() > self.ratio_cap
        return Loss(values, {"clipped": mean(capped, batch.mask), **drift(logp.detach(), old_logp, out.get("entropy"), batch.mask)})
