"""The key-value cache of the local engine: preallocated, a row per answer, attended through the same door as packed batches."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from xwin.data.batch import Batch
from xwin.models.attention import PackedPlan


class Cache:
    """Keys and values of `rows` answers of at most `length` tokens. Rows 0 .. live-1 are in use; a layer's memory is made at first use."""

    def __init__(self, rows: int, length: int) -> None:
        self.rows, self.length = rows, length
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}
        """layer -> [rows, K, length, D]"""

    def layer(self, index: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer; `like` [B, K, L, D] gives heads, width and type."""
        if index not in self.keys:
            shape = (self.rows, like.shape[1], self.length, like.shape[3])
            self.keys[index], self.values[index] = like.new_zeros(shape), like.new_zeros(shape)
        return self.keys[index], self.values[index]

    def move(self, source: Tensor, target: Tensor) -> None:
        """Copies whole rows.  source, target: [m] row indices; no row is both."""
        for store in (self.keys, self.values):
            for tensor in store.values():
                tensor[target] = tensor[source]


@dataclass(frozen=True)
class PrefillPlan:
    """Prompts laid out as a packed batch; what each layer computes is also written into the cache, once per answer of the prompt."""

    packed: PackedPlan
    cache: Cache
    token: Tensor
    """[N] index into the batch of every (answer, prompt token)."""
    row: Tensor
    """[N] row of that answer."""
    place: Tensor
    """[N] position of that token."""

    @classmethod
    def of(cls, batch: Batch, cache: Cache, rows: list[list[int]]) -> PrefillPlan:
        """`rows[s]`: the rows that continue segment s."""
        spans = [range(a, a + n) for a, n in zip(batch.starts.tolist(), batch.lengths.tolist(), strict=True)]
        seen: list[list[int]] = []
        for parent, span in zip(batch.parent.tolist(), spans, strict=True):
            seen.append([*(seen[parent] if parent >= 0 else ()), *span])
        index = [(token, r, place) for s, mine in enumerate(rows) for r in mine for place, token in enumerate(seen[s])]
        token, row, place = torch.tensor(index).unbind(1)
        return cls(PackedPlan(batch), cache, token, row, place)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float, window: int | None) -> Tensor:
        """See models.attention.Plan."""
        keys, values = self.cache.layer(layer, value)
        for store, fresh in ((keys, key), (values, value)):
            store[self.row, :, self.place] = fresh[0].transpose(0, 1)[self.token].to(store.dtype)
        return self.packed.attend(layer, query, key, value, scale=scale, window=window)


@dataclass(frozen=True)
class DecodePlan:
    """One new token for each of the first B rows."""

    cache: Cache
    place: Tensor
    """[B] position of the new token in its row."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float, window: int | None) -> Tensor:
        """See models.attention.Plan; query is [B, H, 1, D]."""
        keys, values = self.cache.layer(layer, value)
        rows, kv, _, width = value.shape
        index = torch.arange(rows, device=value.device)
        keys[index, :, self.place] = key[:, :, 0].to(keys.dtype)
        values[index, :, self.place] = value[:, :, 0].to(values.dtype)
        longest = int(self.place.max()) + 1
        behind = self.place[:, None] - torch.arange(longest, device=value.device)
        seen = behind >= 0 if window is None else (behind >= 0) & (behind < window)
        # the heads that share a key head become query rows, so keys are read once and never expanded
        shared = query[:, :, 0].reshape(rows, kv, -1, width)
        mine = (store[:rows, :, :longest] for store in (keys, values))
        out = scaled_dot_product_attention(shared, *mine, attn_mask=seen[:, None, None, :], scale=scale)
        return out.reshape(rows, 1, -1, width)
