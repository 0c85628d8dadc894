"""Rows by index, and their order: a function of seed and position alone."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xwin.data._ids import Ids
from xwin.data.conversation import conversation_from_json
from xwin.data.formats import Makes
from xwin.data.sources import Mixture, load, open_conversations, open_preferences, window
from xwin.errors import DataError
from xwin.seeds import permutation


@given(st.integers(1, 12), st.integers(0, 2**40), st.integers(0, 40), st.integers(0, 40), st.integers(0, 40))
def test_a_stream_read_in_pieces_is_the_stream_read_at_once(rows: int, seed: int, start: int, first: int, second: int) -> None:
    data = list(range(rows))
    whole = window(data, seed, start, first + second)
    assert whole == window(data, seed, start, first) + window(data, seed, start + first, second)
    assert len(whole) == first + second


@given(st.integers(1, 12), st.integers(0, 2**40), st.integers(0, 5))
def test_every_epoch_holds_every_row_once(rows: int, seed: int, epoch: int) -> None:
    assert sorted(window(list(range(rows)), seed, epoch * rows, rows)) == list(range(rows))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    data = list(range(50))
    orders = [window(data, seed, epoch * 50, 50) for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4


@given(st.integers(1, 12), st.integers(0, 2**40), st.integers(0, 40), st.integers(0, 40))
def test_the_stream_is_the_one_that_whole_permutations_give(rows: int, seed: int, start: int, count: int) -> None:
    slow = [i for epoch in range(81) for i in permutation(rows, seed, "epoch", epoch)]
    assert window(range(rows), seed, start, count) == slow[start : start + count]


# ---------------------------------------------------------------- rows


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def chat(text: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "ok"}], **more}


def test_rows_are_what_reading_all_at_once_gives(tmp_path: Path) -> None:
    rows = [chat("a", id="x"), chat("b", meta={"k": [1]}), chat("a", id="x"), chat("b"), {"prompt": "Q", "answer": 4}, chat("c", label=True)]
    path = write(tmp_path / "rows.jsonl", rows)
    found = open_conversations(path, cache=tmp_path / "cache")
    whole = [conversation_from_json(row, "rows.jsonl") for row in rows]
    whole[2], whole[3] = replace(whole[2], id="x.1"), replace(whole[3], id=f"{whole[3].id}.1")  # of those that share an id
    assert list(found) == whole
    assert [found[i] for i in (3, -1, 0)] == [whole[i] for i in (3, -1, 0)]
    assert found[1:4] == whole[1:4]
    assert len({row.id for row in found}) == len(found) == 6
    answers = {"chosen": "a", "rejected": "b"}
    pairs = write(tmp_path / "pairs.jsonl", [{"prompt": "p", **answers, "margin": 2}, {"prompt": "q", **answers}])
    assert [(p.prompt[0].text, p.chosen.text, p.rejected.text, p.margin) for p in open_preferences(pairs, cache=tmp_path / "cache")] == [
        ("p", "a", "b", 2.0),
        ("q", "a", "b", None),
    ]


def numbered(names: list[str]) -> list[str]:
    """Names made unique with all of them at hand: a repeated one gets the next number with which no other, given or made, has its name."""
    made: list[str] = []
    for name in names:
        free = (f"{name}.{i}" for i in range(1, len(names) + 1) if f"{name}.{i}" not in {*names, *made})
        made.append(name if name not in made else next(free))
    return made


@given(st.lists(st.sampled_from(["a", "b", "a.1", "a.2", "a.1.1", "b.1"]), min_size=1, max_size=14))
def test_ids_are_made_unique_by_the_same_law_as_when_all_rows_are_held(names: list[str]) -> None:
    ids = Ids()
    for name in names:
        ids.add(name)
    found = ids.suffixes(lambda row: names[row])
    assert [f"{name}.{found.of(i)}" if found.of(i) else name for i, name in enumerate(names)] == numbered(names)


def test_rows_are_checked_once_and_what_was_found_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "rows.jsonl", [chat("a", id="x"), chat("b", id="x")])
    first = list(open_conversations(path, cache=tmp_path / "cache"))
    monkeypatch.setattr("xwin.data.sources.Ids", None)
    assert list(open_conversations(path, cache=tmp_path / "cache")) == first
    monkeypatch.undo()
    (remembered,) = (tmp_path / "cache").iterdir()
    remembered.write_bytes(b"broken")
    assert list(open_conversations(path, cache=tmp_path / "cache")) == first


def test_a_row_that_is_not_native_is_named_when_the_file_is_opened(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [chat("a"), {"messages": []}])
    with pytest.raises(DataError, match="has no messages") as caught:
        open_conversations(path, cache=tmp_path / "cache")
    assert caught.value.where == f"{path}:2"
    path.write_bytes(b'{"prompt": "a"}\n\n{"prompt"\n')
    with pytest.raises(DataError, match="not JSON") as caught:
        open_conversations(path, cache=tmp_path / "cache")
    assert caught.value.where == f"{path}:3"


def test_rows_of_a_file_that_changes_are_not_given(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [chat("a"), chat("b")])
    rows = open_conversations(path, cache=tmp_path / "cache")
    write(path, [chat("a"), chat("c")])
    with pytest.raises(DataError, match="changed while it was read"):
        rows[0]


def test_load_reads_a_native_file_where_it_lies_and_copies_others_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    native = write(tmp_path / "native.jsonl", [chat("a", id="1"), chat("b", id="2")])
    other = write(tmp_path / "other.jsonl", [{"instruction": "a", "output": "ok"}, {"instruction": "b", "output": "ok"}])
    cache = tmp_path / "cache"
    assert load(str(native), makes=Makes.CONVERSATIONS, cache=cache).path == native
    rows = load(str(other), makes=Makes.CONVERSATIONS, cache=cache)
    assert [row.messages for row in rows] == [row.messages for row in load(str(native), makes=Makes.CONVERSATIONS, cache=cache)]
    assert rows.path.parent == cache
    monkeypatch.setattr("xwin.data.sources.import_rows", None)
    monkeypatch.setattr("xwin.data.sources.find_format", None)
    for path in (native, other):
        assert len(load(str(path), makes=Makes.CONVERSATIONS, cache=cache)) == 2
    monkeypatch.undo()
    write(other, [{"instruction": "c", "output": "ok"}])
    assert [row.messages[0].text for row in load(str(other), makes=Makes.CONVERSATIONS, cache=cache)] == ["c"]


def test_what_is_remembered_of_a_copy_does_not_make_the_file_native(tmp_path: Path) -> None:
    other = write(tmp_path / "other.jsonl", [{"prompt": "Q", "answer": 4}])  # can be read as native, but prompts make "4" of it
    cache = tmp_path / "cache"
    first = load(str(other), makes=Makes.CONVERSATIONS, cache=cache)
    assert (first.path.parent, first[0].meta) == (cache, {"answer": "4"})
    first.path.unlink()
    again = load(str(other), makes=Makes.CONVERSATIONS, cache=cache)
    assert (again.path, again[0].meta) == (first.path, {"answer": "4"})


def test_another_way_of_reading_files_makes_other_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = write(tmp_path / "other.jsonl", [{"instruction": "a", "output": "ok"}])
    first = load(str(other), makes=Makes.CONVERSATIONS, cache=tmp_path / "cache").path
    monkeypatch.setattr("xwin.data.sources.FILES_REVISION", 99)
    assert load(str(other), makes=Makes.CONVERSATIONS, cache=tmp_path / "cache").path != first


def test_load_reads_patterns_packed_files_and_named_formats(tmp_path: Path) -> None:
    import gzip

    write(tmp_path / "b.jsonl", [chat("b")])
    write(tmp_path / "a.jsonl", [{"instruction": "a", "output": "ok"}])
    (tmp_path / "c.jsonl").write_bytes(gzip.compress((tmp_path / "b.jsonl").read_bytes().replace(b'"b"', b'"c"')))
    rows = load(f"{tmp_path}/*.jsonl", makes=Makes.CONVERSATIONS, cache=tmp_path / "cache")
    assert [row.messages[0].text for row in rows] == ["a", "b", "c"]
    (row,) = load(f"{tmp_path}/a.jsonl", makes=Makes.CONVERSATIONS, cache=tmp_path / "cache", format="alpaca")
    assert row.messages[0].text == "a"


def test_load_lists_all_rows_that_cannot_be_used_in_native_files_too(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [chat("a", id="1"), chat(" ", id="2"), {"id": "3", "messages": []}])
    with pytest.raises(DataError, match="2 of 3 rows cannot be used"):
        load(str(path), makes=Makes.CONVERSATIONS, cache=tmp_path / "cache")
    with pytest.raises(DataError, match="preferences are needed"):
        load(str(path), makes=Makes.PREFERENCES, cache=tmp_path / "cache")


# ---------------------------------------------------------------- mixtures

WEIGHTS = st.sampled_from([0.1, 0.25, 0.3, 1.0, 1.5, 2.5, 3.0, 0.7])


@st.composite
def mixtures(draw: st.DrawFn) -> Mixture[str]:
    sizes = draw(st.lists(st.integers(1, 9), min_size=1, max_size=3))
    sources = [[f"{name}{i}" for i in range(size)] for name, size in zip("abc", sizes, strict=False)]
    return Mixture(sources, [draw(WEIGHTS) for _ in sources])


@given(mixtures(), st.integers(0, 99), st.integers(0, 60), st.integers(0, 20), st.integers(0, 20))
def test_a_mixture_read_in_pieces_is_the_mixture_read_at_once(mixed: Mixture[str], seed: int, start: int, first: int, second: int) -> None:
    whole = mixed.window(seed, start, first + second)
    assert whole == mixed.window(seed, start, first) + mixed.window(seed, start + first, second)
    assert len(whole) == first + second


@given(mixtures(), st.integers(0, 99), st.integers(1, 12))
def test_after_any_number_of_epochs_every_row_came_as_often_as_its_weight_says(mixed: Mixture[str], seed: int, epochs: int) -> None:
    seen = Counter(row for epoch in range(epochs) for row in mixed.epoch(seed, epoch))
    for source, weight in zip(mixed.sources, mixed.weights, strict=True):
        due = math.floor(round(epochs * weight * len(source), 9))
        assert sum(seen[row] for row in source) == due
        assert {seen[row] for row in source} <= {due // len(source), due // len(source) + 1}
    assert mixed.start(epochs) == sum(seen.values())


@given(mixtures(), st.integers(0, 200))
def test_a_position_lies_in_the_epoch_that_is_said(mixed: Mixture[str], position: int) -> None:
    epoch = mixed.epoch_at(position)
    assert mixed.start(epoch) <= position < mixed.start(epoch + 1)


def test_a_weight_of_two_and_a_half_gives_other_halves_in_other_epochs() -> None:
    rows = list(range(20))
    mixed = Mixture([rows, [-1, -2]], [2.5, 1])
    first, second = (Counter(mixed.epoch(7, epoch)) for epoch in (0, 1))
    thrice = [{row for row in rows if seen[row] == 3} for seen in (first, second)]
    assert [len(part) for part in thrice] == [10, 10]
    assert thrice[0] | thrice[1] == set(rows)
    assert all(seen[row] >= 2 for seen in (first, second) for row in rows)
    assert (first[-1], first[-2], second[-1], second[-2]) == (1, 1, 1, 1)


def test_a_mixture_is_mixed_and_differs_by_epoch_and_seed() -> None:
    mixed = Mixture([["a"] * 500, ["b"] * 500], [1, 1])
    order = list(mixed.epoch(3, 0))
    assert 200 < order[:500].count("a") < 300
    numbers = Mixture([list(range(50))], [1])
    orders = [tuple(numbers.epoch(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)]
    assert len(set(orders)) == 4
    assert numbers.epoch(0, 0)[-1] == orders[0][-1]
    assert numbers.epoch(0, 0)[3:5] == list(orders[0][3:5])
    assert list(numbers.epoch(0, 0)) == list(numbers.epoch(0, 0))


def test_a_small_weight_still_comes_in_the_end() -> None:
    mixed = Mixture([["a"]], [0.01])
    assert [len(mixed.epoch(0, epoch)) for epoch in (0, 98, 99, 100)] == [0, 0, 1, 0]
    assert mixed.window(0, 0, 3) == ["a"] * 3


@pytest.mark.parametrize(
    ("sources", "weights", "says"),
    [
        ([], [], "a weight for each source"),
        ([[1]], [1, 2], "a weight for each"),
        ([[1]], [0], "positive"),
        ([[1]], [math.nan], "positive"),
        ([[]], [1], "no rows"),
    ],
)
def test_a_mixture_that_cannot_be_is_an_error(sources: list[list[int]], weights: list[float], says: str) -> None:
    with pytest.raises(DataError, match=says):
        Mixture(sources, weights)
