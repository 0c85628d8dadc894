"""Whatever lies in a file, a person meets rows, flaws or an error of ours, and never another exception."""

from __future__ import annotations

import gzip
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from xwin.data.files import open_table
from xwin.data.sources import import_rows, load
from xwin.errors import XwinError

BOUNDED = settings(max_examples=30, deadline=None)
SUFFIXES = [".jsonl", ".json", ".csv", ".tsv", ".jsonl.gz", ".json.zst", ".csv.gz", ".parquet", ""]
ROWS = [
    {"instruction": f"Say {i} é\u2028", "input": "", "output": 'a "b"\n' * i, "score": i / 3, "none": None, "more": [{"x": "y"}]} for i in range(12)
]


@contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def survives(data: bytes, suffix: str) -> None:
    """Opens, reads and imports the bytes as a file of this name."""
    with folder() as here:
        path = here / f"rows{suffix}"
        path.write_bytes(data)
        try:
            rows = open_table(path, cache=here / "cache")
            for row in rows:
                assert row.flaw is None or row.value is None
                json.dumps(row.value, ensure_ascii=False, allow_nan=False).encode()
            done = import_rows([rows], out=here / "out.jsonl", makes=None, on_defect="drop", rejected=here / "rejected.jsonl")
            assert done.rows == len(rows)
            assert len(load(str(here / "out.jsonl"), makes=rows_make(done.sources[0].format), cache=here / "cache")) == done.items
        except XwinError:
            assert not (here / "out.jsonl").exists()
        assert not list(here.rglob("*.tmp"))


def rows_make(name: str) -> Any:
    from xwin.data.formats import format_named

    return format_named(name).makes


def documents() -> dict[str, bytes]:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS).encode()
    with folder() as here:
        pq.write_table(pa.Table.from_pylist(ROWS), here / "rows.parquet", row_group_size=5)
        parquet = (here / "rows.parquet").read_bytes()
    return {
        ".jsonl": text,
        ".json": json.dumps(ROWS, indent=1).encode(),
        ".csv": b"instruction,output\n" + b"".join(b'"a ""q"" %d","line1\nline2"\n' % i for i in range(12)),
        ".jsonl.gz": gzip.compress(text, mtime=0),
        ".json.zst": zstandard.compress(json.dumps(ROWS).encode()),
        ".parquet": parquet,
    }


DOCUMENTS = documents()
MAGIC = [b"PAR1", b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", b"[", b'{"', b"\xef\xbb\xbf", b"\xff\xfe", b"PK\x03\x04"]
PIECES = st.sampled_from([b'"', b"{", b"[", b"]", b"}", b"\n", b"\\", b"\\ud800", b"\xff", b"NaN", b",,", b"1e999", b"9" * 5000, b"[" * 3000, b"\0"])


@given(st.binary(max_size=300), st.sampled_from(SUFFIXES))
@BOUNDED
def test_any_bytes(data: bytes, suffix: str) -> None:
    survives(data, suffix)


@given(
    st.binary(max_size=100),
    st.sampled_from([b"PAR1", b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", b"[", b'{"', b"\xef\xbb\xbf", b"\xff\xfe", b"PK\x03\x04"]),
)
@BOUNDED
def test_any_bytes_that_begin_like_a_known_kind(data: bytes, magic: bytes) -> None:
    survives(magic + data + magic * (magic == b"PAR1"), "")


@pytest.mark.parametrize("suffix", DOCUMENTS)
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_a_document_that_is_cut_or_changed(suffix: str, data: st.DataObject) -> None:
    document = DOCUMENTS[suffix]
    at = data.draw(st.integers(0, len(document)))
    until = data.draw(st.integers(at, min(len(document), at + 30)) | st.just(len(document)))
    survives(document[:at] + data.draw(PIECES | st.binary(max_size=8)) + document[until:], suffix)


TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


@given(st.lists(JSON, min_size=1, max_size=6), st.sampled_from([None, 1]), st.booleans())
@BOUNDED
def test_any_json_is_read_back_from_every_container(values: list[Any], indent: int | None, ascii_only: bool) -> None:
    lines = "\n".join(json.dumps(value, ensure_ascii=ascii_only) for value in values).encode()
    array = json.dumps(values, ensure_ascii=ascii_only, indent=indent).encode()
    kinds = {"a.jsonl": b"\n" + lines, "a.json": array, "a.gz": gzip.compress(b"\n" + lines), "b.zst": zstandard.compress(array)}
    if len(values) == 1 and isinstance(values[0], list):
        kinds.pop("a.jsonl"), kinds.pop("a.gz")  # one line that is an array is an array of rows
    for name, data in kinds.items():
        with folder() as here:
            (here / name).write_bytes(data)
            rows = list(open_table(here / name, cache=here / "cache"))
            assert [(row.value, row.flaw) for row in rows] == [(value, None) for value in values], name
