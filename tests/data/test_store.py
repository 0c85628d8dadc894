"""Samples on disk come back as they were, are made once, and are never found half made."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xwin.data.batch import Sample
from xwin.data.store import CHUNK, Pool, stored
from xwin.errors import DataError

ROWS = [
    Sample("é/chosen", (1, 5, 70000), (False, True, True), {"margin": 0.5, "weight": (0.0, 1.0, 0.25)}, bond="é"),
    Sample("é/rejected", (1, 5), (False, True), {"margin": 0.5, "weight": (0.0, 2.0)}, bond="é"),
    Sample("alone", (9,), (False,), {"margin": -1.0, "weight": (0.0,)}),
]


def same(found: Sample, given_: Sample) -> bool:
    """Equal but for the bond, which comes back as a number."""
    return (found.id, found.tokens, found.mask, found.columns) == (given_.id, given_.tokens, given_.mask, given_.columns)


def test_samples_come_back_as_they_were(tmp_path: Path) -> None:
    store = stored(tmp_path / "a", lambda _: ROWS)
    assert all(same(found, row) for found, row in zip(store, ROWS, strict=True))
    assert [s.bond for s in store] == ["0", "0", None]
    assert store.lengths.tolist() == [3, 2, 1]
    assert store.bonds.tolist() == [0, 0, -1]
    assert same(store[-1], ROWS[2])
    assert [s.id for s in store[1:]] == ["é/rejected", "alone"]
    with pytest.raises(IndexError):
        store[3]


def test_the_second_time_nothing_is_made(tmp_path: Path) -> None:
    def never(_: Counter[str]) -> Iterator[Sample]:
        raise AssertionError("made again")

    stored(tmp_path / "a", lambda _: ROWS)
    assert len(stored(tmp_path / "a", never)) == 3


def test_what_fails_on_the_way_leaves_nothing(tmp_path: Path) -> None:
    def broken(_: Counter[str]) -> Iterator[Sample]:
        yield from ROWS
        raise DataError("row 4 is bad")

    with pytest.raises(DataError, match="row 4"):
        stored(tmp_path / "a", broken)
    assert list(tmp_path.iterdir()) == []
    assert len(stored(tmp_path / "a", lambda _: ROWS)) == 3


def test_counts_of_the_maker_are_kept(tmp_path: Path) -> None:
    def make(tally: Counter[str]) -> Iterator[Sample]:
        for row in ROWS:
            yield row
            tally["dropped"] += 2

    assert stored(tmp_path / "a", make).tally == {"dropped": 6}
    assert stored(tmp_path / "a", make).tally == {"dropped": 6}


def test_all_samples_carry_the_same_columns(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="b: has the columns"):
        stored(tmp_path / "a", lambda _: [ROWS[0], Sample("b", (1,), (False,))])


def test_no_samples_are_an_empty_store(tmp_path: Path) -> None:
    assert len(stored(tmp_path / "a", lambda _: [])) == 0


@given(sizes=st.lists(st.integers(1, 4), min_size=1, max_size=3 * CHUNK // 1000 + 40))
def test_chunks_do_not_show(tmp_path_factory: pytest.TempPathFactory, sizes: list[int]) -> None:
    rows = [Sample(str(i), tuple(range(n)), (False,) * n) for i, n in enumerate(sizes)]
    store = stored(tmp_path_factory.mktemp("store") / "a", lambda _: rows)
    assert all(same(found, row) for found, row in zip(store, rows, strict=True))


def test_many_samples_cross_the_chunks(tmp_path: Path) -> None:
    rows = [Sample(f"row {i}", (i, i + 1), (False, True)) for i in range(2 * CHUNK + 7)]
    store = stored(tmp_path / "a", lambda _: rows)
    assert all(same(store[i], rows[i]) for i in (0, CHUNK - 1, CHUNK, 2 * CHUNK, 2 * CHUNK + 6))
    assert store.lengths.sum() == 2 * len(rows)


def test_a_pool_is_its_stores_end_to_end(tmp_path: Path) -> None:
    pool = Pool((stored(tmp_path / "a", lambda _: ROWS), stored(tmp_path / "b", lambda _: ROWS[:2])))
    assert [s.id for s in pool] == ["é/chosen", "é/rejected", "alone", "é/chosen", "é/rejected"]
    assert [s.bond for s in pool] == ["0/0", "0/0", None, "1/0", "1/0"]
    assert np.array_equal(pool.units, [0, 0, 1, 2, 2])
    assert np.array_equal(pool.sources, [0, 0, 0, 1, 1])
    assert same(pool[-1], ROWS[1])


def test_old_drafts_are_swept_and_fresh_ones_are_somebody_elses(tmp_path: Path) -> None:
    old, fresh = tmp_path / ".a.v1.old", tmp_path / ".a.v1.new"
    for draft in (old, fresh):
        draft.mkdir()
    os.utime(old, (0, 0))
    stored(tmp_path / "a", lambda _: ROWS)
    assert not old.exists()
    assert fresh.exists()


def test_a_cache_may_be_shared(tmp_path: Path) -> None:
    """Others may read what one user tokenised, as far as the umask lets them."""
    mask = os.umask(0o022)
    try:
        folder = stored(tmp_path / "a", lambda _: ROWS).folder
    finally:
        os.umask(mask)
    assert folder.stat().st_mode & 0o777 == 0o755
