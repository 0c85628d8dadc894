"""Small pieces of math on tensors: masked sums, token log-probabilities, KL estimators. Tensors in, tensors out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import linear


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


CHUNK = 7 * 2**20
"""Logits at a time in the forward pass: 28 MiB in fp32. From 32 MiB on, glibc asks the system for every buffer anew, and gives it back."""

WIDER = 6
"""Times as many in the backward pass, where they are of half the size and each chunk is one more pass over the gradient of the embedding."""


def token_logp(  # noqa: PLR0913 - the parts of an output layer, and how its products are formed
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tokens: Tensor,
    *,
    temperature: float,
    entropy: bool = False,
    dtype: torch.dtype = torch.float32,
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor | None]:
    """Log-probability of each token, and on request the entropy of the distribution it came from, a few rows at a time.

    The [N, V] logits are never whole: they are formed again in the backward pass. Where only `hidden` carries gradient (a frozen output
    embedding), each row's gradient is formed together with its log-probability instead. Logits and softmax of the forward pass are fp32, so
    that a log-probability does not depend on `dtype`.

    Args:
        hidden: [N, d] what predicts each token. May carry gradient.
        weight: [V, d] output embedding. May carry gradient.
        bias: [V] or None. May carry gradient.
        tokens: [N] int64.
        temperature: divides the logits, unitless, > 0.
        entropy: whether it is wanted.
        dtype: of the matrix products that form gradients.
        chunk: logits at a time; at least one row.

    Returns:
        ([N] nats, with gradient; [N] nats, without gradient, or None).
    """
    with torch.autocast(hidden.device.type, enabled=False):
        logp, spread = _TokenLogp.apply(hidden.float(), weight.float(), bias, tokens, temperature, entropy, dtype, chunk)  # type: ignore[misc]
    return logp, spread if entropy else None


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


def _chunks(tokens: Tensor, weight: Tensor, chunk: int) -> Iterator[slice]:
    rows = max(chunk // len(weight), 1)
    return (slice(start, start + rows) for start in range(0, len(tokens), rows))


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """[N, V] linear(hidden, weight, bias), in fp32 on a CPU by oneDNN: `linear` takes MKL there, which needs half as long again on AMD's CPUs."""
    if hidden.device.type == "cpu" and hidden.dtype is torch.float32 and torch.backends.mkldnn.is_available():
        return torch.ops.mkldnn._linear_pointwise(hidden, weight, bias, "none", [], "")
    return linear(hidden, weight, bias)


class _TokenLogp(torch.autograd.Function):
    """With p = softmax(W h / temperature):  d logp_y / d h = (W[y] - p W) / temperature  and  d logp_y / d W = (onehot(y) - p) h^T / temperature."""

    @staticmethod
    def forward(  # noqa: PLR0913, PLR0917 - autograd passes arguments by position
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        tokens: Tensor,
        temperature: float,
        entropy: bool,  # noqa: FBT001
        dtype: torch.dtype,
        chunk: int,
    ) -> tuple[Tensor, Tensor]:
        moves, *head_moves = ctx.needs_input_grad[:3]
        logp, spread = hidden.new_empty(len(hidden)), hidden.new_empty(len(hidden) if entropy else 0)
        slope = torch.empty_like(hidden) if moves and not any(head_moves) else None
        table = weight.to(dtype) if slope is not None else weight
        for rows in _chunks(tokens, weight, chunk):
            ids = tokens[rows, None]
            logits = _logits(hidden[rows], weight, bias).div_(temperature)
            each = logits.log_softmax(-1)
            logp[rows] = each.gather(1, ids).squeeze(1)
            if entropy or slope is not None:
                p = torch.exp(each, out=logits)
                if entropy:
                    spread[rows] = -torch.linalg.vecdot(p, each)
                if slope is not None:
                    slope[rows] = (weight[ids[:, 0]] - (p.to(dtype) @ table).float()) / temperature
        ctx.save_for_backward(*((hidden, weight, bias, tokens) if slope is None else (slope,)))
        ctx.temperature, ctx.dtype, ctx.chunk, ctx.frozen = temperature, dtype, chunk, slope is not None
        ctx.mark_non_differentiable(spread)
        return logp, spread

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        upstream = gradients[0][:, None]
        if ctx.frozen:
            (slope,) = ctx.saved_tensors
            return upstream * slope, None, None, None, None, None, None, None
        hidden, weight, bias, tokens = ctx.saved_tensors
        upstream, moves = upstream / ctx.temperature, ctx.needs_input_grad
        table, offset = weight.to(ctx.dtype), None if bias is None else bias.to(ctx.dtype)
        d_hidden = torch.empty_like(hidden) if moves[0] else None
        d_weight = torch.zeros_like(weight) if moves[1] else None
        d_bias = torch.zeros_like(bias) if bias is not None and moves[2] else None
        for rows in _chunks(tokens, weight, ctx.chunk * WIDER):
            p = linear(hidden[rows].to(ctx.dtype), table, offset).div_(ctx.temperature).softmax(-1)
            if d_hidden is not None:
                d_hidden[rows] = upstream[rows] * (weight[tokens[rows]] - (p @ table).float())
            if d_weight is not None:
                d_weight -= p.t() @ (upstream[rows] * hidden[rows]).to(ctx.dtype)
            if d_bias is not None:
                d_bias -= (upstream[rows] * p).sum(0)
        if d_weight is not None:
            d_weight.index_add_(0, tokens, upstream * hidden)
        if d_bias is not None:
            d_bias.index_add_(0, tokens, upstream.squeeze(1))
        return d_hidden, d_weight, d_bias, None, None, None, None, None
