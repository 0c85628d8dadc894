"""What every training stage has in common: settings, and how rows become optimizer steps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, overload

import numpy as np
from annotated_types import Ge, Gt

from xwin.data.batch import Sample
from xwin.data.budget import TooLong
from xwin.data.sources import Mixture
from xwin.data.store import Pool
from xwin.learning.optim import Optim
from xwin.models.tuning import Full, Tuning
from xwin.run.guards import Guard
from xwin.seeds import permutation
from xwin.stages.base import Stage


class Training(Stage):
    """Settings of every stage that trains."""

    optim: Optim = Optim()
    """How the parameters move."""

    tune: Tuning = Full()
    """Which parameters are trained."""

    tokens_per_batch: Annotated[int, Ge(16)] = 2048
    """Longest packed batch, tokens. Bounds memory; does not change the result."""

    too_long: TooLong = "error"
    """What happens to rows longer than a batch: error, drop (counted), or truncate (the prompt loses its start, then the answer its end)."""

    weights: tuple[Annotated[float, Gt(0)], ...] = ()
    """How often an epoch holds each source of `data`, in their order: 2.5 = each row twice and half of them once more; () = once each."""

    checkpoint_every: Annotated[float, Ge(0)] = 120.0
    """Seconds between checkpoints; 0 writes one after every step."""

    guards: tuple[Guard, ...] = ()
    """What to watch beside what is always watched."""


@dataclass(frozen=True)
class Steps(Sequence[list[Sample]]):
    """The samples of each optimizer step, fetched when they are asked for."""

    rows: Sequence[Sample]
    places: Sequence[Sequence[int]]
    """For each step, indices of `rows`."""

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, index: int) -> list[Sample]: ...
    @overload
    def __getitem__(self, index: slice) -> list[list[Sample]]: ...
    def __getitem__(self, index: int | slice) -> list[Sample] | list[list[Sample]]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return apart([self.rows[i] for i in self.places[index]], self.places[index])


def apart(rows: Sequence[Sample], places: Sequence[int]) -> list[Sample]:
    """The rows with names of their own where a place comes again: two copies of a pair are two pairs, not a bond of four."""
    seen: Counter[int] = Counter()
    found = []
    for row, place in zip(rows, places, strict=True):
        again = f" again {seen[place]}" if seen[place] else ""
        found.append(replace(row, id=row.id + again, bond=row.bond + again) if row.bond and again else row)
        seen[place] += 1
    return found


def cut(rows: Pool, *, tokens: int, epochs: int, seed: int, weights: Sequence[float] = ()) -> Steps:
    """The rows of each optimizer step, a function of (rows, seed) alone: every epoch in its own order, cut where a step would pass `tokens`.

    Bonded rows (a pair) stay in one step and in order.

    Args:
        rows: what is trained.
        tokens: of one step, prompts included; a single row or bond may be longer.
        epochs: times each row is seen.
        seed: of the order.
        weights: times an epoch holds each source of `rows`; () = once each.
    """
    units = rows.units
    first = np.searchsorted(units, np.arange(len(np.unique(units)) + 1))
    sizes = np.add.reduceat(rows.lengths, first[:-1])
    sources = rows.sources[first[:-1]]
    mixture = Mixture([np.flatnonzero(sources == s).tolist() for s in range(len(rows.stores))], weights or (1.0,) * len(rows.stores))
    places: list[list[int]] = []
    for epoch in range(epochs):
        chosen = np.sort(np.fromiter(mixture.epoch(seed, epoch), np.int64))
        used = tokens + 1
        for index in chosen[permutation(len(chosen), seed, "order", epoch)]:
            if used + sizes[index] > tokens:
                places.append([])
                used = 0
            places[-1] += range(first[index], first[index + 1])
            used += sizes[index]
    return Steps(rows, places)
