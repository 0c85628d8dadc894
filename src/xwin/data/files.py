"""Rows of the files people have: JSONL, JSON, CSV, Parquet, packed or not, and data set folders. Memory stays flat, access is random.

A JSONL file is read where it lies: one pass finds where its lines begin. Everything else is copied once, row by row, into a JSONL
file in a cache, under the digest of what was read.
"""

from __future__ import annotations

import codecs
import difflib
import glob
import hashlib
import os
import re
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from xwin.data._columns import csv_rows, parquet_rows
from xwin.data._datasets import dataset_digest, dataset_folder, dataset_rows, named_dataset
from xwin.data._jsonl import ROW_LIMIT, Lines, Row, flawed, index_lines, new_file, read_marked, read_row
from xwin.data._unpack import TOO_LARGE, Blocks, Packing, lines, packing
from xwin.data._values import begins_with_value, holds_one_value, split_values
from xwin.data.defects import Defect, Flaw
from xwin.data.listed import Listed
from xwin.errors import DataError
from xwin.run.storage import digest_file

__all__ = ["REVISION", "ROW_LIMIT", "Row", "Table", "data_digest", "data_files", "named_tables", "open_table"]

REVISION = 1
"""Of the copies in the cache: another number when reading changes what they hold."""
MOST_OPEN = 16
"""Files of one source that are held open."""
HEAD = 1 << 20
"""Bytes from which the shape of a file is told."""
FOREIGN = {
    b"PK\x03\x04": ("a zip archive", "unpack it, or pack it with gzip"),
    b"BZh": ("packed with bzip2", "unpack it, or pack it with gzip"),
    b"\xfd7zXZ": ("packed with xz", "unpack it, or pack it with gzip"),
    b"7z\xbc\xaf": ("a 7z archive", "unpack it, or pack it with gzip"),
    b"%PDF": ("a PDF", "give its text as JSONL"),
    b"GGUF": ("a model", "name it under `models:`"),
    b"ARROW1": ("an Arrow file", "name the data set folder that it lies in"),
    codecs.BOM_UTF16_LE: ("UTF-16 text", "write it as UTF-8: iconv -f UTF-16 -t UTF-8"),
    codecs.BOM_UTF16_BE: ("UTF-16 text", "write it as UTF-8: iconv -f UTF-16 -t UTF-8"),
}
SEPARATORS = {".csv": ",", ".tsv": "\t"}


class Shape(StrEnum):
    """How rows lie in the unpacked bytes of a file."""

    LINES = "lines"
    """One JSON value a line."""
    VALUES = "values"
    """A JSON array, or values over several lines."""
    CSV = "csv"
    PARQUET = "parquet"


@dataclass(frozen=True, slots=True)
class _State:
    """What tells without reading that a file is still the same."""

    size: int
    changed: int
    node: int

    @classmethod
    def of(cls, found: os.stat_result) -> _State:
        return cls(found.st_size, found.st_mtime_ns, found.st_ino)

    def holds(self, found: os.stat_result) -> bool:
        """Whether this is it."""
        return self.changed == found.st_mtime_ns and self.size == found.st_size and self.node == found.st_ino


class _Handles:
    """Descriptors of the files that were read last, opened when they are asked for: a pattern may name thousands."""

    def __init__(self) -> None:
        self._numbers: dict[Path, int] = {}
        weakref.finalize(self, _close, self._numbers)

    def of(self, file: Path) -> tuple[int, bool]:
        """A descriptor to read from, until the next one is asked for, and whether it was opened now."""
        held = self._numbers.pop(file, None)
        number = os.open(file, os.O_RDONLY | os.O_CLOEXEC) if held is None else held
        self._numbers[file] = number
        if len(self._numbers) > MOST_OPEN:
            os.close(self._numbers.pop(next(iter(self._numbers))))
        return number, held is None


def _close(numbers: dict[Path, int]) -> None:
    for number in numbers.values():
        os.close(number)


class Table(Listed[Row]):
    """The rows of one file, read when they are asked for; held are 8 bytes a row. Reading a row again gives the same row.

    Example: open_table(Path("alpaca.json"), cache=cache)[0].value["instruction"]

    Raises on access:
        DataError: the file changed after it was opened.
    """

    def __init__(self, path: Path, digest: str, opened: _Opened, read: Callable[[int, bytes], Row]) -> None:
        self.path = path
        """As the person named it."""
        self.digest = digest
        """sha256 of the bytes of `path`, 64 hex digits."""
        self.file = opened.path
        """Where the lines lie: `path` itself, or the copy in the cache."""
        self._lines, self._state, self._handles = opened.lines, opened.state, opened.handles
        self._read, self._name = read, str(opened.path)

    def __len__(self) -> int:
        return len(self._lines)

    def at(self, place: int) -> Row:
        """See Listed."""
        self.check()
        number = self._lines.number(place)
        with _file_errors(self.file):
            handle, fresh = self._handles.of(self.file)
            line, whole = self._lines.read(handle, place)
        if fresh or not whole:
            self.check()  # a file that became shorter is no large row, and one that is opened again may be another
        if not whole:
            return flawed(number, Flaw(*TOO_LARGE), line)
        row = self._read(number, line)
        cut = row.flaw and row.flaw.defect is Defect.NOT_JSON and place == len(self) - 1 and self._lines.open_end
        if cut and line[:1] in (b"{", b"[") and line[-1:] not in (b"}", b"]"):
            return replace(row, flaw=Flaw(Defect.TRUNCATED, row.flaw.detail if row.flaw else ""))
        return row

    def __iter__(self) -> Iterator[Row]:
        for i in range(len(self)):
            yield self[i]
        self.check()

    def check(self) -> None:
        """Passes if the file is what was opened. Reads it again only when its time or size differs.

        Raises:
            DataError: it changed, or is gone.
        """
        with suppress(OSError):
            if self._state.holds(os.stat(self._name)):  # noqa: PTH116 - asked for every row, so it has to be fast
                return
        with _file_errors(self.file):
            state = _State.of(self.file.stat())
            if digest_file(self.file) != self._lines.digest:
                raise _changed(self.path)
        self._state = state

    def expect(self, digest: str) -> None:
        """Passes if the file is the one that was planned with.

        Raises:
            DataError: it has another digest.
        """
        if digest != self.digest:
            what = f"is another file than was planned with: its digest is {self.digest[:12]}, not {digest[:12]}"
            raise DataError(what, str(self.path), "bring the file back, or start a new run")


def named_tables(source: str, *, cache: Path) -> list[Table]:
    """The tables that a source names: a file, a pattern such as `data/*.jsonl` (its files in order), a data set folder
    (`folder` or `folder:split`), or a data set of the hub (`hf:owner/name` or `hf:owner/name:split`).

    Args:
        source: what a person writes.
        cache: folder for the copies.

    Raises:
        DataError: nothing of that name, or it cannot be read.
        MissingExtra: a package for that kind of file is not installed.
    """
    with _file_errors(Path(source)):
        named = named_dataset(source)
        pattern = glob.has_magic(source) and not Path(source).exists()
    if named:
        folder = dataset_folder(named)
        with _file_errors(folder):
            digest = dataset_digest(folder, named.split)
        copy = _copied(cache / f"{digest}.dataset.v{REVISION}.jsonl", lambda: _dataset(folder, named.split, source, digest))
        return [_table(Path(source), digest, copy, read_marked, _Handles())]
    if pattern:
        names = glob.glob(source, recursive=True)  # noqa: PTH207 - Path.glob takes no absolute pattern
        found = sorted(path for path in names if Path(path).is_file())
        if not found:
            raise DataError("no file matches this pattern", source, "look at the pattern, and at the folder it starts from")
        handles = _Handles()
        return [_opened_table(Path(path), cache, handles) for path in found]
    return [open_table(Path(source), cache=cache)]


def data_files(path: Path) -> list[Path]:
    """The files that a path or pattern means, in order; none where there is nothing, or for a data set of the hub."""
    text = str(path)
    if glob.has_magic(text) and not path.exists():  # Path.glob takes no absolute pattern
        return [found for name in sorted(glob.glob(text, recursive=True)) if (found := Path(name)).is_file()]  # noqa: PTH207
    named = named_dataset(text)
    if named is not None and named.folder is not None:
        return sorted(found for found in named.folder.rglob("*") if found.is_file() and not found.name.startswith("."))
    return [path] if path.is_file() else []


def data_digest(path: Path) -> str:
    """What names the content: `file:` and the sha256 of one file, `files:` and a digest of several, or `hub:` and the name of a data set there,
    which only the stage that reads it fetches."""
    files = data_files(path)
    if files == [path]:
        return f"file:{digest_file(path)}"
    if not files:
        return f"hub:{path}"
    lines = "\n".join([path.name, *(f"{file.name} {digest_file(file)}" for file in files)])
    return f"files:{hashlib.sha256(lines.encode(errors='surrogateescape')).hexdigest()}"


def open_table(path: Path, *, cache: Path) -> Table:
    """The rows of a file. What it holds is told by its first bytes; by its name only whether text is CSV.

    Args:
        path: JSONL, a JSON array or object, CSV or TSV (plain, gzip or zstd), or Parquet.
        cache: folder for the copy of what is no plain JSONL.

    Raises:
        DataError: it is missing, may not be read, is a folder, empty, of a kind that is not read, or changes meanwhile.
        MissingExtra: a package for that kind of file is not installed.
        StorageError: the copy cannot be written.
    """
    return _opened_table(path, cache, _Handles())


def _opened_table(path: Path, cache: Path, handles: _Handles) -> Table:
    if "\0" in str(path):
        raise DataError("a file name cannot hold a NUL character", repr(str(path)))
    with _file_errors(path):
        before = _State.of(path.stat())
        if not path.is_file():
            raise _no_file(path)
        head, packed = _head(path)
        shape = _shape(head, path, packed)
        if shape is Shape.LINES and packed is Packing.PLAIN:
            return _table(path, None, path, read_row, handles)
        digest = digest_file(path)
        suffix = _inner_suffix(path)[1:] if shape is Shape.CSV else ""
        name = f"{digest}.{shape}{suffix}.v{REVISION}.jsonl"
    copy = _copied(cache / name, lambda: _converted(path, shape, packed, before))
    return _table(path, digest, copy, read_marked, handles)


def _table(path: Path, digest: str | None, file: Path, read: Callable[[int, bytes], Row], handles: _Handles) -> Table:
    with _file_errors(file):
        number, _ = handles.of(file)
        opened = _Opened(file, handles, _State.of(os.fstat(number)), index_lines(number))
    table = Table(path, digest or opened.lines.digest, opened, read)
    table.check()
    if not len(table):
        raise DataError("holds no rows", str(path))
    return table


@dataclass(frozen=True, slots=True)
class _Opened:
    path: Path
    handles: _Handles
    state: _State
    lines: Lines


def _copied(target: Path, rows: Callable[[], Iterable[bytes]]) -> Path:
    """The copy, made now if it is not there: whole, or not at all."""
    if not target.is_file():
        with new_file(target) as out:
            out.writelines(line + b"\n" for line in rows())
    return target


def _dataset(folder: Path, split: str | None, source: str, digest: str) -> Iterator[bytes]:
    """Lines of the copy; at the end the folder must still hold what it held when its digest was made."""
    yield from dataset_rows(folder, split, source)
    with _file_errors(folder):
        if dataset_digest(folder, split) != digest:
            raise _changed(Path(source))


def _converted(path: Path, shape: Shape, packed: Packing, state: _State) -> Iterator[bytes]:
    """Lines of the copy; at the end the file must still be what it was when its digest was made."""
    with _file_errors(path):
        if shape is Shape.PARQUET:
            yield from parquet_rows(path)
        elif shape is Shape.CSV:
            yield from csv_rows(Blocks(path, packed), str(path), SEPARATORS[_inner_suffix(path)])
        else:
            blocks = Blocks(path, packed)
            yield from split_values(blocks) if shape is Shape.VALUES else lines(blocks)
        if _State.of(path.stat()) != state:
            raise _changed(path)


def _head(path: Path) -> tuple[bytes, Packing]:
    """The first unpacked bytes, HEAD of them or all there are, and how the file is packed."""
    with path.open("rb") as file:
        how = packing(file.read(8))
    if path.stat().st_size == 0:
        raise DataError("is empty", str(path))
    head = b""
    for block in Blocks(path, how):
        head += block
        if len(head) >= HEAD:
            break
    return head[:HEAD], how


def _shape(head: bytes, path: Path, packed: Packing) -> Shape:
    """What the bytes hold.

    Raises:
        DataError: it is of a kind that is not read.
    """
    for magic, (what, fix) in FOREIGN.items():
        if head.startswith(magic):
            raise DataError(f"is {what}, which is not read", str(path), fix)
    if head.startswith(b"PAR1"):
        if packed is not Packing.PLAIN:
            raise DataError("is a Parquet file inside another packing", str(path), "unpack it: Parquet is packed in itself")
        return Shape.PARQUET
    body = head.removeprefix(codecs.BOM_UTF8).lstrip()
    if body[:1] in (b"{", b"["):
        return Shape.LINES if _one_a_line(body) else Shape.VALUES
    if _inner_suffix(path) in SEPARATORS:
        return Shape.CSV
    if b"\0" in head[:8192]:
        raise DataError("is binary data of an unknown kind", str(path), "give JSONL, JSON, CSV or Parquet; text packed with gzip or zstd is fine")
    return Shape.LINES


def _one_a_line(body: bytes) -> bool:
    """Whether text that begins with { or [ is JSONL, and no array and no value over several lines."""
    line, newline, rest = (part.decode(errors="surrogateescape") for part in body.partition(b"\n"))
    whole = holds_one_value(line.strip())
    if body.startswith(b"["):
        return whole and bool(rest.strip())
    if whole or not newline:
        return True
    follows = re.match(r'\s*["}]', rest) if re.search(r"[{,]\s*$", line) else re.search(r"[\[:]\s*$", line)
    return not (follows or begins_with_value(body.decode(errors="surrogateescape")))


def _inner_suffix(path: Path) -> str:
    """`.csv` of rows.csv and of rows.csv.gz."""
    inner = path.with_suffix("") if path.suffix.lower() in (".gz", ".gzip", ".zst", ".zstd") else path
    return inner.suffix.lower()


def _no_file(path: Path) -> DataError:
    if path.is_dir():
        return DataError("is a folder, not a file", str(path), f"name a file, or a pattern such as {path}/*.jsonl")
    return DataError("is no file of data but a device, pipe or socket", str(path), "write the rows to a file first")


def _changed(path: Path) -> DataError:
    return DataError("changed while it was read", str(path), "let nothing write to it, and run the same command again")


@contextmanager
def _file_errors(path: Path) -> Iterator[None]:
    """Turns what the operating system says about a file into an error that says what to do."""
    try:
        yield
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, _names_beside(path), 1)
        raise DataError("no such file", str(path), f"did you mean {near[0]}?" if near else "") from None
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", str(path), "look at its name and permissions") from None


def _names_beside(path: Path) -> list[str]:
    try:
        return [found.name for found in path.parent.iterdir()]
    except OSError:
        return []
