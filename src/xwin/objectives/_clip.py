"""What the clipped surrogates share: how far a ratio may leave 1, and what is measured of it."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from annotated_types import Gt
from torch import Tensor

from xwin.objectives.base import mean
from xwin.ops import kl_k3
from xwin.run.events import Max, Measure

LARGEST_LOG_RATIO = 50.0
"""Nats. e^50 is finite in fp32; a ratio that large is clipped, capped or worth nothing anyway."""

Slack = Annotated[float, Gt(0)]
Clip: TypeAlias = Slack | tuple[Slack, Slack]
"""Slack of a ratio below and above 1, unitless: one number for both sides, or [below, above]."""


def bounds(clip: Clip) -> tuple[float, float]:
    """The least and the largest ratio.  Example: bounds((0.2, 0.28)) == (0.8, 1.28)"""
    low, high = clip if isinstance(clip, tuple) else (clip, clip)
    return 1 - low, 1 + high


def ratio_of(log_ratio: Tensor) -> Tensor:
    """exp of a log-ratio, finite whatever it is. Carries gradient below LARGEST_LOG_RATIO."""
    return log_ratio.clamp(max=LARGEST_LOG_RATIO).exp()


def is_clipped(ratio: Tensor, advantage: Tensor, clip: Clip, dual_clip: float | None = None) -> Tensor:
    """Where a ratio has lost its gradient. [any shape] bool

    Above the bound of a good token; below that of a bad one, or above `dual_clip`, if there is one.
    """
    low, high = bounds(clip)
    outside = (ratio < low) if dual_clip is None else (ratio < low) | (ratio > dual_clip)
    return ((ratio > high) & (advantage > 0)) | (outside & (advantage < 0))


def drift(logp: Tensor, old_logp: Tensor, entropy: Tensor, mask: Tensor) -> dict[str, Measure]:
    """How far the policy is from the one that sampled, over the trained tokens.

    Args:
        logp: [T] nats, without gradient.
        old_logp: [T] nats.
        entropy: [T] nats.
        mask: [T] bool.
    """
    gap = (logp - old_logp).abs().masked_fill(~mask, 0.0).max()
    return {
        "approximate_kl": mean(kl_k3(old_logp, logp), mask),
        "entropy": mean(entropy, mask),
        "ratio_gap": Max(float(gap)),
    }
