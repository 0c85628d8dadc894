"""Order of rows: a pure function of (seed, epoch), so a position is one integer and resume has nothing to restore."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from xwin.seeds import permutation

Row = TypeVar("Row")


def window(rows: Sequence[Row], seed: int, start: int, count: int) -> list[Row]:
    """`count` rows from position `start` of the endless stream in which every epoch holds every row once, in its own order.

    Args:
        rows: all of them, at least one.
        seed: of the order.
        start: rows consumed so far.
        count: rows wanted; may cross the end of an epoch.
    """
    out: list[Row] = []
    while len(out) < count:
        epoch, offset = divmod(start + len(out), len(rows))
        order = permutation(len(rows), seed, "epoch", epoch)
        out += [rows[i] for i in order[offset : offset + count - len(out)]]
    return out
