"""A linear layer with a low-rank adapter, [x, s x A^T] [W, B]^T: one product, rounded once.

peft adds two outputs that were rounded to bfloat16 before. An update of less than half a step of the output's type is then lost in every element
alike, so that a young adapter is trained without being seen, and the model that was trained is not the one that is published: on SmolLM2-135M
after one step of SFT, 0.108 nats a token from the merged weights in fp32. Inside one product sums are fp32, and it is 0.015.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners import lora
from torch import Tensor
from torch.nn.functional import linear


class Linear(lora.Linear):
    """peft's layer, adapter "default", computed in the type of its frozen weight (Hu et al. 2021, arXiv:2106.09685, equation 3)."""

    def forward(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        """[..., d_in] -> [..., d_out]"""
        frozen: Any = self.base_layer
        if self.disable_adapters:
            return frozen(x)
        down, up, scale = self.lora_A["default"].weight, self.lora_B["default"].weight, self.scaling["default"]
        return _Adapted.apply(x, frozen.weight, frozen.bias, down, up, scale)  # type: ignore[no-any-return]


class _Adapted(torch.autograd.Function):
    """With h = s x A^T and g = s dy B:  dx = [dy, g] [W; A],  dA = g^T x,  dB = dy^T h; W is frozen."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float) -> Tensor:  # noqa: PLR0917
        x, dtype = x.to(weight.dtype), weight.dtype
        h = linear(x, down.to(dtype)).mul_(scale)
        ctx.save_for_backward(x, weight, down, up, h)
        ctx.scale = scale
        return linear(torch.cat([x, h], -1), torch.cat([weight, up.to(dtype)], 1), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, down, up, h = ctx.saved_tensors
        dtype = weight.dtype
        dy = gradients[0].to(dtype)
        g = (dy @ up.to(dtype)).mul_(ctx.scale)
        dx = torch.cat([dy, g], -1) @ torch.cat([weight, down.to(dtype)]) if ctx.needs_input_grad[0] else None
        d_down, d_up = (left.flatten(0, -2).t() @ right.flatten(0, -2) for left, right in ((g, x), (dy, h)))
        return dx, None, None, d_down.to(down.dtype), d_up.to(up.dtype), None
