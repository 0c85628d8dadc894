"""What every training stage has in common: settings, and how rows become optimizer steps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

import numpy as np
from annotated_types import Ge, Gt

from xwin.data.batch import Sample
from xwin.data.budget import TooLong
from xwin.data.listed import Listed
from xwin.data.sources import Mixture
from xwin.data.store import Pool
from xwin.errors import DataError
from xwin.learning.optim import Optim
from xwin.models.tuning import Full, LoRA, Tuning
from xwin.run.guards import Guard
from xwin.seeds import permutation
from xwin.stages._work import Use
from xwin.stages.base import Stage

if TYPE_CHECKING:
    from xwin.models.causal import Head

Refs = str | tuple[str, ...] | None
"""What a field that takes one reference, several or none holds."""


def listed(refs: Refs) -> tuple[str, ...]:
    """Each of them."""
    return (refs,) if isinstance(refs, str) else refs or ()


class Training(Stage):
    """Settings of every stage that trains."""

    optim: Optim = Optim()
    """How the parameters move."""

    tune: Tuning = Full()
    """Which parameters are trained."""

    tokens_per_batch: Annotated[int, Ge(16)] = 2048
    """Longest packed batch, tokens. Bounds memory, and how long a row may be; else it does not change the result."""

    recompute: bool = False
    """Whether what a layer computed is computed again in the backward pass instead of kept: less memory, about a third more time, same result."""

    checkpoint_every: Annotated[float, Ge(0)] = 120.0
    """Seconds between checkpoints; 0 writes one after every step."""

    checkpoints_kept: Annotated[int, Ge(1)] = 1
    """How many checkpoints stay while a stage runs, the newest one included; a published stage needs none."""

    guards: tuple[Guard, ...] = ()
    """What to watch beside what is always watched."""

    max_rollbacks: Annotated[int, Ge(0)] = 3
    """Times that guards may roll the stage back; then it stops."""

    def trains(self, role: str, ref: str, head: Head = "language", *, trained: int = 1, read: int = 0) -> Use:
        """The network that is trained, for `work`; see Use."""
        return Use(role, ref, head, self.tune, trained, read, self.optim.kept, self.recompute)

    def require(self) -> None:
        require_able(self.optim, self.tune)


class RowTraining(Training):
    """Settings of every stage that trains on rows of data."""

    too_long: TooLong = "error"
    """What happens to rows longer than a batch: error, drop (counted), or truncate (the prompt loses its start, then the answer its end)."""

    weights: tuple[Annotated[float, Gt(0)], ...] = ()
    """How often an epoch holds each source of `data`, in their order: 2.5 = each row twice and half of them once more; () = once each."""

    def weight_mistakes(self, sources: int) -> list[tuple[str, str, str]]:
        """As `Stage.check` gives mistakes: a weight for each source, or none."""
        if len(self.weights) in {0, sources}:
            return []
        return [("weights", f"{len(self.weights)} weights for {sources} sources", "give one for each source of `data`, in their order")]


def names(samples: Sequence[Sample]) -> list[str]:
    """What the samples are called where a person reads it: the two of a pair have one name."""
    return list(dict.fromkeys(sample.id.rpartition("/")[0] if sample.bond else sample.id for sample in samples))


def require_able(optim: Optim, tune: Tuning) -> None:
    """As `Stage.require`, of one model in training."""
    optim.require()
    if isinstance(tune, LoRA):
        tune.require()


@dataclass(frozen=True)
class Steps(Listed[list[Sample]]):
    """The samples of each optimizer step, fetched when they are asked for."""

    rows: Sequence[Sample]
    places: Sequence[Sequence[int]]
    """For each step, indices of `rows`."""

    def __len__(self) -> int:
        return len(self.places)

    def at(self, place: int) -> list[Sample]:
        """See Listed."""
        return apart([self.rows[i] for i in self.places[place]], self.places[place])


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

    Raises:
        DataError: the weights are so small that no row falls into any epoch.
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
    if not places:
        raise DataError(f"no row falls into {epochs} epochs", f"weights {', '.join(map(str, weights))}", "raise the weights, or epochs")
    return Steps(rows, places)
