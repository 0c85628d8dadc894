"""How the parameters move: AdamW and the schedule of its learning rate."""

from __future__ import annotations

import math
from collections.abc import Iterable, MutableMapping
from typing import Annotated, Any, Literal, Self

import torch
from annotated_types import Ge, Gt, Le, Lt
from pydantic import field_validator, model_validator
from pydantic_core import PydanticCustomError
from torch import nn

from xwin.models.bitsandbytes import bitsandbytes, require
from xwin.spec import Spec

LARGEST_RATE = 0.1
"""AdamW moves each weight by about the learning rate in each step, and the weights of a network are about this large."""


class Optim(Spec):
    """AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101) with a warm-up and a schedule counted in optimizer steps."""

    lr: Annotated[float, Gt(0)] = 1e-5
    """Highest learning rate, unitless, at most 0.1."""

    schedule: Literal["constant", "linear", "cosine", "wsd"] = "cosine"
    """How the learning rate falls after the warm-up: not at all, straight to 0, along a cosine to 0, or straight to 0 in the last steps alone."""

    warmup: Annotated[float, Ge(0), Lt(1)] = 0.05
    """Share of the steps in which the learning rate rises from 0."""

    decay: Annotated[float, Gt(0), Le(1)] = 0.1
    """Share of the steps at the end in which wsd falls; read by no other schedule."""

    weight_decay: Annotated[float, Ge(0)] = 0.0
    """Decay of matrices per unit of learning rate; norms and biases have none."""

    beta1: Annotated[float, Ge(0), Lt(1)] = 0.9
    """Memory of the mean of the gradient, unitless."""

    beta2: Annotated[float, Ge(0), Lt(1)] = 0.95
    """Memory of its square, unitless."""

    moments: Literal["float32", "8bit"] = "float32"
    """How those two are kept: as they are, or in blocks of 8-bit numbers (Dettmers et al. 2022, arXiv:2110.02861), a quarter of the memory; that
    needs CUDA and the extra `cuda`."""

    max_norm: Annotated[float, Gt(0)] = 1.0
    """The gradient is scaled down to this norm."""

    @field_validator("lr")
    @classmethod
    def _trains_something(cls, lr: float) -> float:
        if lr > LARGEST_RATE:
            what = "must be at most {most}, not {lr}: AdamW moves every weight by about lr in each step, so nothing of the model would be left"
            raise PydanticCustomError("lr", what, {"most": LARGEST_RATE, "lr": lr})
        return lr

    @model_validator(mode="after")
    def _decay_has_room(self) -> Self:
        if self.schedule != "wsd" and self.decay != type(self).model_fields["decay"].default:
            raise PydanticCustomError("decay", "decay is read by schedule wsd alone, and schedule is {schedule}", {"schedule": self.schedule})
        if self.schedule == "wsd" and self.warmup + self.decay > 1:
            raise PydanticCustomError("decay", "warmup and decay are {sum} of the steps together", {"sum": self.warmup + self.decay})
        return self

    @property
    def kept(self) -> float:
        """Bytes of the two moments of a parameter."""
        return 8.0 if self.moments == "float32" else 2.0

    def require(self) -> None:
        """Sees to it, before anything is loaded, that this machine can do it.

        Raises:
            MissingExtra, UserError: moments of 8 bits without bitsandbytes, or without CUDA.
        """
        if self.moments == "8bit":
            require("optim.moments: 8bit")

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """An optimizer over the parameters that require a gradient. Those of 8 bits keep parameters of less than 4,096 numbers in fp32.

        Raises:
            MissingExtra: moments of 8 bits without bitsandbytes.
        """
        trained = [p for p in parameters if p.requires_grad]
        groups = [
            {"params": [p for p in trained if p.ndim >= 2], "weight_decay": self.weight_decay},
            {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
        ]
        groups = [g for g in groups if g["params"]]
        betas = (self.beta1, self.beta2)
        if self.moments == "8bit":
            return bitsandbytes().optim.AdamW8bit(groups, lr=self.lr, betas=betas)
        return torch.optim.AdamW(groups, lr=self.lr, betas=betas, fused=True)

    def rate(self, step: int, total: int) -> float:
        """Learning rate of optimizer step `step` (0 ... total - 1). A function of the step alone, so it needs no state.

        wsd (warm-up, stable, decay) is the schedule of Hu et al. 2024, arXiv:2404.06395, section 4, who find a tenth of the steps enough for
        the decay; it falls along a line to 0, as in Hägele et al. 2024, arXiv:2405.18392, and not exponentially as theirs.
        """
        warm = math.ceil(self.warmup * total)
        if step < warm:
            return self.lr * (step + 1) / (warm + 1)
        if self.schedule == "constant":
            return self.lr
        stable = max(warm, total - math.ceil(self.decay * total)) if self.schedule == "wsd" else warm
        done = max(step - stable, 0) / max(total - stable, 1)
        return self.lr * (0.5 * (1 + math.cos(math.pi * done)) if self.schedule == "cosine" else 1 - done)


def moments(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> MutableMapping[str, Any]:
    """What the optimizer remembers of a parameter, made where it does not exist yet so that a checkpoint can be read into it."""
    state = optimizer.state[parameter]
    if state:
        return state
    if isinstance(optimizer, torch.optim.AdamW):
        state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
        state["exp_avg"] = torch.zeros_like(parameter)
        state["exp_avg_sq"] = torch.zeros_like(parameter)
        return state
    eight_bit: Any = optimizer
    places = ((g, p) for g, group in enumerate(optimizer.param_groups) for p, found in enumerate(group["params"]) if found is parameter)
    group, place = next(places)
    eight_bit.init_state(optimizer.param_groups[group], parameter, group, place)
    return optimizer.state[parameter]
