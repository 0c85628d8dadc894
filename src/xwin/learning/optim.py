"""How the parameters move: AdamW and the schedule of its learning rate."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Lt
from torch import nn

from xwin.spec import Spec


class Optim(Spec):
    """AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101) with a warm-up and a schedule counted in optimizer steps."""

    lr: Annotated[float, Gt(0)] = 1e-5
    """Highest learning rate, unitless."""

    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """How the learning rate falls after the warm-up: not at all, straight to 0, or along a cosine to 0."""

    warmup: Annotated[float, Ge(0), Lt(1)] = 0.05
    """Share of the steps in which the learning rate rises from 0."""

    weight_decay: Annotated[float, Ge(0)] = 0.0
    """Decay of matrices per unit of learning rate; norms and biases have none."""

    beta1: Annotated[float, Ge(0), Lt(1)] = 0.9
    """Memory of the mean of the gradient, unitless."""

    beta2: Annotated[float, Ge(0), Lt(1)] = 0.95
    """Memory of its square, unitless."""

    max_norm: Annotated[float, Gt(0)] = 1.0
    """The gradient is scaled down to this norm."""

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.AdamW:
        """An optimizer over the parameters that require a gradient."""
        trained = [p for p in parameters if p.requires_grad]
        groups = [
            {"params": [p for p in trained if p.ndim >= 2], "weight_decay": self.weight_decay},
            {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW([g for g in groups if g["params"]], lr=self.lr, betas=(self.beta1, self.beta2), fused=True)

    def rate(self, step: int, total: int) -> float:
        """Learning rate of optimizer step `step` (0 ... total - 1). A function of the step alone, so it needs no state."""
        warm = math.ceil(self.warmup * total)
        if step < warm:
            return self.lr * (step + 1) / (warm + 1)
        if self.schedule == "constant":
            return self.lr
        done = (step - warm) / max(total - warm, 1)
        return self.lr * (1 - done if self.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done)))
