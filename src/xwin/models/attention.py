"""Attention over packed batches and over the cache of an engine, through transformers' own door for attention functions.

Any model of transformers that takes an attention implementation runs with `attn_implementation="xwin"`: the one registered function hands
queries, keys and values to a Plan that travels through the forward call. A plan says who sees whom.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from xwin.data.batch import Batch

NAME = "xwin"


class Plan(Protocol):
    """Who sees whom in one forward call."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float, window: int | None) -> Tensor:
        """Attention of one layer.

        Args:
            layer: its index.
            query: [B, H, L, D]
            key: [B, K, L, D], K heads that H is a multiple of.
            value: [B, K, L, D]
            scale: factor of the scores.
            window: how many tokens back a token sees, itself included; None = all.

        Returns:
            [B, L, H, D]
        """
        ...


def _attend(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, plan: Plan, **options: Any
) -> tuple[Tensor, None]:
    """What transformers calls in every layer."""
    scale = options.get("scaling") or query.shape[-1] ** -0.5
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    out = plan.attend(layer, query.to(value.dtype), key.to(value.dtype), value, scale=scale, window=options.get("sliding_window"))
    return out, None


AttentionInterface.register(NAME, _attend)


@dataclass(frozen=True)
class _Bucket:
    """Segments of similar length, padded to one shape for the attention alone."""

    query: Tensor
    """[s, Lq] index of each query token; padding repeats the segment's first."""
    key: Tensor
    """[s, Lk] the same for keys: the ancestors' tokens, then the segment's own."""
    seen: Tensor
    """[s, 1, Lq, Lk] bool; a padded query sees key 0, so that its softmax is finite."""
    real: Tensor
    """[s, Lq] bool; False where padded."""


@dataclass
class PackedPlan:
    """Block-diagonal causal attention of a Batch: a token sees its own segment up to itself, and all of its segment's ancestors.

    Nothing of another sequence is ever computed with, so packing cannot contaminate.
    """

    batch: Batch
    _buckets: dict[int | None, list[_Bucket]] = field(default_factory=dict)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float, window: int | None) -> Tensor:
        """See Plan; B is 1 and L is the batch's T."""
        if window not in self._buckets:
            self._buckets[window] = _buckets(self.batch, window)
        q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
        group = q.shape[1] // k.shape[1]
        buckets = self._buckets[window]
        rows, index = [], []
        for bucket in buckets:
            q_, k_, v_ = (x[i].transpose(1, 2) for x, i in ((q, bucket.query), (k, bucket.key), (v, bucket.key)))
            k_, v_ = (x.repeat_interleave(group, dim=1) if group > 1 else x for x in (k_, v_))
            out = scaled_dot_product_attention(q_, k_, v_, attn_mask=bucket.seen, scale=scale)
            rows.append(out.transpose(1, 2)[bucket.real])
            index.append(bucket.query[bucket.real])
        return torch.empty_like(q).index_copy(0, torch.cat(index), torch.cat(rows))[None]


def _buckets(batch: Batch, window: int | None) -> list[_Bucket]:
    """Segments sorted by the length they see, cut where padding would add more than a quarter."""
    parents = batch.parent.tolist()
    spans = [range(s, s + n) for s, n in zip(batch.starts.tolist(), batch.lengths.tolist(), strict=True)]
    seen: list[list[int]] = []
    for s, span in enumerate(spans):
        seen.append([*(seen[parents[s]] if parents[s] >= 0 else ()), *span])
    order = sorted(range(len(spans)), key=lambda s: (len(seen[s]), s))
    cuts: list[list[int]] = []
    for s in order:
        if not cuts or len(seen[s]) > 1.25 * len(seen[cuts[-1][0]]) + 16 or len(spans[s]) > 2 * len(spans[cuts[-1][0]]) + 16:
            cuts.append([])
        cuts[-1].append(s)
    return [_bucket(batch, [spans[s] for s in cut], [seen[s] for s in cut], window) for cut in cuts]


def _bucket(batch: Batch, spans: list[range], seen: list[list[int]], window: int | None) -> _Bucket:
    device = batch.tokens.device
    rows, lq, lk = len(spans), max(map(len, spans)), max(map(len, seen))
    query = torch.zeros(rows, lq, dtype=torch.long)
    key = torch.zeros(rows, lk, dtype=torch.long)
    real = torch.zeros(rows, lq, dtype=torch.bool)
    live = torch.zeros(rows, lk, dtype=torch.bool)
    for i, (span, sees) in enumerate(zip(spans, seen, strict=True)):
        query[i], key[i] = span.start, sees[0]  # not another sequence's token: a NaN of its would pass a weight of zero
        query[i, : len(span)] = torch.arange(span.start, span.stop)
        key[i, : len(sees)] = torch.tensor(sees)
        real[i, : len(span)] = True
        live[i, : len(sees)] = True
    position = batch.position.cpu()
    behind = position[query][:, :, None] - position[key][:, None, :]
    mask = live[:, None, :] & (behind >= 0)
    if window is not None:
        mask &= behind < window
    mask[..., 0] |= ~real
    return _Bucket(query.to(device), key.to(device), mask[:, None].to(device), real.to(device))
