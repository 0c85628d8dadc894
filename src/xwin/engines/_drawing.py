"""How a token is drawn from logits, one uniform number a row, and what may be drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from xwin.engines.base import Sampling
from xwin.ops import CHUNK

BLOCK = 256
"""Tokens that are summed before the place of a draw is looked for among them: the cumulative sum over a vocabulary is never formed."""

CANDIDATES = 1024
"""Likeliest tokens that are sorted first when few may be drawn; seldom are they not enough."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """One token for each row."""

    token: list[int]
    logp: list[float]
    """Nats, of the unfiltered, temperature-scaled distribution; not finite where the logits were not."""
    peak: list[float]
    """The largest logit."""


def draw(logits: Tensor, samplings: Sequence[Sampling], uniform: Tensor) -> Drawn:
    """Draws by inverse CDF. What a row gives depends on that row alone.

    Args:
        logits: [B, V]
        samplings: B of them.
        uniform: [B] float64 in [0, 1).
    """
    token, logp = [], []
    step = max(CHUNK // logits.shape[1], 1)
    for start in range(0, len(logits), step):
        part = slice(start, start + step)
        probability = _probability(logits[part], samplings[part])
        chosen = _choose(probability, samplings[part], uniform[part])
        token.append(chosen)
        logp.append(probability.gather(1, chosen[:, None]).squeeze(1).log())
    return Drawn(torch.cat(token).tolist(), torch.cat(logp).tolist(), logits.amax(-1).float().tolist())


def _probability(logits: Tensor, samplings: Sequence[Sampling]) -> Tensor:
    """[B, V] fp32; a greedy row is that of temperature 1."""
    if all(s.temperature in (0.0, 1.0) for s in samplings):
        return logits.softmax(-1, dtype=torch.float32)
    temperature = torch.tensor([s.temperature or 1.0 for s in samplings], device=logits.device)
    return (logits.float() / temperature[:, None]).softmax(-1)


def _choose(probability: Tensor, samplings: Sequence[Sampling], uniform: Tensor) -> Tensor:
    """[B] token of each row."""
    greedy = [i for i, s in enumerate(samplings) if s.temperature == 0]
    filtered = [i for i, s in enumerate(samplings) if s.temperature > 0 and s.filters]
    if len(greedy) == len(samplings):
        return probability.argmax(-1)
    token = inverse_cdf(probability, uniform)
    if greedy:
        token[greedy] = probability[greedy].argmax(-1)
    if filtered:
        token[filtered] = _from_few(probability[filtered], [samplings[i] for i in filtered], uniform[filtered])
    return token


def inverse_cdf(probability: Tensor, uniform: Tensor) -> Tensor:
    """The token at which the cumulative probability passes `uniform`; never one of probability 0.

    Args:
        probability: [B, V] fp32, rows need not sum to 1.
        uniform: [B] float64 in [0, 1).

    Returns:
        [B] int64
    """
    blocks = pad(probability, (0, -probability.shape[1] % BLOCK)).unflatten(1, (-1, BLOCK))
    block, share = _pass(blocks.sum(-1).double(), uniform)
    inside, _ = _pass(blocks[torch.arange(len(blocks), device=blocks.device), block].double(), share)
    return (block * BLOCK + inside).clamp(max=probability.shape[1] - 1)  # of what is not finite, any


def _pass(mass: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """The first index at which the cumulative mass passes a share of the whole, and how far into that index's own mass the share lies.

    Args:
        mass: [B, N] float64, not negative.
        share: [B] in [0, 1).
    """
    upto = mass.cumsum(-1)
    total = upto[:, -1:]
    target = torch.minimum(share[:, None] * total, total.nextafter(torch.zeros_like(total)))  # rounding must not reach what lies behind the last
    index = torch.searchsorted(upto, target, right=True).clamp(max=mass.shape[1] - 1)
    own = mass.gather(1, index)
    into = (target - (upto.gather(1, index) - own)) / own
    return index.squeeze(1), into.squeeze(1).clamp(0, 1)


def _from_few(probability: Tensor, samplings: Sequence[Sampling], uniform: Tensor, count: int = CANDIDATES) -> Tensor:
    """[B] tokens of rows in which not all may be drawn: of the `count` likeliest, those that every filter keeps. Where these are too few, of all."""
    size = probability.shape[1]
    value, order = probability.topk(min(count, size), dim=-1)
    keep = _kept(value, samplings)
    index, _ = _pass(value.double() * keep, uniform)
    token = order.gather(1, index[:, None]).squeeze(1)
    ends = zip(keep[:, -1].tolist(), samplings, strict=True)
    few = [i for i, (last, s) in enumerate(ends) if (s.top_k > count if s.top_k else last)] if count < size else []
    if few:
        token[few] = _from_few(probability[few], [samplings[i] for i in few], uniform[few], size)
    return token


def _kept(value: Tensor, samplings: Sequence[Sampling]) -> Tensor:
    """Which of the likeliest tokens may be drawn, the first one always: first top_k, then top_p of what that leaves, then min_p.

    Args:
        value: [B, N] the largest probabilities of each row, descending.
        samplings: B of them.

    Returns:
        [B, N]
    """
    settings = [(s.top_k or torch.inf, s.top_p, s.min_p) for s in samplings]
    top_k, top_p, min_p = torch.tensor(settings, dtype=torch.float64, device=value.device).T[:, :, None]
    first = torch.arange(value.shape[1], device=value.device) < top_k
    mass = value.double().where(first, 0)
    total = mass.sum(-1, keepdim=True).masked_fill(top_k.isinf(), 1)
    keep = first & (mass >= min_p * mass[:, :1]) & ((mass.cumsum(-1) - mass < top_p * total) | (top_p == 1))
    keep[:, 0] = True
    return keep
