"""The import pass: what rows become is written whole or not at all, and what they lose is counted and kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from stages.small import conversations, preferences

from xwin.data.defects import Defect
from xwin.data.files import Table, open_table
from xwin.data.formats import Makes
from xwin.data.sources import Tally, find_format, import_rows
from xwin.errors import DataError

GOOD = [{"instruction": f"Say {i}", "input": "", "output": f"{i}"} for i in range(5)]


def table(tmp_path: Path, rows: list[Any] | bytes, name: str = "rows.jsonl") -> Table:
    data = rows if isinstance(rows, bytes) else b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    (tmp_path / name).write_bytes(data)
    return open_table(tmp_path / name, cache=tmp_path / "cache")


def rejects(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_rows_become_native_ones_and_the_reason_is_told(tmp_path: Path) -> None:
    done = import_rows([table(tmp_path, GOOD)], out=tmp_path / "out.jsonl", makes=Makes.CONVERSATIONS)
    assert (done.rows, done.items, done.dropped, dict(done.defects)) == (5, 5, 0, {})
    assert (done.sources[0].format, "instruction" in done.sources[0].reason) == ("alpaca", True)
    said = conversations(tmp_path / "out.jsonl")
    assert [(c.messages[0].text, c.messages[1].text) for c in said] == [(f"Say {i}", f"{i}") for i in range(5)]


BAD = (
    b'{"instruction": "a", "output": "b"}\n{"instruction": "", "output": ""}\n{"ins\n{"other": 1}\n'
    b'{"instruction": "c", "output": "\xff"}\n\n{"instruction": "e"'
)


def test_all_rows_that_cannot_be_used_are_listed_in_one_error_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        import_rows([table(tmp_path, BAD)], out=tmp_path / "out.jsonl", makes=Makes.CONVERSATIONS)
    said = str(caught.value)
    assert "5 of 6 rows cannot be used" in said
    for line in ("1 x not JSON", "1 x cut off at the end of the file", "1 x not UTF-8", "1 x another format", "rows.jsonl:3 ", "rows.jsonl:7 "):
        assert line in said
    assert "on_defect: drop" in caught.value.fix
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.jsonl"]


def test_dropped_rows_are_written_down_with_their_reason_and_what_they_held(tmp_path: Path) -> None:
    done = import_rows(
        [table(tmp_path, BAD)], out=tmp_path / "out.jsonl", makes=Makes.CONVERSATIONS, on_defect="drop", rejected=tmp_path / "rejected.jsonl"
    )
    assert (done.rows, done.items, done.dropped) == (6, 1, 5)
    assert len(conversations(tmp_path / "out.jsonl")) == 1
    found = rejects(tmp_path / "rejected.jsonl")
    assert [row["row"] for row in found] == [2, 3, 4, 5, 7]
    assert [row["defect"] for row in found[1:]] == ["not JSON", "another format than the rows before", "not UTF-8", "cut off at the end of the file"]
    assert [found[0]["value"], found[1]["value"], found[2]["value"]] == [{"instruction": "", "output": ""}, '{"ins', {"other": 1}]
    assert {row["file"] for row in found} == {str(tmp_path / "rows.jsonl")}
    assert "its fields are other" in found[2]["reason"]


def test_rows_read_are_rows_written_and_rows_dropped_whatever_they_hold(tmp_path: Path) -> None:
    pairs = [{"prompt": "p", "chosen": "a", "rejected": answer} for answer in ("b", "a", "c", 3, "")]
    done = import_rows(
        [table(tmp_path, pairs)], out=tmp_path / "out.jsonl", makes=Makes.PREFERENCES, on_defect="drop", rejected=tmp_path / "rejected.jsonl"
    )
    assert (done.rows, done.items, done.dropped) == (5, 2, 3)
    assert done.defects[Defect.IDENTICAL] == 1
    assert done.examples[Defect.IDENTICAL][0].startswith(f"{tmp_path}/rows.jsonl:2")
    assert len(preferences(tmp_path / "out.jsonl")) == 2
    assert [row["row"] for row in rejects(tmp_path / "rejected.jsonl")] == [2, 4, 5]


def test_files_are_read_in_order_and_each_has_its_own_format(tmp_path: Path) -> None:
    chats = [{"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}]
    tables = [table(tmp_path, GOOD, "b.jsonl"), table(tmp_path, json.dumps(chats).encode(), "a.json")]
    done = import_rows(tables, out=tmp_path / "out.jsonl", makes=Makes.CONVERSATIONS)
    assert [(source.path.name, source.format) for source in done.sources] == [("b.jsonl", "alpaca"), ("a.json", "sharegpt")]
    assert [c.messages[-1].text for c in conversations(tmp_path / "out.jsonl")] == ["0", "1", "2", "3", "4", "Hello"]


def test_rows_of_the_wrong_kind_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds conversations.*preferences are needed"):
        import_rows([table(tmp_path, GOOD)], out=tmp_path / "out.jsonl", makes=Makes.PREFERENCES)
    pairs = [{"prompt": "p", "chosen": "a", "rejected": "b"}]
    with pytest.raises(DataError, match="holds preferences"):  # mixed files without a need that is stated
        import_rows([table(tmp_path, GOOD), table(tmp_path, pairs, "b.jsonl")], out=tmp_path / "out.jsonl", makes=None)


def test_a_format_may_be_named_and_is_then_not_guessed(tmp_path: Path) -> None:
    done = import_rows([table(tmp_path, GOOD)], out=tmp_path / "out.jsonl", makes=None, format="alpaca")
    assert (done.sources[0].format, done.sources[0].reason) == ("alpaca", "named")
    with pytest.raises(DataError, match="unknown format 'alpacca'"):
        find_format(table(tmp_path, GOOD), "alpacca", None)
    with pytest.raises(DataError, match="5 of 5 rows cannot be used"):
        import_rows([table(tmp_path, GOOD)], out=tmp_path / "out.jsonl", makes=None, format="sharegpt")


def test_a_file_in_which_no_row_can_be_used_is_an_error_also_when_rows_may_be_dropped(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(DataError, match=r"none of its 2 rows can be read: row 1 is not JSON"):
        import_rows([table(tmp_path, b"x\ny\n")], out=tmp_path / "a/out.jsonl", makes=None, on_defect="drop", rejected=tmp_path / "a/rejected.jsonl")
    with pytest.raises(DataError, match="none of 1 rows can be used"):
        rows = [{"instruction": "", "output": ""}]
        import_rows([table(tmp_path, rows)], out=tmp_path / "a/out.jsonl", makes=None, on_defect="drop", rejected=tmp_path / "a/rejected.jsonl")
    assert list((tmp_path / "a").iterdir()) == []


def test_a_file_that_changes_during_the_import_stops_it_and_nothing_is_written(tmp_path: Path) -> None:
    found = table(tmp_path, GOOD)
    steps = find_format(found, None, None).outcomes()
    next(steps)
    (tmp_path / "rows.jsonl").write_bytes(b"[]")
    with pytest.raises(DataError, match="changed while it was read"):
        import_rows([found], out=tmp_path / "out.jsonl", makes=None)
    assert not (tmp_path / "out.jsonl").exists()


def test_a_row_of_a_native_file_may_lack_its_id(tmp_path: Path) -> None:
    said = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    done = import_rows([table(tmp_path, [{"id": "a", "messages": said}, {"messages": said}])], out=tmp_path / "out.jsonl", makes=None)
    assert (done.sources[0].format, done.items, dict(done.defects)) == ("xwin", 2, {})
    with pytest.raises(DataError, match="another format"):
        rows = [{"id": "a", "messages": said}, {"instruction": "Hi", "output": "Ho"}]
        import_rows([table(tmp_path, rows)], out=tmp_path / "out.jsonl", makes=None)


def test_where_rows_cannot_be_dropped_the_fix_names_the_stage_that_can(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        import_rows([table(tmp_path, BAD)], out=tmp_path / "out.jsonl", makes=Makes.CONVERSATIONS)
    assert "put a `data` stage" in caught.value.fix


def test_a_tally_counts_a_row_once_for_each_of_its_defects(tmp_path: Path) -> None:
    rows = find_format(table(tmp_path, [*GOOD, {"instruction": "a &lt; b &gt; c", "input": "none", "output": "x &amp; y"}]), None, None)
    tally = Tally()
    for outcome in rows.outcomes():
        tally.add(rows.table.path, outcome)
    assert (tally.rows, tally.items, tally.dropped) == (6, 6, 0)
    assert (tally.defects[Defect.HTML_ENTITY], tally.defects[Defect.PLACEHOLDER_INPUT]) == (1, 1)
    tally.complain("")
