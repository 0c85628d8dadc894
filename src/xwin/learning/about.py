"""What a stage may ask about a model, wherever the model computes."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from xwin.models.adapters import adapted
from xwin.models.causal import PackedModel
from xwin.models.heads import RewardStats


@dataclass(frozen=True)
class About:
    """A model in a few numbers."""

    dtype: torch.dtype
    """Of matrix products."""
    context: int
    """Tokens that the network can read at once."""
    adapted: bool
    """Whether it has adapters, which can be switched off."""
    heads: int = 0
    """Of a critic or a reward model; 0 = it writes text."""
    stats: RewardStats | None = None
    """What the scores of a reward model mean; None without a head."""


def about(model: PackedModel) -> About:
    """What there is to say of a model."""
    context = int(getattr(model.network.config.get_text_config(), "max_position_embeddings", 1 << 30))
    head = model.head
    return About(model.dtype, context, bool(adapted(model.network)), head.heads if head else 0, head.stats if head else None)
