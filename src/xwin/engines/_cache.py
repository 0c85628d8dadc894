"""The key-value cache of the local engine: a row per answer, in pages of PAGE tokens, and who sees what of it.

A page holds the same PAGE places of every row, so the first rows of a page are one block of memory: a product reads them where they are. Answers
grow by taking the next page. Only rows that reach a page are multiplied with it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from xwin.data.batch import Batch
from xwin.models.attention import PackedPlan

PAGE = 64
"""Tokens of a row that lie together."""

SHORT = 16
"""Pages of one row that are copied together for each token: what reading the weights takes hides it."""


def in_pages(length: int) -> int:
    """Pages that hold so many tokens."""
    return -(-length // PAGE)


class Cache:
    """Keys and values of `rows` answers of at most `length` tokens. Rows 0 .. live-1 are in use; a layer's memory is made at first use."""

    def __init__(self, rows: int, length: int) -> None:
        self.rows, self.pages = rows, in_pages(length)
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}
        """layer -> keys and values, each [pages, rows, K, PAGE, D]"""

    @property
    def length(self) -> int:
        """Tokens of a row."""
        return self.pages * PAGE

    @property
    def bytes(self) -> int:
        """What is held."""
        return sum(tensor.nbytes for both in self.layers.values() for tensor in both)

    def layer(self, index: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer; `like` [B, K, L, D] gives heads, width and type."""
        if index not in self.layers:
            shape = (self.pages, self.rows, like.shape[1], PAGE, like.shape[3])
            self.layers[index] = like.new_zeros(shape), like.new_zeros(shape)
        return self.layers[index]

    def reserve(self, rows: int, length: int, live: int) -> None:
        """Makes room, layer by layer, and keeps what the first `live` rows hold.

        Args:
            rows: that must fit.
            length: tokens of the longest.
            live: rows in use.
        """
        pages = in_pages(length)
        if rows <= self.rows and pages <= self.pages:
            return
        held = rows, pages
        if self.layers:  # until all have room, and if memory ends, a row is as long as in the smallest of them
            held, self.rows, self.pages = held, min(rows, self.rows), min(pages, self.pages)
        for index, both in self.layers.items():
            kept = min(pages, both[0].shape[0])
            larger = tuple(tensor.new_zeros(pages, rows, *tensor.shape[2:]) for tensor in both)
            for new, old in zip(larger, both, strict=True):
                new[:kept, :live] = old[:kept, :live]
            self.layers[index] = larger[0], larger[1]
        self.rows, self.pages = held

    def move(self, source: int, target: int) -> None:
        """Copies a whole row."""
        for both in self.layers.values():
            for tensor in both:
                tensor[:, target] = tensor[:, source]

    def clear(self, row: int) -> None:
        """Zeros a row: what is not finite there would reach whoever has it next, since a weight of 0 does not stop it."""
        for both in self.layers.values():
            for tensor in both:
                tensor[:, row] = 0


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
        spans = [torch.arange(a, a + n) for a, n in zip(batch.starts.tolist(), batch.lengths.tolist(), strict=True)]
        seen: list[Tensor] = []
        for parent, span in zip(batch.parent.tolist(), spans, strict=True):
            seen.append(torch.cat([seen[parent], span]) if parent >= 0 else span)
        each = [(r, tokens) for mine, tokens in zip(rows, seen, strict=True) for r in mine]
        token = torch.cat([tokens for _, tokens in each])
        row = torch.cat([torch.full_like(tokens, r) for r, tokens in each])
        place = torch.cat([torch.arange(len(tokens)) for _, tokens in each])
        device = batch.tokens.device
        return cls(PackedPlan(batch), cache, token.to(device), row.to(device), place.to(device))

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float, window: int | None) -> Tensor:
        """See models.attention.Plan."""
        for store, fresh in zip(self.cache.layer(layer, value), (key, value), strict=True):
            store[self.place // PAGE, self.row, :, self.place % PAGE] = fresh[0].transpose(0, 1)[self.token].to(store.dtype)
        return self.packed.attend(layer, query, key, value, scale=scale, window=window)


@dataclass(frozen=True)
class DecodePlan:
    """One new token for each of the first B rows."""

    cache: Cache
    place: Tensor
    """[B] position of the new token in its row."""
    reach: tuple[tuple[slice, int], ...]
    """Pages, and how many of the first rows must be multiplied with each of them. Several pages together are one block of memory."""
    seen: int
    """Places that the longest row sees, its new token's included."""
    _lines: dict[int, Tensor] = field(default_factory=dict)
    _unseen: dict[int | None, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, cache: Cache, places: list[int], device: torch.device) -> DecodePlan:
        """`places`: of the new token of each row."""
        reach = [0] * (max(places) // PAGE + 1)
        for row, place in enumerate(places):
            reach[: place // PAGE + 1] = [row + 1] * (place // PAGE + 1)
        whole = next((page for page, n in enumerate(reach) if n < cache.rows), len(reach))  # pages that all rows of the cache reach
        blocks = [(slice(0, whole), cache.rows)] * (whole > 0) + [(slice(page, page + 1), reach[page]) for page in range(whole, len(reach))]
        return cls(cache, torch.tensor(places, device=device), tuple(blocks), max(places) + 1)

    @property
    def pages(self) -> int:
        """How many are used."""
        return self.reach[-1][0].stop

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float, window: int | None) -> Tensor:
        """See models.attention.Plan; query is [B, H, 1, D]. The heads that share a key head become rows of one product."""
        keys, values = self.cache.layer(layer, value)
        rows, kv, _, width = value.shape
        for store, fresh in ((keys, key), (values, value)):
            store.view(-1, width).index_copy_(0, self.lines(kv), fresh.reshape(-1, width).to(store.dtype))
        if rows == 1 and self.pages <= SHORT:
            return self._alone(query, keys, values, scale, window)
        shared = (query * scale).reshape(rows * kv, -1, width)
        scores = shared.new_empty(*shared.shape[:2], self.pages, PAGE)  # what no product writes is not seen
        for pages, n in self.reach:
            block = keys[pages, :n].flatten(0, 2)
            asked = shared[: n * kv].repeat(len(block) // (n * kv), 1, 1)
            scores[: n * kv, :, pages] = torch.bmm(asked, block.mT).unflatten(0, (-1, n * kv)).permute(1, 2, 0, 3)
        scores.view(rows, -1, self.pages * PAGE).masked_fill_(self.unseen(window), -torch.inf)
        weight = scores.flatten(2).softmax(-1).view_as(scores)  # summed in fp32 whatever the type
        out = torch.zeros_like(shared, dtype=torch.float32)
        for pages, n in self.reach:
            share = weight[: n * kv, :, pages].permute(2, 0, 1, 3).flatten(0, 1)
            out[: n * kv].add_(torch.bmm(share, values[pages, :n].flatten(0, 2)).unflatten(0, (-1, n * kv)).sum(0, dtype=torch.float32))
        return out.to(value.dtype).view(rows, 1, -1, width)

    def _alone(self, query: Tensor, keys: Tensor, values: Tensor, scale: float, window: int | None) -> Tensor:
        """[1, 1, H, D] of one row, which sees all places up to its own: few operations, since each takes longer than its work."""
        end = self.seen
        start = 0 if window is None else max(end - window, 0)
        key, value = (store[: self.pages, 0].transpose(0, 1).flatten(1, 2)[None, :, start:end] for store in (keys, values))
        return scaled_dot_product_attention(query, key, value, scale=scale, enable_gqa=True).transpose(1, 2)

    def lines(self, heads: int) -> Tensor:
        """[B * heads] where the new tokens go, of a layer's memory as lines of one head of one token."""
        if heads not in self._lines:
            row, head = (torch.arange(count, device=self.place.device) for count in (len(self.place), heads))
            first = (self.place // PAGE * self.cache.rows + row)[:, None] * heads
            self._lines[heads] = ((first + head) * PAGE + self.place[:, None] % PAGE).flatten()
        return self._lines[heads]

    def unseen(self, window: int | None) -> Tensor:
        """[B, 1, pages * PAGE] places that a row's new token does not look at."""
        if window not in self._unseen:
            behind = self.place[:, None] - torch.arange(self.pages * PAGE, device=self.place.device)
            unseen = behind < 0 if window is None else (behind < 0) | (behind >= window)
            self._unseen[window] = unseen[:, None]
        return self._unseen[window]
