"""The import pass: rows of any file -> items, with every flaw counted and every row that is left out written down."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Literal

from xwin.data._jsonl import Json, new_file
from xwin.data.conversation import Conversation, conversation_to_json, preference_to_json
from xwin.data.defects import VERDICTS, Defect, Flaw, Verdict
from xwin.data.files import Row, Table
from xwin.data.formats import Detected, Format, Item, Makes, detect, format_named
from xwin.errors import DataError

LOOKED_AT = 100
"""Rows of a file that tell its format."""
SHOWN = 3
"""Rows of each defect that an error shows."""

OnDefect = Literal["error", "drop"]

NATIVE = ("xwin", "xwin_preferences")
DROP = "mend these rows, or leave them out with `on_defect: drop`, which writes them to rejected.jsonl"
"""What to do in a stage that may drop rows."""
CLEAN_FIRST = "mend these rows, or put a `data` stage (`preference_data` for pairs) with `on_defect: drop` before it, which leaves them out"
"""What to do elsewhere."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one row became."""

    row: Row
    items: tuple[Item, ...]
    """Empty when the row is left out."""
    flaws: tuple[Flaw, ...]

    @property
    def rejected(self) -> tuple[Flaw, ...]:
        """The flaws for which the row is left out."""
        return tuple(flaw for flaw in self.flaws if VERDICTS[flaw.defect] is Verdict.REJECT)


@dataclass(frozen=True, slots=True)
class Found:
    """A table and its format."""

    table: Table
    detected: Detected

    def outcomes(self) -> Iterator[Outcome]:
        """What each row becomes, in order.

        Raises:
            DataError: the file changed while it was read.
        """
        shape = self.detected.format
        for row in self.table:
            if row.flaw is not None:
                yield Outcome(row, (), (row.flaw,))
            elif not _fits(shape, row.value):
                yield Outcome(row, (), (Flaw(Defect.OTHER_FORMAT, f"not {shape.name}: {_fields(row.value)}"),))
            else:
                done = shape.convert(row.value)
                yield Outcome(row, done.items, done.flaws)


def find_format(table: Table, named: str | None, makes: Makes | None) -> Found:
    """The format of a table, from its first rows unless it is named.

    Args:
        table: rows of one file.
        named: name of a format; None = found out.
        makes: what is needed; None = anything.

    Raises:
        DataError: no format fits, there is none of that name, or its rows become something else than is needed.
    """
    if named is not None:
        found = Detected(format_named(named), "named")
    else:
        rows = [row.value for row in islice(table, LOOKED_AT) if row.flaw is None]
        rows = rows or [row.value for row in islice((row for row in table if row.flaw is None), LOOKED_AT)]
        if not rows:
            raise DataError(f"none of its {len(table)} rows can be read: {_first(table)}", str(table.path))
        found = detect(rows, str(table.path))
    if makes is not None and found.format.makes is not makes:
        what = f"holds {found.format.makes} ({found.format.name}: {found.reason}), and {makes} are needed"
        raise DataError(what, str(table.path), "name another file, or another format")
    return Found(table, found)


@dataclass
class Tally:
    """Counts of a pass over rows."""

    rows: int = 0
    items: int = 0
    dropped: int = 0
    defects: Counter[Defect] = field(default_factory=Counter)
    """Rows that have the defect, whatever its verdict."""
    examples: dict[Defect, list[str]] = field(default_factory=dict)
    """The first rows of each defect: "file:row detail"."""

    def add(self, path: Path, outcome: Outcome) -> None:
        """Counts one row of a file."""
        self.rows += 1
        self.items += len(outcome.items)
        self.dropped += bool(outcome.rejected)
        for flaw in {flaw.defect: flaw for flaw in reversed(outcome.flaws)}.values():
            self.defects[flaw.defect] += 1
            first = self.examples.setdefault(flaw.defect, [])
            if len(first) < SHOWN:
                first.append(f"{path}:{outcome.row.number}" + f" {flaw.detail}" * bool(flaw.detail))

    def complain(self, where: str, fix: str = CLEAN_FIRST) -> None:
        """Passes if every row can be used.

        Args:
            where: what was read.
            fix: what to do when it cannot.

        Raises:
            DataError: counts per defect, the first rows of each, and what to do.
        """
        if self.dropped:
            raise DataError(f"{self.dropped} of {self.rows} rows cannot be used\n{self.refused()}", where, fix)

    def refused(self) -> str:
        """A line for each defect that makes rows unusable, with lines for the first of them."""
        lines: list[str] = []
        for defect, count in self.defects.most_common():
            if VERDICTS[defect] is Verdict.REJECT:
                lines += [f"  {count} x {defect}", *(f"      {example}" for example in self.examples[defect])]
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Source:
    """One file of an import."""

    path: Path
    digest: str
    format: str
    reason: str
    """Why it is taken for this format."""


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import did."""

    sources: tuple[Source, ...]
    rows: int
    """Read."""
    items: int
    """Written."""
    dropped: int
    """Rows left out."""
    defects: Mapping[Defect, int]
    """Rows that have the defect, whatever its verdict."""
    examples: Mapping[Defect, Sequence[str]]
    """The first rows of each defect: "file:row detail"."""


def import_rows(  # noqa: PLR0913 - each is a choice of the recipe
    tables: Iterable[Table], *, out: Path, makes: Makes | None, format: str | None = None, on_defect: OnDefect = "error", rejected: Path | None = None
) -> Imported:
    """Writes what the rows of some tables become as native JSONL, whole or not at all.

    Args:
        tables: read one after another; each may have a format of its own.
        out: the file to write.
        makes: what is needed; None = whatever the first table holds.
        format: name of the format of all tables; None = found out for each.
        on_defect: "error" reads to the end and raises; "drop" leaves out the rows that cannot be used.
        rejected: where those rows go, one JSON object a line: file, row, defect, reason, value. Empty if there are none.

    Raises:
        DataError: a format cannot be told, rows cannot be used, no row can, or a file changed while it was read.
        StorageError: `out` or `rejected` cannot be written.
    """
    tally, found = Tally(), []
    for table in tables:
        found.append(find_format(table, format, makes))
        makes = found[-1].detected.format.makes
    where = ", ".join(str(each.table.path) for each in found)
    with ExitStack() as files:
        items = files.enter_context(new_file(out))
        dropped = files.enter_context(new_file(rejected)) if rejected and on_defect == "drop" else None
        for each in found:
            for outcome in each.outcomes():
                tally.add(each.table.path, outcome)
                items.writelines(map(item_line, outcome.items))
                if outcome.rejected and dropped:
                    dropped.write(_rejected_line(each.table.path, outcome))
        if on_defect == "error":
            tally.complain(where)
        if not tally.items:
            raise DataError(f"none of {tally.rows} rows can be used\n{tally.refused()}", where)
    sources = tuple(Source(each.table.path, each.table.digest, each.detected.format.name, each.detected.reason) for each in found)
    return Imported(sources, tally.rows, tally.items, tally.dropped, dict(tally.defects), tally.examples)


def item_line(item: Item) -> bytes:
    """The item as a line of native JSONL."""
    row = conversation_to_json(item) if isinstance(item, Conversation) else preference_to_json(item)
    return json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def _rejected_line(path: Path, outcome: Outcome) -> bytes:
    flaws = outcome.rejected
    reason = "; ".join(f"{flaw.defect}: {flaw.detail}" if flaw.detail else str(flaw.defect) for flaw in flaws)
    value = outcome.row.raw if outcome.row.flaw else outcome.row.value
    row = {"file": str(path), "row": outcome.row.number, "defect": flaws[0].defect, "reason": reason, "value": value}
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"


def _fits(shape: Format, value: Json) -> bool:
    """Whether a row looks like the format; of a native file a row may lack its id."""
    return shape.fits({**value, "id": ""} if shape.name in NATIVE and isinstance(value, dict) else value) is not None


def _fields(value: Json) -> str:
    return f"its fields are {', '.join(map(str, value))}"[:200] if isinstance(value, dict) else f"a {type(value).__name__}"


def _first(table: Table) -> str:
    row = table[0]
    return f"row {row.number} is {row.flaw.defect}: {row.flaw.detail}" if row.flaw else ""
