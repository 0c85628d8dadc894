"""Train, validation and test that share nothing: values are dealt to the three by a seed, so a value is in one of them only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

from xwin.seeds import derive, permutation

T = TypeVar("T")

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)


@dataclass(frozen=True, slots=True)
class Draft:
    """A question before it has an id.  Example: Draft("What is 2 + 2? Give only the number.", {"task": {...}}, answer="4")"""

    question: str
    meta: Mapping[str, Any]
    """Holds "constraint" or "task": what the verifier checks."""
    answer: str | None = None
    """A right answer, where the generator knows one."""


def pools(values: Sequence[T], seed: int, name: str) -> dict[Split, list[T]]:
    """The values of each split: of every five in a row three, one and one, so that each split gets all sorts (short and long limits, say).

    Args:
        values: different from each other, like ones side by side.
        seed: of the prompts.
        name: what the values are; each name is dealt anew.
    """
    dealt: dict[Split, list[T]] = {split: [] for split in SPLITS}
    for begin in range(0, len(values), 5):
        five = values[begin : begin + 5]
        for fifth, at in enumerate(permutation(len(five), seed, "pool", name, begin)):
            dealt[_holder(fifth)].append(five[at])
    return dealt


def split_of(key: str, seed: int, name: str) -> Split:
    """The split of a key that comes from a space too large to list: the same shares, by the key's digest."""
    return _holder(derive(seed, "split", name, key) % 5)


def _holder(fifth: int) -> Split:
    """Who gets which fifth."""
    return ("train", "train", "train", "validation", "test")[fifth]
