"""Norms and gated activations that keep less for the backward pass, and make fewer passes over memory, than a chain of plain operations.

They take the place of a network's own modules where they compute the same function, which is tried out and not believed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu
from transformers import PreTrainedModel

SAME = 1e-5
"""Relative difference to the module replaced, in fp32, that rounding may make."""


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight, in fp32, written in the type its reader computes in (Zhang and Sennrich 2019, arXiv:1910.07467)."""

    def __init__(self, weight: nn.Parameter, eps: float, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.weight, self.eps, self.dtype = weight, eps, dtype

    def forward(self, x: Tensor) -> Tensor:
        """[..., d] -> [..., d]"""
        return _Norm.apply(x, self.weight, self.eps, self.dtype or x.dtype)  # type: ignore[no-any-return]


class _Norm(torch.autograd.Function):
    """With n = x r, r = 1 / sqrt(mean(x^2) + eps), g = dy * weight:  dx = r (g - n mean(g n)),  dweight = sum(dy n)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        wide = x.float()
        r = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, r)
        return (wide * r).mul_(weight).to(dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, r = ctx.saved_tensors
        dy, n = gradients[0].float(), x.float() * r
        d_weight = (dy * n).flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
        if not ctx.needs_input_grad[0]:
            return None, d_weight, None, None
        g = dy * weight
        shared = torch.linalg.vecdot(g, n).div_(x.shape[-1])[..., None]
        return g.sub_(n.mul_(shared)).mul_(r).to(x.dtype), d_weight, None, None


class GatedMLP(nn.Module):
    """down(silu(gate(x)) * up(x)) (Shazeer 2020, arXiv:2002.05202); silu(gate(x)) is computed again in the backward pass."""

    def __init__(self, mlp: Any) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = mlp.gate_proj, mlp.up_proj, mlp.down_proj

    def forward(self, x: Tensor) -> Tensor:
        """[..., d] -> [..., d]"""
        return self.down_proj(_Gated.apply(self.gate_proj(x), self.up_proj(x)))  # type: ignore[no-any-return]


class _Gated(torch.autograd.Function):
    """d silu(z) / dz = s (1 + z (1 - s)) with s = sigmoid(z)."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        d_up = silu(gate).mul_(gradients[0])
        d_gate = torch.ops.aten.silu_backward(gradients[0] * up, gate)
        return d_gate, d_up


def slim(network: PreTrainedModel, dtype: torch.dtype) -> None:
    """Puts lean modules in place of those that compute the same; parameters and their names stay.

    Args:
        network: a model of transformers.
        dtype: of matrix products; the norms before a layer's linear parts write it, other norms what they read.
    """
    for parent in list(network.modules()):
        for name, module in list(parent.named_children()):
            lean = _lean(module)
            if lean is None:
                continue
            if isinstance(lean, RMSNorm) and name.endswith("layernorm"):
                lean.dtype = dtype
            setattr(parent, name, lean)


def _lean(module: nn.Module) -> RMSNorm | GatedMLP | None:
    """What computes the same as a module and keeps less."""
    parts = dict(module.named_children())
    weight, eps = getattr(module, "weight", None), getattr(module, "variance_epsilon", None)
    if isinstance(weight, nn.Parameter) and isinstance(eps, float) and not parts:
        norm = RMSNorm(weight, eps, None)
        return norm if _same(module, norm, len(weight)) else None
    if {"gate_proj", "up_proj", "down_proj", "act_fn"} == parts.keys():
        mlp = GatedMLP(module)
        return mlp if _same(module, mlp, int(mlp.gate_proj.in_features)) else None
    return None


@torch.no_grad()
def _same(old: nn.Module, new: nn.Module, width: int) -> bool:
    """Whether both say the same of a few rows."""
    x = torch.arange(4.0 * width, device=next(old.parameters()).device).view(4, width).sin() * 2
    expected = old(x)
    return bool((new(x) - expected).norm() <= SAME * expected.norm())
