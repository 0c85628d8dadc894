"""Attention over packed batches and over the cache of an engine, through transformers' own door for attention functions.

Any model of transformers that takes an attention implementation runs with `attn_implementation="xwin"`: the one registered function hands
queries, keys and values to a Plan that travels through the forward call. A plan says who sees whom.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from xwin.data.batch import Batch
from xwin.errors import ModelError

NAME = "xwin"

BEYOND = ("s_aux", "sinks", "softcap", "position_bias", "indices", "block_indices")
"""What some layers of transformers ask of an attention function beside a scale and a window: to leave it out would compute something else."""


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
    """What transformers calls in every layer.

    Raises:
        ModelError: the layer asks for something that is not softmax(q k) v.
    """
    unknown = next((name for name in BEYOND if options.get(name) is not None), None)
    if unknown is not None:
        what = f"the attention of {type(module).__name__} has {unknown}, which packed training does not compute"
        raise ModelError(what, fix="use a model of plain attention, such as a llama, mistral or qwen2")
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
    bias: Tensor | None
    """[s, 1, Lq, Lk] 0 where seen, else -inf; a padded query sees key 0, so that its softmax is finite. None = causal, and Lq = Lk."""
    kept: Tensor
    """[n] places in the flattened [s x Lq] that hold a segment's own tokens."""
    place: Tensor
    """[n] the index of each of them in the batch."""


@dataclass(frozen=True)
class _Flat:
    """All segments end to end, as the kernels of GPUs read them: a segment's tokens ask, its ancestors' and its own are asked."""

    queries: Tensor
    """[S + 1] int32, where each segment's queries start in the batch, and its end."""
    keys: Tensor
    """[S + 1] int32, the same in `seen`."""
    seen: Tensor
    """[K] index of each key token."""
    longest: tuple[int, int]
    """Queries and keys of one segment, at most."""


@dataclass
class PackedPlan:
    """Block-diagonal causal attention of a Batch: a token sees its own segment up to itself, and all of its segment's ancestors.

    Nothing of another sequence is ever computed with, so packing cannot contaminate.
    """

    batch: Batch
    _flat: list[_Flat] = field(default_factory=list)
    _buckets: dict[tuple[int | None, torch.dtype], list[_Bucket]] = field(default_factory=dict)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float, window: int | None) -> Tensor:
        """See Plan; B is 1 and L is the batch's T."""
        if query.is_cuda and value.dtype in HALF:
            if not self._flat:
                self._flat.append(_flat(self.batch))
            return _varlen(query, key, value, self._flat[0], scale, window)
        buckets = self._buckets.get((window, value.dtype))
        if buckets is None:
            buckets = self._buckets[window, value.dtype] = _buckets(self.batch, window, value.dtype)
        q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
        out: Tensor = _attended(q, k, v, buckets, scale) if q.is_cuda else _Attention.apply(q, k, v, buckets, scale)  # type: ignore[assignment]
        return out[None]


HALF = (torch.bfloat16, torch.float16)
"""What the kernel for segments of any length computes in."""


def _flat(batch: Batch) -> _Flat:
    seen = _seen(batch)
    device, lengths = batch.tokens.device, batch.lengths
    keys = torch.tensor([len(s) for s in seen], device=device)
    queries_end, keys_end = (torch.nn.functional.pad(x.cumsum(0), (1, 0)).to(torch.int32) for x in (lengths, keys))
    places = torch.tensor([t for s in seen for t in s], device=device)
    return _Flat(queries_end, keys_end, places, (int(lengths.max()), int(keys.max())))


def _varlen(query: Tensor, key: Tensor, value: Tensor, flat: _Flat, scale: float, window: int | None) -> Tensor:  # noqa: PLR0917
    """[1, T, H, D] by FlashAttention (Dao 2023, arXiv:2307.08691), whose causal mask ends with the last key: ancestors are seen whole."""
    from torch.nn.attention.varlen import varlen_attn

    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    back = -1 if window is None else window - 1
    ends, longest = (flat.queries, flat.keys), flat.longest
    out = varlen_attn(q, k[flat.seen], v[flat.seen], *ends, *longest, scale=scale, window_size=(back, 0), enable_gqa=True)
    return out[None]  # type: ignore[index] - a tensor, unless more is asked for


def _attended(q: Tensor, k: Tensor, v: Tensor, buckets: Sequence[_Bucket], scale: float) -> Tensor:
    """[T, H, D]"""
    group = q.shape[1] // k.shape[1]
    rows = []
    for bucket in buckets:
        q_, k_, v_ = (x[i].transpose(1, 2) for x, i in ((q, bucket.query), (k, bucket.key), (v, bucket.key)))
        if bucket.bias is None and not q.is_cuda:
            rows.append(_causal_rows(q[bucket.query], k_, v_, scale).flatten(0, 1)[bucket.kept])
            continue
        k_, v_ = (x.repeat_interleave(group, dim=1) if group > 1 else x for x in (k_, v_))
        said = scaled_dot_product_attention(q_, k_, v_, attn_mask=bucket.bias, is_causal=bucket.bias is None, scale=scale)
        rows.append(said.transpose(1, 2).flatten(0, 1)[bucket.kept])
    return torch.empty_like(q).index_copy(0, torch.cat([b.place for b in buckets]), torch.cat(rows))


def _causal_rows(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Causal attention of one segment, a block of queries at a time: on a CPU torch's own takes half as long again.

    Args:
        query: [1, L, H, D]
        key: [1, K, L, D]
        value: [1, K, L, D]
        scale: of the scores.

    Returns:
        [1, L, H, D]
    """
    query, key, value = _side_by_side(query * scale, key.shape[1]), key.contiguous(), value.contiguous()
    out = torch.empty_like(query)
    for rows in _blocks(query.shape[3]):
        p = _causal_scores(query[:, :, :, rows].flatten(2, 3), key[:, :, : rows.stop], rows).softmax(-1)
        out[:, :, :, rows] = (p.flatten(2, 3) @ value[:, :, : rows.stop]).unflatten(2, (-1, rows.stop - rows.start))
    return out.permute(0, 3, 1, 2, 4).flatten(2, 3)


def _side_by_side(x: Tensor, heads: int) -> Tensor:
    """[s, L, H, D] -> [s, K, G, L, D]: the G query heads that share one of the K key heads, so that no key is repeated."""
    return x.unflatten(2, (heads, -1)).permute(0, 2, 3, 1, 4)


def _blocks(length: int) -> list[slice]:
    return [slice(start, min(start + BLOCK, length)) for start in range(0, length, BLOCK)]


def _causal_scores(query: Tensor, key: Tensor, rows: slice) -> Tensor:
    """[s, K, G, l, rows.stop] scores of the l queries of a block and all keys up to its last, -inf where a key lies ahead.

    Args:
        query: [s, K, G l, D], scaled.
        key: [s, K, rows.stop, D]
        rows: where the block's queries lie.
    """
    size = rows.stop - rows.start
    scores = (query @ key.mT).unflatten(2, (-1, size))
    scores[..., rows.start :].masked_fill_(torch.ones(size, size, dtype=torch.bool, device=query.device).triu_(1), -torch.inf)
    return scores


class _Attention(torch.autograd.Function):
    """Attention of all buckets, [T, H, D] -> [T, H, D]. Keeps q, k and v alone; scores are formed again in the backward pass.

    With s = (scale q) k^T + bias, p = softmax(s):  dv = p^T do,  ds = p (do v^T - sum(p do v^T)),  dq = scale ds k,  dk = ds^T (scale q).
    torch's own backward pass takes two to four times as long, on a CPU and sequences of a few hundred tokens.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, buckets: Sequence[_Bucket], scale: float) -> Tensor:
        ctx.save_for_backward(q, k, v)
        ctx.buckets, ctx.scale = buckets, scale
        return _attended(q, k, v, buckets, scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v = ctx.saved_tensors
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k, dtype=torch.float32), torch.zeros_like(v, dtype=torch.float32)
        for bucket in ctx.buckets:
            above = q.new_zeros(bucket.query.numel(), *q.shape[1:])
            above[bucket.kept] = gradients[0][bucket.place].to(q.dtype)
            parts = (q[bucket.query], above.view(*bucket.query.shape, *q.shape[1:]), k[bucket.key], v[bucket.key])
            dq_, dk_, dv_ = _slopes(*parts, bucket.bias, ctx.scale)
            dq[bucket.place] = dq_.flatten(0, 1)[bucket.kept]
            dk.index_add_(0, bucket.key.flatten(), dk_.flatten(0, 1))
            dv.index_add_(0, bucket.key.flatten(), dv_.flatten(0, 1))
        return dq, dk.to(k.dtype), dv.to(v.dtype), None, None


BLOCK = 128
"""Queries of a segment whose scores are whole at a time."""


def _slopes(query: Tensor, above: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scale: float) -> tuple[Tensor, Tensor, Tensor]:  # noqa: PLR0917
    """The backward pass of one bucket.

    Args:
        query: [s, Lq, H, D]
        above: [s, Lq, H, D] gradient of what was attended to.
        key: [s, Lk, K, D]
        value: [s, Lk, K, D]
        bias: see _Bucket.
        scale: of the scores.

    Returns:
        Gradients of query, and in fp32 of key and value.
    """
    heads, length = key.shape[2], query.shape[1]
    query, above = _side_by_side(query * scale, heads), _side_by_side(above, heads)
    key, value = (x.transpose(1, 2).contiguous() for x in (key, value))  # [s, K, Lk, D]
    dq, dk, dv = torch.empty_like(query), torch.zeros_like(key, dtype=torch.float32), torch.zeros_like(value, dtype=torch.float32)
    for rows in _blocks(length):
        keys = slice(0, rows.stop if bias is None else None)
        q, g = (x[:, :, :, rows].flatten(2, 3) for x in (query, above))  # [s, K, G Lq, D]
        k, v = key[:, :, keys], value[:, :, keys]
        size = rows.stop - rows.start
        scores = _causal_scores(q, k, rows) if bias is None else (q @ k.mT).unflatten(2, (-1, size)) + bias[:, :, None, rows]
        p = scores.softmax(-1).flatten(2, 3)
        ds = torch.ops.aten._softmax_backward_data(g @ v.mT, p, -1, p.dtype)
        dq[:, :, :, rows] = (ds @ k).unflatten(2, (-1, size))
        dk[:, :, keys] += ds.mT @ q
        dv[:, :, keys] += p.mT @ g
    return dq.mul_(scale).permute(0, 3, 1, 2, 4).flatten(2, 3), dk.transpose(1, 2), dv.transpose(1, 2)


def _spans(batch: Batch) -> list[range]:
    """Where the tokens of each segment lie in the batch."""
    return [range(s, s + n) for s, n in zip(batch.starts.tolist(), batch.lengths.tolist(), strict=True)]


def _seen(batch: Batch) -> list[list[int]]:
    """For each segment the index of every token that its last one sees: the ancestors', then its own."""
    seen: list[list[int]] = []
    for parent, span in zip(batch.parent.tolist(), _spans(batch), strict=True):
        seen.append([*(seen[parent] if parent >= 0 else ()), *span])
    return seen


ALONE = 256
"""Tokens. A segment that sees this many is attended to alone: a padded bucket would spend more on what is masked."""


def _buckets(batch: Batch, window: int | None, dtype: torch.dtype) -> list[_Bucket]:
    """Segments sorted by the length they see, cut where padding would add more than a quarter."""
    spans, seen = _spans(batch), _seen(batch)
    order = sorted(range(len(spans)), key=lambda s: (len(seen[s]), s))
    cuts: list[list[int]] = []
    for s in order:
        if not cuts or len(seen[s]) > min(1.25 * len(seen[cuts[-1][0]]) + 16, ALONE) or len(spans[s]) > 2 * len(spans[cuts[-1][0]]) + 16:
            cuts.append([])
        cuts[-1].append(s)
    return [_bucket(batch, [spans[s] for s in cut], [seen[s] for s in cut], window, dtype) for cut in cuts]


def _bucket(batch: Batch, spans: list[range], seen: list[list[int]], window: int | None, dtype: torch.dtype) -> _Bucket:
    device = batch.tokens.device
    if len(spans) == 1 and window is None and len(seen[0]) <= 2 * len(spans[0]):
        return _causal(spans[0], seen[0], device)
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
    bias = torch.zeros(mask.shape, dtype=dtype).masked_fill_(~mask, -torch.inf)
    kept = real.flatten().nonzero().squeeze(1)
    return _Bucket(query.to(device), key.to(device), bias[:, None].to(device), kept.to(device), query.flatten()[kept].to(device))


def _causal(span: range, sees: list[int], device: torch.device) -> _Bucket:
    """One segment, its ancestors asking too: what they say is dropped, and no mask is needed, which halves the work."""
    index = torch.tensor([sees], device=device)
    kept = torch.arange(len(sees) - len(span), len(sees), device=device)
    return _Bucket(index, index, None, kept, index[0, kept])
