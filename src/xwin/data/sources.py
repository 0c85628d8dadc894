"""Sources of rows: native files read by index, what people have imported on the way, mixtures, and their order.

Order is a pure function of (seed, epoch), so a position is one integer and resume has nothing to restore.
"""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import accumulate
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, overload

import numpy as np

from xwin.data._ids import Ids, Suffixes, load_suffixes
from xwin.data._import import Found, Imported, OnDefect, Outcome, Source, Tally, find_format, import_rows
from xwin.data.conversation import Conversation, Json, Preference, conversation_from_json, preference_from_json
from xwin.data.files import REVISION as FILES_REVISION
from xwin.data.files import Row as FileRow
from xwin.data.files import Table, named_tables, open_table
from xwin.data.formats import Item, Makes
from xwin.data.listed import Listed
from xwin.errors import DataError
from xwin.seeds import order

__all__ = [
    "Epoch",
    "Found",
    "Imported",
    "Mixture",
    "OnDefect",
    "Outcome",
    "Rows",
    "Source",
    "Tally",
    "find_format",
    "import_rows",
    "load",
    "open_conversations",
    "open_preferences",
    "window",
]

REVISION = 1
"""Of imported copies in the cache: another number when formats read rows in another way."""

Row = TypeVar("Row")
ItemT = TypeVar("ItemT", bound=Item)
Read = Callable[[Json, str], ItemT]


class Rows(Listed[ItemT]):
    """The items of a native JSONL file, read when they are asked for; held are a few bytes a row. All ids differ.

    Example: rows = open_conversations(Path("train.jsonl")); rows[7].messages

    Raises on access:
        DataError: the file changed after it was opened.
    """

    def __init__(self, table: Table, read: Read[ItemT], suffixes: Suffixes) -> None:
        self._table, self._read, self._suffixes = table, read, suffixes

    @property
    def path(self) -> Path:
        """Of the file as the person named it."""
        return self._table.path

    @property
    def digest(self) -> str:
        """sha256 of the file, 64 hex digits."""
        return self._table.digest

    def __len__(self) -> int:
        return len(self._table)

    def at(self, place: int) -> ItemT:
        """See Listed."""
        item = _item(self._table.path, self._table[place], self._read)
        number = self._suffixes.of(place)
        return replace(item, id=f"{item.id}.{number}") if number else item

    def __iter__(self) -> Iterator[ItemT]:
        for i in range(len(self)):
            yield self[i]
        self._table.check()


def open_conversations(path: Path, *, cache: Path) -> Rows[Conversation]:
    """The conversations of a native file, each checked once.

    Args:
        path: JSONL as `conversation_to_json` writes it.
        cache: folder that remembers which files have been checked.

    Raises:
        DataError: names file and row.
    """
    table = open_table(path, cache=cache)
    return _rows(table, conversation_from_json, _ids(cache, _key([table], Makes.CONVERSATIONS, "native")))


def open_preferences(path: Path, *, cache: Path) -> Rows[Preference]:
    """The preferences of a native file; see `open_conversations`."""
    table = open_table(path, cache=cache)
    return _rows(table, preference_from_json, _ids(cache, _key([table], Makes.PREFERENCES, "native")))


@overload
def load(
    source: str, *, makes: Literal[Makes.CONVERSATIONS], cache: Path, format: str | None = None, digest: str | None = None
) -> Rows[Conversation]: ...
@overload
def load(
    source: str, *, makes: Literal[Makes.PREFERENCES], cache: Path, format: str | None = None, digest: str | None = None
) -> Rows[Preference]: ...
def load(source: str, *, makes: Makes, cache: Path, format: str | None = None, digest: str | None = None) -> Rows[Any]:
    """The rows of whatever a stage points at: a native file where it lies, anything else imported once into the cache.

    Args:
        source: a file, a pattern, a data set folder or `hf:NAME`; see `named_tables`.
        makes: what is needed.
        cache: folder for copies.
        format: name of the format; None = found out.
        digest: sha256 that the one file must have; None = any.

    Raises:
        DataError: nothing of that name, another file than the digest names, or rows that cannot be used, listed by defect; see `import_rows`.
    """
    tables = named_tables(source, cache=cache)
    if digest is not None:
        tables[0].expect(digest)
    read: Read[Any] = conversation_from_json if makes is Makes.CONVERSATIONS else preference_from_json
    key = _key(tables, makes, format or "")
    copy, as_it_is = cache / f"{key}.jsonl", cache / f"{key}.native.npz"
    if not copy.is_file():
        found_native = as_it_is.is_file()  # only a file whose rows become just what they say has one
        if len(tables) == 1 and tables[0].file == tables[0].path and (found_native or _is_native(find_format(tables[0], format, makes), read)):
            return _rows(tables[0], read, as_it_is)
        import_rows(tables, out=copy, makes=makes, format=format)
    return _rows(open_table(copy, cache=cache), read, _ids(cache, key))


def _is_native(found: Found, read: Read[Any]) -> bool:
    """Whether every row becomes just what it says, so that no copy is needed.

    Raises:
        DataError: it does, but for rows that cannot be used.
    """
    tally = Tally()
    for outcome in found.outcomes():
        tally.add(found.table.path, outcome)
        if not outcome.rejected and outcome.items != _native(outcome.row.value, read):
            return False
    tally.complain(str(found.table.path))
    return True


def _native(value: Json, read: Read[Any]) -> tuple[Item, ...]:
    try:
        return (read(value, ""),)
    except DataError:
        return ()


def _key(tables: Sequence[Table], makes: Makes, format: str) -> str:
    """Names what reading these files in this way gives."""
    parts = [f"{REVISION}.{FILES_REVISION}", makes, format, *(table.digest for table in tables)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _ids(cache: Path, key: str) -> Path:
    return cache / f"{key}.ids.npz"


def _rows(table: Table, read: Read[ItemT], ids: Path) -> Rows[ItemT]:
    """Checks every row, unless the file `ids` shows that they were checked before."""
    suffixes = load_suffixes(ids)
    if suffixes is None:
        names = Ids()
        for row in table:
            names.add(_item(table.path, row, read).id)
        suffixes = names.suffixes(lambda at: _item(table.path, table[at], read).id)
        suffixes.save(ids)
    return Rows(table, read, suffixes)


def _item(path: Path, row: FileRow, read: Read[ItemT]) -> ItemT:
    where = f"{path}:{row.number}"
    if row.flaw is not None:
        raise DataError(f"{row.flaw.defect}: {row.flaw.detail}", where)
    return read(row.value, where)


def window(rows: Sequence[Row], seed: int, start: int, count: int) -> list[Row]:
    """`count` rows from position `start` of the endless stream in which every epoch holds every row once, in its own order.

    Args:
        rows: all of them, at least one.
        seed: of the order.
        start: rows consumed so far.
        count: rows wanted; may cross the end of an epoch.
    """
    return [rows[i] for i in _stream(len(rows), count, start, seed).tolist()]


def _stream(size: int, count: int, start: int, seed: int, *path: str | int) -> np.ndarray:
    """[count] row numbers from position `start` of the endless shuffled stream over range(size)."""
    parts: list[np.ndarray] = [np.empty(0, dtype=np.int64)]
    end = start + count
    while start < end:
        epoch, offset = divmod(start, size)
        parts.append(order(size, seed, *path, "epoch", epoch)[offset : offset + end - start])
        start += len(parts[-1])
    return np.concatenate(parts)


class Epoch(Listed[Row]):
    """One epoch of a mixture: its rows in order, read when they are asked for; held are 8 bytes a row."""

    def __init__(self, sources: Sequence[Sequence[Row]], places: np.ndarray) -> None:
        self._sources, self._places = sources, places
        self._ends = list(accumulate(len(source) for source in sources))

    def __len__(self) -> int:
        return len(self._places)

    def at(self, place: int) -> Row:
        """See Listed."""
        row = int(self._places[place])
        source = bisect_right(self._ends, row)
        return self._sources[source][row - self._ends[source]]  # counted from the end of its source


@dataclass(frozen=True)
class Mixture(Generic[Row]):
    """Weighted sources as one endless stream that is a pure function of (seed, position).

    A source of n rows and weight w gives epoch e the positions floor(e w n) .. floor((e + 1) w n) of its own endless shuffled stream;
    so with 2.5 an epoch holds each of its rows twice and half of them a third time, and the next epoch the other half. Then the epoch is shuffled.

    Example: Mixture((chat, maths), (1.0, 0.5)).window(seed=17, start=0, count=64)

    Raises:
        DataError: no sources, a source without rows, or a weight that is not a positive number.
    """

    sources: Sequence[Sequence[Row]]
    weights: Sequence[float]
    """One for each source: how often an epoch holds each of its rows."""

    def __post_init__(self) -> None:
        if not self.sources or len(self.sources) != len(self.weights):
            raise DataError(f"a mixture needs a weight for each source, not {len(self.weights)} for {len(self.sources)}")
        for weight, source in zip(self.weights, self.sources, strict=True):
            if not (math.isfinite(weight) and weight > 0):
                raise DataError(f"a weight must be a positive number, not {weight}", "", "leave the source out to give it no weight")
            if not len(source):
                raise DataError("a source of the mixture holds no rows")

    def start(self, epoch: int) -> int:
        """The position at which an epoch begins."""
        return sum(self._before(source, epoch) for source in range(len(self.sources)))

    def epoch_at(self, position: int) -> int:
        """The epoch that holds a position; epochs differ by a few rows when weights do not divide."""
        epoch = int(position // sum(self._share(source) for source in range(len(self.sources))))  # an epoch never begins later than this
        while self.start(epoch + 1) <= position:
            epoch += 1
        return epoch

    def epoch(self, seed: int, epoch: int) -> Epoch[Row]:
        """The rows of one epoch, in order; empty where all weights are so small that no row falls into it."""
        parts, offset = [], 0
        for source, rows in enumerate(self.sources):
            begin = self._before(source, epoch)
            count = self._before(source, epoch + 1) - begin
            parts.append(offset + _stream(len(rows), count, begin, seed, "source", source))
            offset += len(rows)
        places = np.concatenate(parts)
        return Epoch(self.sources, places[order(len(places), seed, "mixture", epoch)])

    def window(self, seed: int, start: int, count: int) -> list[Row]:
        """`count` rows from position `start`; may cross the end of an epoch."""
        out: list[Row] = []
        while len(out) < count:
            at = start + len(out)
            epoch = self.epoch_at(at)
            offset = at - self.start(epoch)
            out += self.epoch(seed, epoch)[offset : offset + count - len(out)]
        return out

    def _share(self, source: int) -> Fraction:
        """Rows that a source gives an epoch, exactly: 0.3 is three tenths, as it was written."""
        return Fraction(str(self.weights[source])) * len(self.sources[source])

    def _before(self, source: int, epoch: int) -> int:
        """Rows that a source gives the epochs before this one."""
        return math.floor(epoch * self._share(source))
