"""Rows of tables: CSV by the csv module, Parquet by pyarrow, each row as one line of JSON."""

from __future__ import annotations

import csv
import datetime
import decimal
import json
import math
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from xwin.data._jsonl import ROW_LIMIT, Json, marked
from xwin.data._unpack import TOO_LARGE, Blocks, sized_lines
from xwin.data.defects import Defect
from xwin.errors import DataError, MissingExtra

BATCH = 64
"""Rows of a Parquet file that are made at once."""


def csv_rows(blocks: Blocks, where: str, separator: str) -> Iterator[bytes]:
    """A line of JSON for each row below the header, all values text.

    Args:
        blocks: of the file.
        where: the file, for errors.
        separator: of the fields, unless another one is more frequent in the header.

    Raises:
        DataError: the header names a column twice or cannot be read.
    """
    first = blocks.peek().partition(b"\n")[0].decode(errors="replace")
    separator = max((separator, ",", ";", "\t"), key=first.count)
    text = _CsvText(blocks)
    with _wide_fields():
        rows = csv.reader(text, delimiter=separator, strict=True)
        try:
            header = next(rows, [])
        except csv.Error as error:
            raise DataError(f"the header cannot be read: {error}", where) from None
        twice = [name for name, count in Counter(header).items() if count > 1]
        if twice:
            raise DataError(f"the header names the column {twice[0]!r} more than once", where, "rename one of them")
        yield from _csv_lines(rows, header)
    if text.stopped:
        yield text.stopped


def _csv_lines(rows: Iterator[list[str]], header: list[str]) -> Iterator[bytes]:
    while True:
        try:
            fields = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            cut = "end of data" in str(error)
            yield marked(Defect.TRUNCATED if cut else Defect.WRONG_COLUMNS, "a quoted field is never closed" if cut else str(error))
            continue
        if len(fields) == len(header):
            yield json.dumps(dict(zip(header, fields, strict=True)), ensure_ascii=False).encode("utf-8", "surrogateescape")
        elif fields:
            raw = ",".join(fields).encode("utf-8", "surrogateescape")
            yield marked(Defect.WRONG_COLUMNS, f"{len(fields)} fields, and the header has {len(header)}", raw)


class _CsvText:
    """Lines for the csv module. Bytes that are not UTF-8 pass through, for the row to be judged by."""

    def __init__(self, blocks: Blocks) -> None:
        self.stopped = b""
        """The mark of the last row, if the text could not be read to its end."""
        self._blocks, self._lines = blocks, sized_lines(blocks)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line, size, ended = next(self._lines)
        if not ended and self._blocks.cut:
            self.stopped = marked(Defect.TRUNCATED, self._blocks.cut, line)
        elif size > ROW_LIMIT:
            self.stopped = marked(*TOO_LARGE, line)
        if self.stopped:
            raise StopIteration
        return line.decode("utf-8", "surrogateescape") + "\n" * ended


@contextmanager
def _wide_fields() -> Iterator[None]:
    """The csv module's limit on a field is one setting of the process, and far below what an answer may have."""
    before = csv.field_size_limit(ROW_LIMIT)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def parquet_rows(path: Path) -> Iterator[bytes]:
    """A line of JSON for each row; the last is a mark if the file is damaged. A missing number (NaN) becomes null.

    Raises:
        DataError: the file has no index, as when it was cut, or names a column twice.
        MissingExtra: without the package `pyarrow`.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError:
        raise MissingExtra("pyarrow", "data") from None
    broken = (pa.ArrowException, OSError, ValueError)  # what pyarrow documents and what it raises
    try:
        file = pq.ParquetFile(path)
    except broken as error:
        what = f"the Parquet file cannot be read: {_first_line(error)}"
        raise DataError(what, str(path), "its index is at its end, so a file that was cut is lost: fetch or write it again") from None
    with file:
        twice = [name for name, count in Counter(file.schema_arrow.names).items() if count > 1]
        if twice:
            raise DataError(f"names the column {twice[0]!r} more than once", str(path), "rename one of them")
        batches = file.iter_batches(batch_size=BATCH)
        while True:
            try:
                batch = next(batches, None)
            except broken as error:
                yield marked(Defect.TRUNCATED, f"the Parquet data are damaged: {_first_line(error)}")
                return
            if batch is None:
                return
            yield from arrow_lines(batch)


def arrow_lines(batch: Any) -> Iterator[bytes]:
    """A line of JSON for each row of a pyarrow.RecordBatch; a row that has none becomes a mark."""
    try:
        rows = batch.to_pylist()
    except (ValueError, OverflowError) as error:  # not UTF-8, or a date that Python has no value for
        if len(batch) == 1:
            yield marked(Defect.ENCODING if isinstance(error, UnicodeError) else Defect.WRONG_COLUMNS, _first_line(error))
        else:
            for i in range(len(batch)):
                yield from arrow_lines(batch.slice(i, 1))
        return
    yield from map(json_line, rows)


def json_line(row: Json) -> bytes:
    """The row as one line of JSON, or its mark when a value of it has no text."""
    try:
        try:
            text = _dump(row)
        except ValueError:  # NaN has no text in JSON
            text = _dump(_without_nan(row))
        return text.encode()
    except UnicodeError as error:
        return marked(Defect.ENCODING, _first_line(error), repr(row).encode(errors="replace"))
    except (ValueError, TypeError) as error:
        return marked(Defect.WRONG_COLUMNS, _first_line(error), repr(row).encode(errors="replace"))


def _dump(row: Json) -> str:
    return json.dumps(row, ensure_ascii=False, allow_nan=False, default=_plain)


def _plain(value: object) -> Json:
    """A value of a table as JSON has it."""
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if isinstance(value, decimal.Decimal):
        return float(value)
    if isinstance(value, uuid.UUID):
        return str(value)
    if isinstance(value, bytes):
        return value.decode()
    raise TypeError(f"a value of the kind {type(value).__name__} has no text")


def _without_nan(value: Json) -> Json:
    if isinstance(value, dict):
        return {key: _without_nan(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(part) for part in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
