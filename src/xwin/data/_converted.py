"""One row of somebody's file, read: the items it gives and the flaws it has."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from xwin.data.conversation import Conversation, Json, Preference
from xwin.data.defects import VERDICTS, Defect, Flaw, Verdict

Item = Conversation | Preference
Fields = Mapping[str, Json]
HALF = re.compile(r"[\ud800-\udfff]")
DEEPEST = 400


class Makes(StrEnum):
    """What the rows of a format become. Prompts are conversations without a final answer, the reference answer in meta["answer"]."""

    CONVERSATIONS = "conversations"
    PREFERENCES = "preferences"


@dataclass(frozen=True)
class Converted:
    """What a row gives."""

    items: tuple[Item, ...]
    """Empty when a flaw with the verdict REJECT was found."""
    flaws: tuple[Flaw, ...]
    """Each defect once, with the first place where it was met."""


@dataclass
class Findings:
    """Collects the flaws of one row while it is read."""

    first: dict[Defect, str] = field(default_factory=dict)

    def add(self, defect: Defect, detail: str = "") -> None:
        """Keep the defect with its first place."""
        self.first.setdefault(defect, detail)

    @property
    def rejected(self) -> bool:
        """Whether a flaw found so far makes the row unusable."""
        return any(VERDICTS[defect] is Verdict.REJECT for defect in self.first)

    def flaws(self) -> tuple[Flaw, ...]:
        """All of them, in the order in which they were met."""
        return tuple(Flaw(defect, detail) for defect, detail in self.first.items())


Reader = Callable[[Fields, Findings], Iterable[Item]]


@dataclass(frozen=True)
class Format:
    """One published shape of rows."""

    name: str
    """As a recipe names it."""
    makes: Makes
    about: str
    """The fields it reads, and what is chosen where the shape leaves a choice."""
    looks: Callable[[Fields], str | None]
    reads: Reader

    def fits(self, row: Json) -> str | None:
        """The reason why a row looks like this format ("has instruction and output"), or None."""
        return self.looks(row) if isinstance(row, dict) else None

    def convert(self, row: Json) -> Converted:
        """The items and flaws of one row: any JSON value, whether it looks like this format or not. Raises nothing."""
        found = Findings()
        items: tuple[Item, ...] = ()
        if not isinstance(row, dict):
            found.add(Defect.WRONG_COLUMNS, f"a row must be an object, not {kind(row)}")
        elif flaw := unholdable(row):
            found.add(flaw.defect, flaw.detail)
        else:
            items = tuple(self.reads(row, found))
        return Converted(() if found.rejected else items, found.flaws())


def kind(value: Json) -> str:
    """The JSON type of a value, in words."""
    names = {bool: "a boolean", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object", type(None): "null"}
    return names.get(type(value), type(value).__name__)


def unholdable(value: Json) -> Flaw | None:
    """Why no file can hold this value: half a surrogate pair, which UTF-8 cannot, or nesting that readers and writers of JSON give up on."""
    waiting = [(value, 0)]
    while waiting:
        value, depth = waiting.pop()
        if depth > DEEPEST:
            return Flaw(Defect.WRONG_COLUMNS, f"nested deeper than {DEEPEST} levels")
        if isinstance(value, dict):
            waiting += [(inner, depth + 1) for pair in value.items() for inner in pair]
        elif isinstance(value, list | tuple):
            waiting += [(inner, depth + 1) for inner in value]
        elif isinstance(value, str) and HALF.search(value):
            return Flaw(Defect.ENCODING, f"half a surrogate pair in {value.encode('ascii', 'backslashreplace').decode()[:80]!r}")
    return None


def shown(value: Json, limit: int = 60) -> str:
    """A value of a row as a detail shows it: one line, a text in quotes, of lists and objects the kind only, nothing that a terminal would obey."""
    if isinstance(value, list | dict):
        return kind(value)
    text = repr(value[: limit + 1] if isinstance(value, str) else value)
    return text if len(text) <= limit + 2 else f"{text[:limit]}..."


def row_id(row: Fields, key: str = "id") -> str:
    """The name that the source gives the row; empty when it gives none, and the digest of the content is to stand there."""
    value = row.get(key)
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""


def rest(row: Fields, *used: str) -> dict[str, Json]:
    """What else the row says, for `meta`: every field but `id` and those used; the members of a field `meta` come up one level."""
    meta = row.get("meta")
    fields = {
        key: value for key, value in row.items() if key not in {"id", *used} and value is not None and not (key == "meta" and isinstance(meta, dict))
    }
    return {**fields, **meta} if isinstance(meta, dict) else fields
