"""The first pass of a data stage: rows of people's files become native items, each with the place it came from."""

from __future__ import annotations

import glob
import json
import shutil
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from xwin.data.conversation import Conversation, conversation_to_json, preference_to_json
from xwin.data.defects import VERDICTS, Defect, Flaw
from xwin.data.files import Table
from xwin.data.formats import Item, Makes
from xwin.data.sources import Found, Outcome, Rows, Tally, find_format, open_conversations, open_preferences
from xwin.errors import DataError
from xwin.run.cards import DefectCount, Origin

if TYPE_CHECKING:
    from xwin.data.template import Template


@dataclass(frozen=True, slots=True)
class Batch:
    """Tables of one source.  Example: Batch("./chats/*.json", tables, None, "recipes/chats/*.json")"""

    name: str
    """As the recipe writes it."""
    tables: Sequence[Table]
    format: str | None
    """None = found out."""
    opened: str
    """What the tables were opened by: `name` from where the process stands."""

    def shown(self, table: Table) -> str:
        """The name of a table: what the recipe writes, of a pattern what the pattern stands for.  Example: "data/a/x.jsonl" of ./data/**/x.jsonl"""
        if len(self.tables) == 1:
            return self.name
        return str(_fixed(self.name) / table.path.relative_to(_fixed(self.opened)))


@dataclass(frozen=True, slots=True)
class Budget:
    """What a row has to fit."""

    template: Template
    tokens: int

    def measure(self, item: Item) -> tuple[int, bool]:
        """Tokens of a row (of a preference both answers with their prompt), and whether all of it that is to be trained holds something."""
        from xwin.data.template import as_trained

        parts = as_trained(self.template, item)
        return sum(len(part.tokens) for part in parts.values()), all(any(part.mask) for name, part in parts.items() if name != "prompt")

    def flaw(self, item: Item) -> tuple[int, Flaw | None]:
        """Tokens of a row (0 where the template cannot write it), and why it does not fit."""
        try:
            tokens, trained = self.measure(item)
        except DataError as error:
            return 0, Flaw(Defect.NO_PLACE, f"{error.what}; {error.fix}" if error.fix else error.what)
        if not trained:
            return tokens, Flaw(Defect.NOTHING_TRAINED, "no answer of it has a weight")
        return tokens, Flaw(Defect.TOO_LONG, f"{tokens} tokens, {self.tokens} fit") if tokens > self.tokens else None


@dataclass
class Rejects:
    """Writes rejected.jsonl: {"file", "row", "defect", "reason", "value"} of every row that is left out."""

    out: TextIO
    counts: Counter[str] = field(default_factory=Counter)
    """Reason -> rows."""

    def row(self, name: str, number: int, reason: str, detail: str, value: Any) -> None:
        """One row; `value` is the row as it was, or the item that was made of it."""
        line = {"file": name, "row": number, "defect": reason, "reason": detail, "value": value}
        self.counts[str(reason)] += 1
        self.out.write(json.dumps(line, ensure_ascii=False, default=str) + "\n")


@dataclass
class Pile:
    """Everything that could be read, on disk in the order of the files."""

    folder: Path
    """Holds the native JSONL, and what is remembered of it."""
    makes: Makes
    names: list[str] = field(default_factory=list)
    """Files, as they are shown."""
    origins: list[Origin] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)
    files: array[int] = field(default_factory=lambda: array("i"))
    """Item -> number of its file."""
    batches: array[int] = field(default_factory=lambda: array("i"))
    """Item -> number of its source."""
    numbers: array[int] = field(default_factory=lambda: array("q"))
    """Item -> row in its file."""
    tokens: array[int] = field(default_factory=lambda: array("i"))
    """Item -> tokens; empty without a budget."""

    @property
    def path(self) -> Path:
        """The native JSONL."""
        return self.folder / "items.jsonl"

    def rows(self) -> Rows[Any]:
        """The items, read when they are asked for."""
        opened = open_conversations if self.makes is Makes.CONVERSATIONS else open_preferences
        return opened(self.path, cache=self.folder)

    def where(self, item: int) -> str:
        """Example: "./chats.json:17" """
        return f"{self.names[self.files[item]]}:{self.numbers[item]}"

    def defects(self) -> tuple[DefectCount, ...]:
        """Every named defect, the most frequent first."""
        return tuple(DefectCount(d.value, VERDICTS[d].value, n, self.tally.examples[d][0]) for d, n in self.tally.defects.most_common())


def read(batches: Sequence[Batch], makes: Makes, to: Path, rejects: Rejects, budget: Budget | None) -> Pile:
    """Reads every row once; what cannot be used goes to `rejects`, is counted, and raises nothing.

    Args:
        batches: one per source.
        makes: what is wanted.
        to: folder for what is read; made anew.
        rejects: takes the rows left out.
        budget: what rows have to fit; None = anything goes.

    Raises:
        DataError: a format cannot be told, or is not of what is wanted; a file changed while it was read.
    """
    pile = Pile(to, makes)
    shutil.rmtree(to, ignore_errors=True)
    to.mkdir(parents=True)
    with pile.path.open("w", encoding="utf-8") as out:
        for number, batch in enumerate(batches):
            for table in batch.tables:
                found = find_format(table, batch.format, makes)
                _read_table(pile, found, _Place(number, batch.shown(table)), out, rejects, budget)
    return pile


def _fixed(pattern: str) -> Path:
    """The folder that a pattern starts from."""
    return Path(*takewhile(lambda part: not glob.has_magic(part), Path(pattern).parent.parts))


@dataclass(frozen=True, slots=True)
class _Place:
    batch: int
    name: str


def _read_table(pile: Pile, found: Found, place: _Place, out: TextIO, rejects: Rejects, budget: Budget | None) -> None:
    before = pile.tally.rows, pile.tally.items
    pile.names.append(place.name)
    for outcome in found.outcomes():
        if outcome.rejected:
            reason = "; ".join(f"{flaw.defect}: {flaw.detail}" if flaw.detail else str(flaw.defect) for flaw in outcome.rejected)
            value = outcome.row.raw if outcome.row.flaw else outcome.row.value
            rejects.row(place.name, outcome.row.number, outcome.rejected[0].defect, reason, value)
        kept = outcome if budget is None else _fitting(pile, outcome, place.name, rejects, budget)
        pile.tally.add(Path(place.name), kept)
        for item in kept.items:
            out.write(json.dumps(native(item), ensure_ascii=False) + "\n")
            pile.files.append(len(pile.names) - 1)
            pile.batches.append(place.batch)
            pile.numbers.append(outcome.row.number)
    rows, items = pile.tally.rows - before[0], pile.tally.items - before[1]
    detected = found.detected
    pile.origins.append(Origin(place.name, detected.format.name, detected.reason, rows, items, found.table.digest))


def _fitting(pile: Pile, outcome: Outcome, name: str, rejects: Rejects, budget: Budget) -> Outcome:
    """The outcome with the items that fit; the others become flaws."""
    items: list[Item] = []
    flaws: list[Flaw] = []
    for item in outcome.items:
        tokens, flaw = budget.flaw(item)
        if flaw is None:
            items.append(item)
            pile.tokens.append(tokens)
        else:
            flaws.append(flaw)
            rejects.row(name, outcome.row.number, flaw.defect, flaw.detail, native(item))
    return replace(outcome, items=tuple(items), flaws=(*outcome.flaws, *flaws))


def native(item: Item) -> dict[str, Any]:
    """The item as the native format writes it."""
    return conversation_to_json(item) if isinstance(item, Conversation) else preference_to_json(item)
