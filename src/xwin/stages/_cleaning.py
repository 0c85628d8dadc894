"""What is dropped of the items that could be read, and why: lengths, duplicates, overlap with given texts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from xwin.data._converted import Findings, unholdable
from xwin.data.files import Table
from xwin.data.formats import Format, Item, detect
from xwin.data.hygiene import Duplicate, TextIndex, exact_duplicates, near_duplicates, overlaps, questions_of, text_index
from xwin.data.listed import Listed
from xwin.errors import DataError
from xwin.run.cards import OverlapCount
from xwin.stages._data_card import characters

ASKED = ("question", "problem", "query", "turns", "prompt", "instruction", "text")
"""Fields of a benchmark's rows that hold what is asked, the likeliest first."""
SURE = 4
"""So many of them are taken even where the rows look like a format: a benchmark's answers may be in no form that the format knows."""
SHOWN = 5
"""Overlaps that the card shows of each text set."""


@dataclass(frozen=True, slots=True)
class Drop:
    """Why an item is dropped.  Example: Drop("near duplicate", "0.93 of it is in ./chats.json:3")"""

    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Rules:
    """What stays. Characters are those of all messages of an item."""

    shortest: int = 0
    longest: int | None = None
    duplicates: Literal["keep", "exact", "near"] = "exact"
    similarity: float = 0.8
    against: tuple[TextIndex, ...] = ()
    remove_overlap: bool = False


@dataclass(frozen=True, slots=True)
class Chosen(Listed[Item]):
    """Some of the items, in order."""

    items: Sequence[Any]
    places: Sequence[int]

    def __len__(self) -> int:
        return len(self.places)

    def at(self, place: int) -> Item:
        """See Listed."""
        return self.items[self.places[place]]


class Cleaner:
    """Goes through the items rule by rule; what one rule drops, the next does not see."""

    def __init__(self, items: Sequence[Any], where: Callable[[int], str]) -> None:
        self.items = items
        self._where = where
        self.dropped: dict[int, Drop] = {}
        """Item -> why it is left out."""
        self.overlap: list[OverlapCount] = []

    @property
    def kept(self) -> list[int]:
        """The items that are left, in order."""
        return [i for i in range(len(self.items)) if i not in self.dropped]

    def clean(self, rules: Rules) -> None:
        """All rules in turn.

        Raises:
            MissingExtra: near duplicates need datasketch.
        """
        self._lengths(rules)
        if rules.duplicates != "keep":
            self._duplicates("exact duplicate", exact_duplicates(self._left()))
        if rules.duplicates == "near":
            self._duplicates("near duplicate", near_duplicates(self._left(), rules.similarity))
        for index in rules.against:
            self._overlap(index, remove=rules.remove_overlap)

    def _left(self) -> Chosen:
        self._places = self.kept
        return Chosen(self.items, self._places)

    def _lengths(self, rules: Rules) -> None:
        if not rules.shortest and rules.longest is None:
            return
        for place, item in enumerate(self.items):
            size = characters(item)
            if size < rules.shortest:
                self.dropped[place] = Drop(f"shorter than {rules.shortest} characters", f"{size} characters")
            elif rules.longest is not None and size > rules.longest:
                self.dropped[place] = Drop(f"longer than {rules.longest} characters", f"{size} characters")

    def _duplicates(self, reason: str, found: Sequence[Duplicate]) -> None:
        for one in found:
            share = "the same" if one.similarity == 1 else f"{one.similarity:.2f} the same"
            self.dropped[self._places[one.row]] = Drop(reason, f"{share} as {self._where(self._places[one.of])}")

    def _overlap(self, index: TextIndex, *, remove: bool) -> None:
        hits = overlaps(self._left(), index)
        first = {self._places[hit.row]: hit for hit in reversed(hits)}
        for place, hit in first.items() if remove else ():
            self.dropped[place] = Drop(f"overlap with {index.name}", f"text {hit.text + 1}: {hit.words}")
        examples = tuple((self._where(place), first[place].words) for place in sorted(first)[:SHOWN])
        self.overlap.append(OverlapCount(index.name, index.texts, len({hit.text for hit in hits}), len(first), remove, examples))


def given_texts(name: str, tables: Sequence[Table]) -> TextIndex:
    """The questions of a file: what the person says in it, whatever its format; or the field of a benchmark's rows that holds what is asked.

    Args:
        name: of the text set.
        tables: its files.

    Raises:
        DataError: a row cannot be read, or holds no question: nothing would be compared with it.
    """
    return text_index(name, (text for table in tables for text in _questions(table)))


def _questions(table: Table) -> list[str]:
    found = {row.number: row.value for row in table if row.flaw is None}
    asks = _asker(list(found.values()), str(table.path))
    texts = {number: [text for text in asks(value) if text.strip()] for number, value in found.items()}
    if not any(texts.values()):
        raise DataError("holds no questions to compare with", str(table.path), f"its rows need one of the fields {', '.join(ASKED)}")
    silent = next((row.number for row in table if not texts.get(row.number)), None)
    if silent is not None:
        count = len(table) - sum(map(bool, texts.values()))
        what = f"{count} of {len(table)} rows hold no question to compare with"
        raise DataError(what, f"{table.path}:{silent}", "mend these rows, or leave them out: nothing is found that repeats them")
    return [text for row in texts.values() for text in row]


def _asker(rows: Sequence[Any], where: str) -> Callable[[Any], Iterable[str]]:
    """How the questions of a row are found."""
    asked = _field(rows[:1], ASKED[:SURE])
    if not asked and not isinstance(rows[0] if rows else None, str):
        try:
            shape = detect(rows[:100], where).format
        except DataError:
            asked = _field(rows[:1], ASKED)
        else:
            return lambda row: _said(shape, row)
    return lambda row: _texts(row.get(asked) if isinstance(row, dict) else row)


def _said(shape: Format, row: Any) -> Iterator[str]:
    """What the person says in a row, whether the row can be trained on or not."""
    items = shape.reads(row, Findings()) if isinstance(row, dict) and unholdable(row) is None else ()
    return (text for item in items for text in questions_of(item))


def _field(rows: Sequence[Any], names: Sequence[str]) -> str:
    """The first of the names under which a row has texts; empty when there is none."""
    return next((name for row in rows for name in names if isinstance(row, dict) and _texts(row.get(name))), "")


def _texts(value: Any) -> list[str]:
    """A text, or the texts of a list of nothing else."""
    if isinstance(value, str):
        return [value]
    return value if isinstance(value, list) and value and all(isinstance(part, str) for part in value) else []
