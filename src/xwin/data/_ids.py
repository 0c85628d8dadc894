"""Ids of rows made unique at 8 bytes a row: seeds hang on ids, and equal seeds would give equal samples."""

from __future__ import annotations

import hashlib
import itertools
import zipfile
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from xwin.data._jsonl import new_file


@dataclass(frozen=True, slots=True)
class Suffixes:
    """The rows whose id another row before them has, and the number that tells them apart: the second "q7" is "q7.1"."""

    rows: np.ndarray
    """[r] int64, ascending."""
    numbers: np.ndarray
    """[r] int64, from 1."""

    def of(self, row: int) -> int:
        """The number of row `row`; 0 = its id stays."""
        at = int(np.searchsorted(self.rows, row))
        return int(self.numbers[at]) if at < len(self.rows) and self.rows[at] == row else 0

    def save(self, path: Path) -> None:
        """Writes them, whole or not at all."""
        with new_file(path) as out:
            np.savez(out, rows=self.rows, numbers=self.numbers)


def load_suffixes(path: Path) -> Suffixes | None:
    """What `save` has written; None if there is none that can be read."""
    try:
        with np.load(path, allow_pickle=False) as saved:
            return Suffixes(saved["rows"], saved["numbers"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


class Ids:
    """Ids in the order of their rows, kept as 64-bit digests."""

    def __init__(self) -> None:
        self._digests = array("Q")

    def add(self, name: str) -> None:
        """The id of the next row."""
        self._digests.append(_digest(name))

    def suffixes(self, name: Callable[[int], str]) -> Suffixes:
        """Numbers for the rows that repeat an id, skipping those that would meet an id that another row brings.

        Args:
            name: the id of a row, asked only of rows that may share theirs.
        """
        digests = np.frombuffer(self._digests, dtype=np.uint64) if self._digests else np.empty(0, np.uint64)
        order = np.argsort(digests, kind="stable")
        ranked = digests[order]
        equal = ranked[1:] == ranked[:-1]
        shared = np.concatenate([equal, [False]]) | np.concatenate([[False], equal]) if len(ranked) else np.empty(0, bool)
        rows, numbers = array("q"), array("q")
        for _, group in itertools.groupby(order[shared], key=lambda row: digests[row]):
            for row, number in _numbered(group, name, ranked):
                rows.append(row)
                numbers.append(number)
        found, counts = np.array(rows, dtype=np.int64), np.array(numbers, dtype=np.int64)
        ascending = np.argsort(found)
        return Suffixes(found[ascending], counts[ascending])


def _numbered(group: Iterable[int], name: Callable[[int], str], taken: np.ndarray) -> Iterator[tuple[int, int]]:
    """(row, number) of all rows but the first of each id; the rows of a group have one digest, which is nearly always one id."""
    last: dict[str, int] = {}
    for row in group:
        own = name(int(row))
        if own not in last:
            last[own] = 0
            continue
        last[own] = next(i for i in itertools.count(last[own] + 1) if not _holds(taken, _digest(f"{own}.{i}")))
        yield int(row), last[own]


def _holds(ranked: np.ndarray, digest: int) -> bool:
    at = int(np.searchsorted(ranked, np.uint64(digest)))
    return at < len(ranked) and int(ranked[at]) == digest


def _digest(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
