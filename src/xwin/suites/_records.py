"""Rows of JSON from the files people have: a list in .json, an object a line in .jsonl, either of them gzip'd."""

from __future__ import annotations

import gzip
import json
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xwin.errors import DataError


@dataclass(frozen=True, slots=True)
class Record:
    """One row and where it stands.  Example: Record({"idx": 3}, "labels.jsonl:4")"""

    fields: dict[str, Any]
    where: str
    """`file:row`; rows are counted from 1."""

    def text(self, name: str) -> str | None:
        """The text in a field; None where the field is absent or null.

        Raises:
            DataError: it holds something else.
        """
        value = self.fields.get(name)
        if value is not None and not isinstance(value, str):
            raise DataError(f"{name} must be text, not {value!r}", self.where)
        return value

    def number(self, name: str) -> float | None:
        """The finite number in a field; None where the field is absent or null.

        Raises:
            DataError: it holds something else, NaN and infinity included.
        """
        value = self.fields.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
            raise DataError(f"{name} must be a number, not {value!r}", self.where, "write null where there is none")
        return value

    def whole(self, name: str) -> int | None:
        """The whole number, 0 or more, in a field; None where the field is absent or null.

        Raises:
            DataError: it holds something else.
        """
        value = self.number(name)
        if value is not None and (value != int(value) or value < 0):
            raise DataError(f"{name} must be a whole number, 0 or more, not {value!r}", self.where)
        return None if value is None else int(value)


def records(path: Path) -> Iterator[Record]:
    """Every row of a file.

    Args:
        path: ends in .json (one list of objects) or .jsonl (an object a line, blank lines are skipped), perhaps followed by .gz.

    Raises:
        DataError: the file is missing, damaged, not UTF-8, not JSON, empty, or a row is not an object; names file and row.
    """
    text = read_text(path)
    one_list = path.name.removesuffix(".gz").endswith(".json")
    rows = _listed(text, path) if one_list else _lined(text, path)
    empty = True
    for number, row in rows:
        if not isinstance(row, dict):
            raise DataError(f"a row must be an object, not {type(row).__name__}", f"{path}:{number}")
        empty = False
        yield Record(row, f"{path}:{number}")
    if empty:
        raise DataError("holds no rows", str(path))


def read_text(path: Path) -> str:
    """The text of a file, unpacked where its name ends in .gz.

    Raises:
        DataError: it is missing, damaged, may not be read, or is not UTF-8.
    """
    try:
        content = path.read_bytes()
        return (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8")
    except FileNotFoundError:
        raise DataError("no such file", str(path)) from None
    except (IsADirectoryError, PermissionError) as error:
        raise DataError(f"cannot be read: {error.strerror}", str(path)) from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"damaged gzip file: {error}", str(path), "fetch it again") from None
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 text ({error.reason} at byte {error.start})", str(path)) from None


def _listed(text: str, path: Path) -> Iterator[tuple[int, Any]]:
    rows = _parsed(text, str(path), "one object a line is .jsonl")
    if not isinstance(rows, list):
        raise DataError(f"must hold a list of objects, not {type(rows).__name__}", str(path), "one object a line is .jsonl")
    yield from enumerate(rows, 1)


def _lined(text: str, path: Path) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(text.split("\n"), 1):  # splitlines would break at U+2028 inside a text
        if line.strip():
            yield number, _parsed(line, f"{path}:{number}", "each line must hold one JSON object")


def _parsed(text: str, where: str, fix: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # also of a number of thousands of digits, and of thousands of brackets
        raise DataError(f"not JSON: {error}", where, fix) from None
