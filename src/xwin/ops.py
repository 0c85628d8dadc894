"""Small pieces of math on tensors: masked sums, token log-probabilities, KL estimators. Tensors in, tensors out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.nn.functional import linear
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


Estimator: TypeAlias = Literal["k1", "k2", "k3"]
ESTIMATORS: Mapping[Estimator, Callable[[Tensor, Tensor], Tensor]] = {"k1": kl_k1, "k2": kl_k2, "k3": kl_k3}
"""Of KL(pi || ref), from the log-probabilities of tokens drawn from pi."""


def token_logp(hidden: Tensor, weight: Tensor, bias: Tensor | None, tokens: Tensor, *, temperature: float, chunk: int) -> tuple[Tensor, Tensor]:
    """Log-probability of each token and entropy of the distribution it came from, in fp32, `chunk` rows at a time.

    The [N, V] logits are never whole. Where only `hidden` carries gradient (a frozen output embedding), the gradient of each row is formed
    together with its log-probability, so no chunk is computed twice; else each chunk is computed again in the backward pass.

    Args:
        hidden: [N, d] what predicts each token. May carry gradient.
        weight: [V, d] output embedding. May carry gradient.
        bias: [V] or None. May carry gradient.
        tokens: [N] int64.
        temperature: divides the logits, unitless, > 0.
        chunk: rows a chunk.

    Returns:
        ([N] nats, with gradient; [N] nats, without).
    """
    with torch.autocast(hidden.device.type, enabled=False):
        trains_head = weight.requires_grad or (bias is not None and bias.requires_grad)
        if not trains_head:
            return _FrozenHead.apply(hidden.float(), weight.float(), bias, tokens, temperature, chunk)  # type: ignore[no-any-return]
        parts = []
        for h, ids in zip(hidden.split(chunk), tokens.split(chunk), strict=True):
            arguments = (h, weight, bias, ids, temperature)
            parts.append(checkpoint(_rows, *arguments, use_reentrant=False) if torch.is_grad_enabled() else _rows(*arguments))
        if not parts:
            empty = hidden.sum() * 0.0 + hidden.new_zeros(0, dtype=torch.float32)
            return empty, empty.detach()
        return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])


def uniform_logp(logp: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None, tokens: Tensor, *, temperature: float) -> Tensor:
    """Mean of log p over the whole vocabulary: -cross-entropy to the uniform distribution, in fp32.

    All log-probabilities of a row have one normaliser, which the token's own already holds, so no logits are formed again:
    mean_v log p_v = log p_y + (mean_v logit_v - logit_y),  and the mean of the logits is that of the mean embedding.

    Args:
        logp: [N] of the tokens, nats; see token_logp. Carries gradient.
        hidden: [N, d] what predicts each token. May carry gradient.
        weight: [V, d] output embedding. May carry gradient.
        bias: [V] or None. May carry gradient.
        tokens: [N] int64.
        temperature: divides the logits, unitless, > 0.

    Returns:
        [N] nats.
    """
    with torch.autocast(hidden.device.type, enabled=False):
        table = weight.float()
        gap = torch.linalg.vecdot(hidden.float(), table.mean(0) - table[tokens])
        if bias is not None:
            gap = gap + bias.float().mean() - bias.float()[tokens]
        return logp + gap / temperature


def _rows(hidden: Tensor, weight: Tensor, bias: Tensor | None, tokens: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    logits = linear(hidden.float(), weight.float(), None if bias is None else bias.float())
    logp = logits.div_(temperature).log_softmax(-1)
    with torch.no_grad():
        entropy = -(logp.exp() * logp).sum(-1)
    return logp.gather(1, tokens[:, None]).squeeze(1), entropy


class _FrozenHead(torch.autograd.Function):
    """d logp_t / d h = (W[y_t] - sum_v p_v W[v]) / temperature, known in the forward pass but for the factor that comes from above."""

    @staticmethod
    def forward(  # noqa: PLR0913, PLR0917 - autograd passes arguments by position
        ctx: FunctionCtx, hidden: Tensor, weight: Tensor, bias: Tensor | None, tokens: Tensor, temperature: float, chunk: int
    ) -> tuple[Tensor, Tensor]:
        logp, entropy = hidden.new_empty(len(hidden)), hidden.new_empty(len(hidden))
        slope = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None  # type: ignore[attr-defined]
        for start in range(0, len(hidden), chunk):
            rows = slice(start, start + chunk)
            logits = linear(hidden[rows], weight, bias).div_(temperature)
            total = logits.logsumexp(-1, keepdim=True)
            logp[rows] = (logits.gather(1, tokens[rows, None]) - total).squeeze(1)
            p = (logits - total).exp_()
            entropy[rows] = total.squeeze(1) - torch.linalg.vecdot(p, logits)
            if slope is not None:
                slope[rows] = (weight[tokens[rows]] - p @ weight) / temperature
        ctx.save_for_backward(*(() if slope is None else (slope,)))
        ctx.mark_non_differentiable(entropy)  # type: ignore[attr-defined]
        return logp, entropy

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (slope,) = ctx.saved_tensors
        return gradients[0][:, None] * slope, None, None, None, None, None
