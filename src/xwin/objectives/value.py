"""The critic's objective: clipped squared error to the return.

Schulman et al. 2016, arXiv:1506.02438, section 5 (value regression); the clip is that of OpenAI baselines' ppo2, described as detail 9 of
Huang et al. 2022, "The 37 implementation details of proximal policy optimization".
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from annotated_types import Gt
from torch import Tensor

from xwin.data.batch import Batch, Outputs
from xwin.objectives.base import Loss, Objective, mean
from xwin.ops import masked_variance


def value_loss(value: Tensor, old_value: Tensor, returns: Tensor, *, clip: float | None) -> Tensor:
    """Per-token loss  L_t = max((V_t - R_t)^2, (clip(V_t, V_old - clip, V_old + clip) - R_t)^2) / 2.

    Args:
        value: [T] expected return, reward units. The only input with gradient.
        old_value: [T] same, when the rollout was scored.
        returns: [T] what came, reward units.
        clip: how far a value may move in one step before its gradient is cut, reward units; None = no clip.

    Returns:
        [T] loss, reward units squared, unmasked, unreduced.
    """
    error = (value - returns) ** 2
    if clip is not None:
        near = old_value + (value - old_value).clamp(-clip, clip)
        error = torch.maximum(error, (near - returns) ** 2)
    return 0.5 * error


class Value(Objective):
    """Clipped regression of the value on the return; every trained token alike."""

    clip: Annotated[float, Gt(0)] | None = 0.2
    """How far a value may move in one step, reward units; null = off."""

    needs: ClassVar[frozenset[str]] = frozenset({"value", "returns"})
    reads: ClassVar[frozenset[str]] = frozenset({"value"})

    def loss(self, batch: Batch, out: Outputs) -> Loss:
        value, old_value, returns = out.get("value"), batch.column("value"), batch.column("returns")
        values = value_loss(value, old_value, returns, clip=self.clip)
        moved = (value.detach() - old_value).abs() > (self.clip or float("inf"))
        return Loss(values, {"value_clipped": mean(moved, batch.mask), "value_loss": mean(values, batch.mask)})


def explained_variance(value: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """[] 1 - Var(R - V) / Var(R) over the mask; 0 when the return does not vary."""
    total = masked_variance(returns, mask)
    return torch.where(total > 1e-12, 1 - masked_variance(returns - value, mask) / total.clamp(min=1e-12), torch.zeros_like(total))
