"""Dealing the batches of a step to workers that compute in step with each other, and putting what they say back in order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch

from xwin.data.batch import Batch

T = TypeVar("T")


@dataclass(frozen=True)
class Deal:
    """Who computes what. Each worker has the same number of batches: all wait for each other at every one."""

    shares: tuple[tuple[Batch, ...], ...]
    """By rank."""
    places: tuple[tuple[int, ...], ...]
    """By rank: which of the batches that were dealt each one is; -1 for an empty one."""

    def collect(self, said: Sequence[Sequence[T]]) -> list[T]:
        """What the workers say of their shares, by rank -> what is said of the batches that were dealt, in their order."""
        found = {place: one for mine, places in zip(said, self.places, strict=True) for one, place in zip(mine, places, strict=True)}
        return [found[place] for place in range(len(found) - (-1 in found))]


def deal(batches: Sequence[Batch], size: int) -> Deal:
    """Shares of equal number and about equal tokens, filled up with empty batches. Deterministic.

    The longest batches go into the first round, the next longest into the second, and so on: a round lasts as long as its longest batch, so
    alike should meet. Within a round, who has the fewest tokens so far gets the most.

    Args:
        batches: of one step.
        size: how many workers.
    """
    longest_first = sorted(range(len(batches)), key=lambda i: (-len(batches[i]), i))
    places: list[list[int]] = [[] for _ in range(size)]
    tokens = [0] * size
    for start in range(0, len(batches), size):
        for rank, place in zip(sorted(range(size), key=tokens.__getitem__), longest_first[start : start + size], strict=False):
            places[rank].append(place)
            tokens[rank] += len(batches[place])
    rounds = -(-len(batches) // size)
    dealt = tuple(tuple(mine + [-1] * (rounds - len(mine))) for mine in places)
    shares = (tuple(batches[i] if i >= 0 else empty(batches[0]) for i in mine) for mine in dealt)
    return Deal(tuple(shares), dealt)


def empty(like: Batch) -> Batch:
    """A batch of one token of which nothing is trained, with the same columns: it costs nothing, and asks for the same as the others."""
    return replace(
        like,
        tokens=like.tokens[:1],
        position=torch.zeros_like(like.position[:1]),
        segment=torch.zeros_like(like.segment[:1]),
        mask=torch.zeros_like(like.mask[:1]),
        parent=torch.full_like(like.parent[:1], -1),
        ids=("",),
        bonds=(None,),
        columns={name: torch.zeros_like(column[:1]) for name, column in like.columns.items()},
    )
