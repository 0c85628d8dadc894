"""Rows of the files people have: every container gives the same rows, and what is wrong is said of the row it is wrong in."""

from __future__ import annotations

import csv
import gc
import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

import xwin.data._jsonl as jsonl
import xwin.data._unpack as unpack
from xwin.data._jsonl import new_file
from xwin.data.defects import Defect
from xwin.data.files import MOST_OPEN, Table, named_tables, open_table
from xwin.errors import DataError, MissingExtra

ROWS: list[dict[str, Any]] = [
    {"instruction": "Say hi", "output": "hi\u2028there", "score": 0.5},
    {"instruction": 'A "quoted" word,\nand a line', "output": "é😀", "score": 3},
    {"instruction": "", "output": "[{", "score": None},
]
LINES = [json.dumps(row, ensure_ascii=False).encode() for row in ROWS]


def table(tmp_path: Path, data: bytes, name: str = "rows.jsonl") -> Table:
    (tmp_path / name).write_bytes(data)
    return open_table(tmp_path / name, cache=tmp_path / "cache")


def values(rows: Table) -> list[Any]:
    assert not [row for row in rows if row.flaw]
    return [row.value for row in rows]


def flaws(rows: Table) -> list[tuple[int, Defect]]:
    return [(row.number, row.flaw.defect) for row in rows if row.flaw]


CONTAINERS: dict[str, Callable[[], bytes]] = {
    "rows.jsonl": lambda: b"\n".join(LINES) + b"\n",
    "open.jsonl": lambda: b"\n".join(LINES),
    "bom.jsonl": lambda: b"\xef\xbb\xbf" + b"\r\n".join(LINES) + b"\r\n",
    "lines.json": lambda: b"\n".join(LINES),
    "array.json": lambda: b"[" + b",".join(LINES) + b"]",
    "array.jsonl": lambda: b"[\n" + b",\n".join(LINES) + b"\n]\n",
    "pretty.json": lambda: b"\xef\xbb\xbf" + json.dumps(ROWS, indent=2, ensure_ascii=False).encode(),
    "objects.json": lambda: b"\n".join(json.dumps(row, indent=1).encode() for row in ROWS),
    "nameless": lambda: b"\n".join(LINES),
    "rows.jsonl.gz": lambda: gzip.compress(b"\n".join(LINES)),
    "members.gz": lambda: gzip.compress(LINES[0] + b"\n") + gzip.compress(LINES[1][:9]) + gzip.compress(LINES[1][9:] + b"\n" + LINES[2]) + b"\0" * 40,
    "array.json.gz": lambda: gzip.compress(json.dumps(ROWS, indent=2).encode()),
    "bom.jsonl.gz": lambda: gzip.compress(b"\xef\xbb\xbf" + b"\n".join(LINES)),
    "rows.jsonl.zst": lambda: zstandard.compress(b"\n".join(LINES)),
    "frames.zst": lambda: zstandard.compress(LINES[0] + b"\n") + zstandard.compress(b"\n".join(LINES[1:])),
    "array.json.zst": lambda: zstandard.compress(json.dumps(ROWS).encode()),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_every_container_gives_the_same_rows_whatever_its_name(name: str, tmp_path: Path) -> None:
    rows = table(tmp_path, CONTAINERS[name](), name)
    assert values(rows) == ROWS
    assert [row.number for row in rows] == [1, 2, 3]
    assert rows[-1].value == ROWS[2]
    assert [row.value for row in rows[1:]] == ROWS[1:]
    with pytest.raises(IndexError):
        rows[3]


def test_the_digest_is_that_of_the_file_as_it_lies_there(tmp_path: Path) -> None:
    for name, data in (("a.jsonl", b"1\n2\n"), ("a.json", b"[1,2]"), ("a.gz", gzip.compress(b"1\n2\n", mtime=0))):
        rows = table(tmp_path, data, name)
        listed = subprocess.run(["sha256sum", tmp_path / name], capture_output=True, text=True, check=True).stdout.split()[0]
        assert rows.digest == listed
        rows.expect(listed)
        with pytest.raises(DataError, match="another file than was planned"):
            rows.expect("0" * 64)


def test_blank_lines_are_left_out_and_line_numbers_kept(tmp_path: Path) -> None:
    assert [(row.number, row.value) for row in table(tmp_path, b"\n \t\n1\n\r\n\n2\n" + b" " * 100 + b"\n3\n\n\n")] == [(3, 1), (6, 2), (8, 3)]


@pytest.mark.parametrize("block", [1, 2, 3, 7, 16])
def test_where_blocks_end_does_not_matter(block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = b"\xef\xbb\xbf" * (block > 2) + b' 1\n\n\n"a"\r\n   \n\n{"b": 2}\n\t\n[3]'
    monkeypatch.setattr(jsonl, "BLOCK", block)
    assert [(row.number, row.value) for row in table(tmp_path, text)] == [(1, 1), (4, "a"), (7, {"b": 2}), (9, [3])]


@pytest.mark.parametrize(
    ("line", "defect", "says"),
    [
        (b'{"a": 1', Defect.NOT_JSON, "character"),
        (b"hello", Defect.NOT_JSON, "Expecting value at character 1"),
        (b'{"a": NaN}', Defect.NOT_JSON, "NaN is not JSON"),
        (b'{"a": -Infinity}', Defect.NOT_JSON, "-Infinity is not JSON"),
        (b'{"a": 1e999}', Defect.NOT_JSON, "too large"),
        (b'{"a": ' + b"9" * 5000 + b"}", Defect.NOT_JSON, "5000 digits"),
        (b'{"a": 1, "b": 2, "a": 3}', Defect.NOT_JSON, "'a' comes twice"),
        (b"[" * 100_000, Defect.NOT_JSON, "nested"),
        (b"[" * 201 + b"]" * 201, Defect.NOT_JSON, "nested deeper than 200"),
        (b'{"a": "b\x01"}', Defect.NOT_JSON, "Invalid control character"),
        (b'{"a": "caf\xe9"}', Defect.ENCODING, "at byte 11"),
        (b'{"a": "\\ud83d"}', Defect.ENCODING, "half of a surrogate pair: \\ud83d"),
        (b'{"\\uDE00": 1}', Defect.ENCODING, "half of a surrogate pair"),
    ],
)
def test_a_row_that_cannot_be_read_is_flawed_alone(line: bytes, defect: Defect, says: str, tmp_path: Path) -> None:
    rows = table(tmp_path, b'{"a": 1}\n' + line + b'\n{"a": "\\ud83d\\ude00"}\n')
    assert flaws(rows) == [(2, defect)]
    assert rows[1].flaw is not None
    assert says in rows[1].flaw.detail
    assert rows[1].raw.encode(errors="replace")[:5] == line[:5].decode(errors="replace").encode()
    assert rows[2].value == {"a": "😀"}


def test_limits_leave_room_for_what_people_have(tmp_path: Path) -> None:
    deep = json.dumps({"text": "[{" * 500, "tree": json.loads("[" * 150 + "]" * 150), "id": 2**200})
    assert values(table(tmp_path, deep.encode())) == [json.loads(deep)]


@pytest.mark.parametrize(
    ("element", "defect"),
    [
        (b'{"a": NaN}', Defect.NOT_JSON),
        (b'{"a": 1, "a": 2}', Defect.NOT_JSON),
        (b'{"a": "\xff"}', Defect.ENCODING),
        (b'{"a": "\\ud800"}', Defect.ENCODING),
        (b'{"a": "line\nline"}', Defect.NOT_JSON),
        (b"9" * 5000, Defect.NOT_JSON),
        (b'{"a": ' + b"[" * 300 + b"]" * 300 + b"}", Defect.NOT_JSON),
    ],
)
def test_a_wrong_element_of_an_array_does_not_hide_those_after_it(element: bytes, defect: Defect, tmp_path: Path) -> None:
    rows = table(tmp_path, b"[1, " + element + b', {"a":\n 3}]', "rows.json")
    assert flaws(rows) == [(2, defect)]
    assert (rows[0].value, rows[2].value) == (1, {"a": 3})


@pytest.mark.parametrize(
    ("text", "good", "defect", "says"),
    [
        (b'[1, 2, {"a": "b', 2, Defect.TRUNCATED, "not complete"),
        (b'[1, 2, {"a": tru', 2, Defect.TRUNCATED, "not complete"),
        (b"[1, 2,", 2, Defect.TRUNCATED, "never closed"),
        (b'[{"a":\n1}\n', 1, Defect.TRUNCATED, "never closed"),
        (b"[1, 2] 3", 2, Defect.NOT_JSON, "after the end of the array at character 8"),
        (b'[1, {"a": 1} {"a": 2}, 3]', 2, Defect.NOT_JSON, "comma is missing at character 14"),
        (b"[1, 2,, 3]               ", 2, Defect.NOT_JSON, "Expecting value at character 7"),
        (b'{\n "a": 1\n}\n{\n "b": oops no value at all\n}', 1, Defect.NOT_JSON, "Expecting value"),
        (b'{\n "a": [\n1, 2', 0, Defect.TRUNCATED, "not complete"),
    ],
)
def test_what_ends_an_array_too_early_is_said_in_a_last_row(text: bytes, good: int, defect: Defect, says: str, tmp_path: Path) -> None:
    rows = table(tmp_path, text, "rows.json")
    assert flaws(rows) == [(good + 1, defect)]
    assert len(rows) == good + 1
    flaw = rows[good].flaw
    assert flaw is not None
    assert says in flaw.detail


def test_a_comma_after_the_last_element_loses_nothing(tmp_path: Path) -> None:
    assert values(table(tmp_path, b"[1, 2, ]", "rows.json")) == [1, 2]


def test_numbers_are_not_split_where_blocks_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xwin.data._unpack.BLOCK", 1)
    numbers = [1.5, 12, -3.25e-7, 100, 7]
    assert values(table(tmp_path, json.dumps(numbers).encode(), "rows.json")) == numbers
    assert values(table(tmp_path, json.dumps(ROWS, indent=1).encode(), "rows2.json")) == ROWS


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress], ids=["gzip", "zstd"])
@pytest.mark.parametrize("shape", ["lines", "array"])
def test_a_packed_file_cut_in_the_middle_gives_the_rows_before_the_cut(pack: Callable[[bytes], bytes], shape: str, tmp_path: Path) -> None:
    noise = [json.dumps({"i": i, "noise": os.urandom(40).hex()}).encode() for i in range(6_000)]
    packed = pack(b"\n".join(noise) if shape == "lines" else b"[" + b",".join(noise) + b"]")
    rows = table(tmp_path, packed[: len(packed) // 2], "rows.packed")
    assert 300 < len(rows) < 5_000
    assert flaws(rows) == [(len(rows), Defect.TRUNCATED)]
    assert [row.value for row in rows[:-1]] == [json.loads(line) for line in noise[: len(rows) - 1]]


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress], ids=["gzip", "zstd"])
def test_a_packed_file_that_would_fill_the_disk_is_read_no_further(
    pack: Callable[[bytes], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unpack, "HARMLESS", 1 << 20)
    monkeypatch.setattr(unpack, "BOMB", 20)
    noise = b"".join(json.dumps({"noise": os.urandom(500).hex()}).encode() + b"\n" for _ in range(300))
    packed = pack(noise + b'{"a": 1}\n' * (3 << 20))  # 27 MiB of one row
    rows = table(tmp_path, packed, "bomb.packed")
    assert len(packed) * unpack.BOMB < 27 << 20
    assert rows[0].value.keys() == {"noise"}
    flaw = rows[-1].flaw
    assert flaw is not None and flaw.defect is Defect.TRUNCATED and "unpack to more than 20 times their size" in flaw.detail
    assert rows.file.stat().st_size < 27 << 20


def test_damaged_packing_and_a_cut_at_the_end_of_a_line_are_flaws_too(tmp_path: Path) -> None:
    packed = gzip.compress(b"1\n2\n")
    assert flaws(table(tmp_path, packed[:-4], "short.gz")) == [(3, Defect.TRUNCATED)]
    assert flaws(table(tmp_path, packed[:-8] + b"12345678", "wrong.gz"))[-1][1] is Defect.TRUNCATED
    assert flaws(table(tmp_path, b"\x28\xb5\x2f\xfd garbage", "garbage.zst")) == [(1, Defect.TRUNCATED)]


def test_the_last_line_of_a_file_that_was_cut_is_truncated_and_not_merely_wrong(tmp_path: Path) -> None:
    assert flaws(table(tmp_path, b'{"a": 1}\n{"a": 2')) == [(2, Defect.TRUNCATED)]
    assert flaws(table(tmp_path, b'{"a": 1}\n{"a": 2\n', "b.jsonl")) == [(2, Defect.NOT_JSON)]
    assert flaws(table(tmp_path, b'{"a": 1}\nsome words', "c.jsonl")) == [(2, Defect.NOT_JSON)]


def test_jsonl_whose_first_line_is_wrong_is_still_jsonl(tmp_path: Path) -> None:
    assert flaws(table(tmp_path, b'{"a": 1,\n{"a": 2}\n{"a": 3}\n')) == [(1, Defect.NOT_JSON)]
    assert flaws(table(tmp_path, b'oops\n{"a": 2}\n', "b.jsonl")) == [(1, Defect.NOT_JSON)]
    assert values(table(tmp_path, b'[{"a": 1}]\n[{"a": 2}]\n', "c.jsonl")) == [[{"a": 1}], [{"a": 2}]]


@pytest.mark.parametrize(("name", "comma"), [("rows.csv", ","), ("rows.tsv", "\t"), ("rows.csv", ";"), ("rows.csv.gz", ",")])
def test_tables_of_text_are_read_with_their_header(name: str, comma: str, tmp_path: Path) -> None:
    rows = [["instruction", "output"], ["Say, hi;\tnow", 'a "word"\nand\r\na line é'], ["", "007"]]
    path = tmp_path / name
    with path.open("w", newline="", encoding="utf-8-sig") as out:
        csv.writer(out, delimiter=comma, quoting=csv.QUOTE_ALL).writerows(rows)
    if name.endswith(".gz"):
        path.write_bytes(gzip.compress(path.read_bytes()))
    assert values(open_table(path, cache=tmp_path / "cache")) == [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]


def test_rows_of_a_csv_that_do_not_fit_its_header_are_flawed_alone(tmp_path: Path) -> None:
    rows = table(tmp_path, b'a,b\n1,2\n3\n\n5,"6"x\n7,\xff\n"8,9\n', "rows.csv")
    assert rows[0].value == {"a": "1", "b": "2"}
    assert flaws(rows) == [(2, Defect.WRONG_COLUMNS), (3, Defect.WRONG_COLUMNS), (4, Defect.ENCODING), (5, Defect.TRUNCATED)]
    with pytest.raises(DataError, match="'a' more than once"):
        table(tmp_path, b"a,a\n1,2\n", "twice.csv")
    with pytest.raises(DataError, match="holds no rows"):
        table(tmp_path, b"a,b\n", "header.csv")


def test_a_csv_field_may_be_longer_than_the_csv_module_allows_by_itself(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    assert values(table(tmp_path, b'a\n"' + b"x" * 200_000 + b'"\n', "rows.csv")) == [{"a": "x" * 200_000}]
    assert csv.field_size_limit() == before


def test_parquet_gives_plain_values(tmp_path: Path) -> None:
    import datetime
    import decimal

    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    turns, noon = [{"role": "user", "content": "é"}], datetime.datetime(2024, 5, 1, 12)
    full = {"messages": turns, "when": noon, "cost": decimal.Decimal("1.50"), "score": float("nan")}
    bare = {"messages": [], "when": None, "cost": None, "score": 0.1}
    pq.write_table(pa.Table.from_pylist([full, bare] * 100), tmp_path / "rows.parquet", row_group_size=30)
    found = values(open_table(tmp_path / "rows.parquet", cache=tmp_path / "cache"))
    assert found == [{"messages": turns, "when": "2024-05-01T12:00:00", "cost": 1.5, "score": None}, bare] * 100
    pq.write_table(pa.table({"a": [1.0, float("inf"), 2.0], "b": [b"text", b"b", b"\xff"]}), tmp_path / "odd.parquet")
    odd = open_table(tmp_path / "odd.parquet", cache=tmp_path / "cache")
    assert (odd[0].value, flaws(odd)) == ({"a": 1.0, "b": "text"}, [(2, Defect.WRONG_COLUMNS), (3, Defect.ENCODING)])
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "rows.parquet").read_bytes()[:-100])
    with pytest.raises(DataError, match="index is at its end"):
        open_table(tmp_path / "cut.parquet", cache=tmp_path / "cache")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "is empty"),
        (b"\n  \n", "holds no rows"),
        (b"\xef\xbb\xbf", "holds no rows"),
        (b"[]", "holds no rows"),
        (gzip.compress(b"", mtime=0), "holds no rows"),
        (b"PK\x03\x04....", "zip archive"),
        (b"\xff\xfe{\0}\0", "UTF-16"),
        (b"\x7fELF\0\0\0\0" + b"\x80" * 100, "binary"),
        (gzip.compress(b"PAR1....", mtime=0), "inside another packing"),
    ],
)
def test_a_file_without_rows_is_an_error_that_says_why(data: bytes, says: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=says) as caught:
        table(tmp_path, data, "file")
    assert str(tmp_path / "file") in caught.value.where


def test_what_is_no_file_is_an_error_that_says_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("1\n")
    os.mkfifo(tmp_path / "pipe")
    for name, says in (
        ("trian.jsonl", "did you mean train.jsonl"),
        ("", "is a folder"),
        ("pipe", "device, pipe"),
        ("a\0b", "NUL"),
        ("x" * 300, "too long"),
    ):
        with pytest.raises(DataError, match=says):
            open_table(tmp_path / name, cache=tmp_path / "cache")


def test_a_file_that_may_not_be_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("1\n")
    (tmp_path / "rows.jsonl").chmod(0)
    me = os.geteuid()
    if me == 0:
        os.seteuid(65534)  # root may read everything
    try:
        with pytest.raises(DataError, match="Permission denied"):
            open_table(tmp_path / "rows.jsonl", cache=tmp_path / "cache")
    finally:
        os.seteuid(me)


def test_a_pattern_names_its_files_in_order(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        (tmp_path / f"{name}.jsonl").write_text(f'"{name}"\n')
    (tmp_path / "d.jsonl").mkdir()
    assert [found[0].value for found in named_tables(f"{tmp_path}/*.jsonl", cache=tmp_path / "cache")] == ["a", "b", "c"]
    for source in ("hf:./nowhere", "x" * 300, "x" * 300 + "*", "a\0b"):
        with pytest.raises(DataError):
            named_tables(source, cache=tmp_path / "cache")
    with pytest.raises(DataError, match="no file matches"):
        named_tables(f"{tmp_path}/*.json", cache=tmp_path / "cache")
    (tmp_path / "a[1].jsonl").write_text("1\n")
    assert len(named_tables(f"{tmp_path}/a[1].jsonl", cache=tmp_path / "cache")) == 1


def test_a_file_that_changes_while_it_is_read_stops_the_reading(tmp_path: Path) -> None:
    rows = table(tmp_path, b"1\n2\n3\n")
    steps = iter(rows)
    assert next(steps).value == 1
    (tmp_path / "rows.jsonl").write_bytes(b"1\n2\n4\n")
    with pytest.raises(DataError, match="changed while it was read"):
        list(steps)
    with pytest.raises(DataError, match="changed while it was read"):
        rows[0]


def test_a_file_that_is_replaced_or_removed_is_noticed_and_one_that_is_only_touched_is_not(tmp_path: Path) -> None:
    rows = table(tmp_path, b"1\n2\n")
    path = tmp_path / "rows.jsonl"
    os.utime(path, (1, 1))
    assert values(rows) == [1, 2]
    path.rename(tmp_path / "old")
    path.write_bytes(b"1\n2\n")
    assert values(rows) == [1, 2]
    path.unlink()
    with pytest.raises(DataError, match="no such file"):
        rows[0]


def test_a_pattern_of_many_files_holds_few_of_them_open(tmp_path: Path) -> None:
    for i in range(40):
        (tmp_path / f"{i:02}.jsonl").write_text(f"{i}\n{i + 100}\n")
    gc.collect()  # what other tests left open must not be closed in between
    before = len(list(Path("/proc/self/fd").iterdir()))
    tables = named_tables(f"{tmp_path}/*.jsonl", cache=tmp_path / "cache")
    for place in (0, 1):
        assert [table[place].value for table in tables] == [i + 100 * place for i in range(40)]
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + MOST_OPEN
    (tmp_path / "00.jsonl").write_text("7\n8\n")
    with pytest.raises(DataError, match="changed while it was read"):
        tables[0][0]
    del tables
    gc.collect()
    assert len(list(Path("/proc/self/fd").iterdir())) <= before


def test_a_draft_has_a_name_of_its_own_and_the_file_its_usual_mode(tmp_path: Path) -> None:
    with new_file(tmp_path / "a") as one, new_file(tmp_path / "a") as other:  # as two containers with equal process ids
        one.write(b"1")
        other.write(b"2")
    assert (tmp_path / "a").read_bytes() == b"1"
    (tmp_path / "b").touch()
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_a_file_that_changes_while_it_is_copied_stops_the_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import xwin.data.files as files

    real = files.split_values

    def meddle(blocks: Any) -> Any:
        yield from real(blocks)
        (tmp_path / "rows.json").write_bytes(b"[1, 2, 3, 4]")

    monkeypatch.setattr(files, "split_values", meddle)
    with pytest.raises(DataError, match="changed while it was read"):
        table(tmp_path, b"[1, 2, 3]", "rows.json")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_copy_is_made_once_and_an_interrupted_one_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import xwin.data.files as files

    def stop(blocks: Any) -> Any:
        yield b"1"
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(files, "split_values", stop)
        with pytest.raises(KeyboardInterrupt):
            table(tmp_path, b"[1, 2, 3]", "rows.json")
    assert list((tmp_path / "cache").iterdir()) == []
    assert values(table(tmp_path, b"[1, 2, 3]", "rows.json")) == [1, 2, 3]
    monkeypatch.setattr(files, "split_values", stop)
    assert values(table(tmp_path, b"[1, 2, 3]", "same.json")) == [1, 2, 3]


def test_a_line_that_looks_like_a_mark_of_ours_is_only_a_wrong_line(tmp_path: Path) -> None:
    for line in (b'!{"defect": 3}', b"!", b"![]", b'!{"defect": "unheard of", "detail": "", "raw": ""}'):
        assert flaws(table(tmp_path, line + b"\n1\n")) == [(1, Defect.NOT_JSON)]
        assert flaws(table(tmp_path, gzip.compress(line + b"\n1\n"), "rows.gz")) == [(1, Defect.NOT_JSON)]


HUGE_ELSEWHERE = ("element.json", "line.jsonl.gz", "field.csv")
HUGE = """
import sys
from pathlib import Path
from xwin.data.files import open_table
rows = open_table(Path(sys.argv[1]), cache=Path(sys.argv[2]))
print(len(rows), *[row.flaw and row.flaw.detail for row in rows], sep="|")
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize(
    "name", ["line.jsonl", *(pytest.param(name, marks=pytest.mark.slow) for name in ("element.json", "line.jsonl.gz", "field.csv"))]
)
def test_a_row_of_200_mib_is_a_flaw_and_takes_no_more_memory_than_a_few_rows_at_the_limit(name: str, tmp_path: Path) -> None:
    text = b'"' + b"a" * (200 << 20) + b'"'
    before, after = {"element.json": (b"[1,", b",2]"), "field.csv": (b"a\n1\n", b"\n2\n")}.get(name, (b"1\n", b"\n2\n"))
    path = tmp_path / name
    if name.endswith(".gz"):
        with gzip.open(path, "wb", compresslevel=1) as out:
            out.write(before + text + after)
    else:
        path.write_bytes(before + text + after)
    done = subprocess.run([sys.executable, "-c", HUGE, path, tmp_path / "cache"], capture_output=True, text=True, check=True)
    told, peak = done.stdout.splitlines()
    assert "a row larger than 64 MiB is not read" in told
    assert told.startswith("3|None|" if name.startswith("line") else "2|None|")
    assert int(peak) < 600 << 10  # KiB


def test_without_the_packages_the_error_holds_the_line_to_type(tmp_path: Path) -> None:
    for package, name, data in (("pyarrow", "a.parquet", b"PAR1...."), ("zstandard", "a.zst", zstandard.compress(b"1")), ("datasets", "folder", b"")):
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            if data:
                (tmp_path / name).write_bytes(data)
            else:
                (tmp_path / name).mkdir()
                (tmp_path / name / "rows.jsonl").write_text("1\n")
            with pytest.raises(MissingExtra, match=r"pip install 'xwin-lm\[data\]'"):
                named_tables(str(tmp_path / name), cache=tmp_path / "cache")
