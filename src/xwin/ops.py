"""Small pieces of math on tensors: masked sums, token log-probabilities, KL estimators. Tensors in, tensors out."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """[] mean of x where mask is True; 0 when nothing is."""
    return x.masked_fill(~mask, 0.0).sum() / mask.sum().clamp(min=1)


def masked_variance(x: Tensor, mask: Tensor) -> Tensor:
    """[] population variance of x where mask is True, mean and variance from the same elements."""
    centred = x - masked_mean(x, mask)
    return masked_mean(centred * centred, mask)


def whiten(x: Tensor, mask: Tensor) -> Tensor:
    """x with mean 0 and variance 1 over the mask; outside the mask 0. [any shape]"""
    scale = torch.rsqrt(masked_variance(x, mask) + 1e-8)
    return ((x - masked_mean(x, mask)) * scale).masked_fill(~mask, 0.0)


def kl_k1(logp: Tensor, ref_logp: Tensor) -> Tensor:
    """log pi - log ref: unbiased estimate of KL(pi || ref) for tokens drawn from pi, nats. May be negative; not to be clamped.

    Schulman 2020, "Approximating KL divergence". Right in the reward; as a loss its gradient is zero-mean noise.
    """
    return logp - ref_logp


def kl_k2(logp: Tensor, ref_logp: Tensor) -> Tensor:
    """(log pi - log ref)^2 / 2: biased value, but its gradient is that of the reverse KL, nats."""
    return 0.5 * (logp - ref_logp) ** 2


def kl_k3(logp: Tensor, ref_logp: Tensor) -> Tensor:
    """(r - 1) - log r with r = ref / pi: unbiased, never negative, lower variance than k1, nats."""
    log_ratio = ref_logp - logp
    return log_ratio.expm1() - log_ratio


def token_logp(hidden: Tensor, weight: Tensor, bias: Tensor | None, tokens: Tensor, *, temperature: float, chunk: int) -> tuple[Tensor, Tensor]:
    """Log-probability of each token and entropy of the distribution it came from, in fp32, `chunk` rows at a time.

    The [N, V] logits are never whole: each chunk is computed again in the backward pass.

    Args:
        hidden: [N, d] what predicts each token. Carries gradient.
        weight: [V, d] output embedding. May carry gradient.
        bias: [V] or None.
        tokens: [N] int64.
        temperature: divides the logits, unitless, > 0.
        chunk: rows a chunk.

    Returns:
        ([N] nats, with gradient; [N] nats, without).
    """

    def rows(h: Tensor, w: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        logits = torch.nn.functional.linear(h.float(), w.float(), None if bias is None else bias.float())
        logp = (logits / temperature if temperature != 1.0 else logits).log_softmax(-1)
        with torch.no_grad():
            entropy = -(logp.exp() * logp).sum(-1)
        return logp.gather(1, ids[:, None]).squeeze(1), entropy

    device_type = hidden.device.type
    with torch.autocast(device_type, enabled=False):
        parts = []
        for h, ids in zip(hidden.split(chunk), tokens.split(chunk), strict=True):
            keep = torch.is_grad_enabled() and (h.requires_grad or weight.requires_grad)
            parts.append(checkpoint(rows, h, weight, ids, use_reentrant=False) if keep else rows(h, weight, ids))
    if not parts:
        empty = hidden.new_zeros(0, dtype=torch.float32)
        return empty + hidden.sum() * 0.0, empty
    return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])
