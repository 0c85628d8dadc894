"""Lines of JSON: where they begin in a file of any size, and what one of them holds. Strict: nothing is mended on the way."""

from __future__ import annotations

import codecs
import hashlib
import json
import math
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from xwin.data.defects import Defect, Flaw
from xwin.run.storage import storage_errors, sync

Json = Any

BLOCK = 4 << 20
"""Bytes read at once."""
ROW_LIMIT = 64 << 20
"""Bytes of the largest row that is read: parsed, it takes a few times as much memory."""
DEPTH_LIMIT = 200
"""Levels of nesting of a row, so that whoever walks it may use recursion."""
DIGITS_LIMIT = 300
"""Digits of a whole number, so that it can become a float."""
EXCERPT = 2000
"""Bytes kept of a row that cannot be read."""
MARK = b"!"
"""First byte of a line that stands for a row with a flaw, in files that reading has made. No JSON begins with it."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a file, or why it cannot be read.  Example: Row(3, {"instruction": "Add 2 and 2", "output": "4"})"""

    number: int
    """Line of a JSONL, element of an array, row of a table; from 1."""
    value: Json = None
    flaw: Flaw | None = None
    """Of reading; then there is no value."""
    raw: str = ""
    """The beginning of a row with a flaw, as far as it is text."""


def read_row(number: int, line: bytes) -> Row:
    """The value of one line, or its flaw: not JSON, not UTF-8, nested too deeply, a number that no float can hold, a key that comes twice."""
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        return flawed(number, Flaw(Defect.ENCODING, f"{error.reason} at byte {error.start + 1} of the row"), line)
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        return flawed(number, Flaw(Defect.NOT_JSON, f"{mistake(error)} at character {error.pos + 1}"), line)
    except RecursionError:
        return flawed(number, Flaw(Defect.NOT_JSON, f"nested deeper than {DEPTH_LIMIT} levels"), line)
    except ValueError as error:
        return flawed(number, Flaw(Defect.NOT_JSON, str(error)), line)
    flaw = _flaw(text, value)
    return flawed(number, flaw, line) if flaw else Row(number, value)


def mistake(error: json.JSONDecodeError) -> str:
    """What the parser says, without a place."""
    return error.msg.removesuffix(" at")


def flawed(number: int, flaw: Flaw, line: bytes) -> Row:
    """A row that cannot be read."""
    return Row(number, None, flaw, line[:EXCERPT].decode(errors="replace"))


def marked(defect: Defect, detail: str, raw: bytes = b"") -> bytes:
    """A line that stands for a row with a flaw; `read_marked` gives the row back."""
    text = {"defect": defect.value, "detail": detail, "raw": raw[:EXCERPT].decode(errors="replace")}
    return MARK + json.dumps(text).encode()


def read_marked(number: int, line: bytes) -> Row:
    """Like `read_row`, for files that reading has made: a marked line gives the flaw it stands for."""
    if not line.startswith(MARK):
        return read_row(number, line)
    try:
        mark = json.loads(line[1:])
        return Row(number, None, Flaw(Defect(mark["defect"]), str(mark["detail"])), str(mark["raw"]))
    except (ValueError, KeyError, TypeError, RecursionError):  # a line of the person that happens to begin like a mark
        return read_row(number, line)


def _flaw(text: str, value: Json) -> Flaw | None:
    """What is wrong with a value that could be parsed."""
    if text.count("[") + text.count("{") > DEPTH_LIMIT and _depth(value) > DEPTH_LIMIT:
        return Flaw(Defect.NOT_JSON, f"nested deeper than {DEPTH_LIMIT} levels")
    if "\\ud" in text or "\\uD" in text:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            return Flaw(Defect.ENCODING, f"half of a surrogate pair: \\u{ord(error.object[error.start]):04x}")
    return None


def _depth(value: Json) -> int:
    deepest, todo = 0, [(value, 1)]
    while todo:
        part, level = todo.pop()
        if isinstance(part, dict | list):
            deepest = max(deepest, level)
            todo += [(child, level + 1) for child in (part.values() if isinstance(part, dict) else part)]
    return deepest


def _object(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} comes twice")
    return found


def _integer(digits: str) -> int:
    if len(digits) > DIGITS_LIMIT:
        raise ValueError(f"a whole number of {len(digits)} digits")
    return int(digits)


def _float(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError(f"the number {digits[:40]} is too large")
    return value


def _constant(name: str) -> Json:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer, parse_float=_float, parse_constant=_constant)


@dataclass(frozen=True, slots=True)
class Lines:
    """Where the lines of a file begin that are not blank: 8 bytes a line."""

    starts: np.ndarray
    """[rows] int64, bytes from the start of the file."""
    size: int
    """Bytes of the file."""
    digest: str
    """sha256 of the file, 64 hex digits."""
    open_end: bool
    """The last line has no newline, as when a file was cut."""
    gaps: np.ndarray
    """[g] int64, ascending: rows before which blank lines were left out."""
    blanks: np.ndarray
    """[g] int64: how many, up to there."""

    def __len__(self) -> int:
        return len(self.starts)

    def number(self, row: int) -> int:
        """Line number, from 1, of row `row`, from 0."""
        if not len(self.gaps):
            return row + 1
        gap = int(np.searchsorted(self.gaps, row, side="right"))
        return row + 1 + (int(self.blanks[gap - 1]) if gap else 0)

    def read(self, file: int, row: int) -> tuple[bytes, bool]:
        """The bytes of row `row` without its newline, and whether that is all of it: of more than ROW_LIMIT only the beginning is read."""
        begin = int(self.starts[row])
        length = (int(self.starts[row + 1]) if row + 1 < len(self.starts) else self.size) - begin
        wanted = min(length, ROW_LIMIT + 1)
        raw = os.pread(file, wanted, begin)
        if len(raw) < wanted:
            return raw, False
        line, newline, _ = raw.partition(b"\n") if length > ROW_LIMIT else (raw, b"\n", b"")
        return line.strip(), bool(newline)


def index_lines(file: int) -> Lines:
    """One pass over an open file: where its lines begin, and its digest. Holds one block and the offsets."""
    digest, scan, at = hashlib.sha256(), _Scan(), 0
    while block := os.pread(file, BLOCK, at):
        digest.update(block)
        scan.feed(block)
        at += len(block)
    return scan.lines(digest.hexdigest())


_SPACE = np.zeros(256, dtype=bool)
_SPACE[list(b" \t\n\r\x0b\x0c")] = True


class _Scan:
    """Finds lines block by block. A line is open until its newline is found; blank so far, or not."""

    def __init__(self) -> None:
        self.at = 0
        self.begin = 0
        self.blank = True
        self.rows = 0
        self.starts: list[np.ndarray] = []
        self.gaps: list[np.ndarray] = []
        self.blanks: list[np.ndarray] = []

    def feed(self, block: bytes) -> None:
        skip = len(codecs.BOM_UTF8) if self.at == 0 and block.startswith(codecs.BOM_UTF8) else 0
        self.begin += skip
        data = np.frombuffer(block, dtype=np.uint8)
        ends = np.flatnonzero(data == 10)
        begins = np.concatenate([np.array([skip]), ends + 1])
        last = int(begins[-1])
        if len(ends):
            blank = self._blank(block, data, begins[:-1], ends)
            blank[0] = self.blank and _is_blank(block, skip, int(ends[0]))
            starts = begins[:-1] + self.at
            starts[0] = self.begin
            self._close(starts, blank)
            self.begin, self.blank = self.at + last, True
        self.blank = self.blank and _is_blank(block, last, len(block))
        self.at += len(block)

    def _blank(self, block: bytes, data: np.ndarray, begins: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """Which lines are blank. The first byte tells of most; only lines that begin with a space are looked at one by one."""
        first, length = data[begins], ends - begins
        blank = (length == 0) | ((length == 1) & (first == 13))
        for line in np.flatnonzero(_SPACE[first] & ~blank):
            blank[line] = _is_blank(block, int(begins[line]), int(ends[line]))
        return blank

    def _close(self, starts: np.ndarray, blank: np.ndarray) -> None:
        if blank.any():
            before = self.rows + np.cumsum(~blank)[blank]
            rows, counts = np.unique(before, return_counts=True)
            self.gaps.append(rows)
            self.blanks.append(counts)
            starts = starts[~blank]
        self.starts.append(starts)
        self.rows += len(starts)

    def lines(self, digest: str) -> Lines:
        if not self.blank:
            self.starts.append(np.array([self.begin]))
        none = [np.empty(0, dtype=np.int64)]
        gaps, counts = np.concatenate(none + self.gaps), np.concatenate(none + self.blanks)
        return Lines(np.concatenate(none + self.starts), self.at, digest, not self.blank, gaps, np.cumsum(counts))


def _is_blank(block: bytes, begin: int, end: int) -> bool:
    part = block[begin : min(end, begin + 64)]
    return not part or (part.isspace() and (len(part) == end - begin or block[begin:end].isspace()))


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """A file that appears under its name when it is whole, or not at all. Its folder is made.

    Raises:
        StorageError: the disk is full, read-only, or permission is missing.
    """
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")  # process ids repeat among containers that share a folder
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with draft.open("xb") as out:
                yield out
                out.flush()
                os.fsync(out.fileno())
            draft.replace(path)
            sync(path.parent)
        finally:
            draft.unlink(missing_ok=True)
