"""Bytes of a file, unpacked if it is packed, block by block; and the lines in them. What is cut or damaged is said, not raised."""

from __future__ import annotations

import codecs
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import chain
from pathlib import Path
from typing import Any

from xwin.data._jsonl import BLOCK, EXCERPT, ROW_LIMIT, marked
from xwin.data.defects import Defect
from xwin.errors import MissingExtra

BOMB = 300
"""Times its packed size that text does not unpack to: it reaches 10, one letter again and again 1000."""
HARMLESS = 1 << 30
"""Bytes that may come out of anything, however small."""
TOO_LARGE = (Defect.NOT_JSON, f"a row larger than {ROW_LIMIT >> 20} MiB is not read")
"""The defect of such a row, and what to say of it."""


class Packing(StrEnum):
    """How the bytes of a file are packed."""

    PLAIN = "plain"
    GZIP = "gzip"
    ZSTD = "zstd"


def packing(head: bytes) -> Packing:
    """By the first bytes."""
    if head.startswith(b"\x1f\x8b"):
        return Packing.GZIP
    return Packing.ZSTD if head.startswith(b"\x28\xb5\x2f\xfd") else Packing.PLAIN


class Blocks:
    """The unpacked bytes of a file, once, less the mark that some editors put before UTF-8 text.

    Example: blocks = Blocks(path, Packing.GZIP); data = b"".join(blocks); blocks.cut == "" or "the gzip data end in the middle"

    Raises:
        MissingExtra: zstd without the package `zstandard`.
    """

    def __init__(self, path: Path, how: Packing) -> None:
        self.cut = ""
        """After the last block: why the data ended too early; empty when they did not."""
        self._path, self._how = path, how
        self._unpacker = _unpacker(how)
        self._rest = _without_bom(self._read())

    def __iter__(self) -> Iterator[bytes]:
        return self._rest

    def peek(self) -> bytes:
        """The first block, which iterating still gives."""
        first = next(self._rest, b"")
        rest = self._rest
        self._rest = chain((first,) if first else (), rest)
        return first

    def _read(self) -> Iterator[bytes]:
        with self._path.open("rb") as file:
            if self._unpacker is None:
                while block := file.read(BLOCK):
                    yield block
            else:
                given = 0
                for block in self._unpack(file.read, self._unpacker):
                    given += len(block)
                    if given > max(HARMLESS, BOMB * file.tell()):
                        self.cut = f"the {self._how.value} data unpack to more than {BOMB} times their size, as no text does"
                        return
                    yield block

    def _unpack(self, read: Callable[[int], bytes], unpacker: _Unpacker) -> Iterator[bytes]:
        """Small pieces go in, so that even data that unpack to a thousand times their size come out in bounded blocks."""
        engine: Any = unpacker.start()
        while data := read(unpacker.piece):
            while data := data.lstrip(b"\0") if engine.eof else data:  # zeros may pad the end
                engine = unpacker.start() if engine.eof else engine
                try:
                    out = engine.decompress(data)
                except unpacker.error as error:
                    self.cut = f"the {self._how.value} data are damaged: {error}"
                    return
                data = engine.unused_data if engine.eof else b""
                if out:
                    yield out
        if not engine.eof:
            self.cut = f"the {self._how.value} data end in the middle"


@dataclass(frozen=True)
class _Unpacker:
    start: Callable[[], Any]
    """Makes what unpacks one member: it has decompress(), eof and unused_data."""
    error: type[Exception]
    """What it raises about damaged data."""
    piece: int
    """Bytes that go in at once."""


def _unpacker(how: Packing) -> _Unpacker | None:
    if how is Packing.PLAIN:
        return None
    if how is Packing.GZIP:
        return _Unpacker(lambda: zlib.decompressobj(wbits=31), zlib.error, 16 << 10)
    try:
        import zstandard
    except ModuleNotFoundError:
        raise MissingExtra("zstandard", "data") from None
    return _Unpacker(lambda: zstandard.ZstdDecompressor().decompressobj(), zstandard.ZstdError, 2 << 10)


def lines(blocks: Blocks) -> Iterator[bytes]:
    """Each line without its newline, blank ones too. A line that is too large to read, and one that is cut, becomes its mark."""
    for line, size, ended in sized_lines(blocks):
        if not ended and blocks.cut:
            yield marked(Defect.TRUNCATED, blocks.cut, line)
        else:
            yield line if size <= ROW_LIMIT else marked(*TOO_LARGE, line)


def sized_lines(blocks: Blocks) -> Iterator[tuple[bytes, int, bool]]:
    """(line, its bytes, whether a newline ended it): of one above ROW_LIMIT only the beginning. Data that are cut end with such a line."""
    parts: list[bytes] = []
    size = 0
    for block in blocks:
        begin = 0
        while (end := block.find(b"\n", begin)) >= 0:
            size += end - begin
            parts.append(block[begin:end] if size <= ROW_LIMIT else block[begin : begin + EXCERPT])
            yield b"".join(parts), size, True
            parts, size, begin = [], 0, end + 1
        size += len(block) - begin
        parts.append(block[begin:] if size <= ROW_LIMIT else block[begin : begin + EXCERPT * (not parts)])
    if size or blocks.cut:
        yield b"".join(parts), size, False


def _without_bom(blocks: Iterable[bytes]) -> Iterator[bytes]:
    for number, block in enumerate(blocks):
        yield block.removeprefix(codecs.BOM_UTF8) if number == 0 else block
