"""How rows become optimizer steps: every row once an epoch, no bond split, a function of rows and seed alone."""

import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xwin.data.batch import Sample
from xwin.data.store import Pool, stored
from xwin.errors import DataError
from xwin.stages import _training


def sample(name: str, length: int, bond: str | None = None) -> Sample:
    return Sample(name, (5,) * length, (False, *(True,) * (length - 1)), bond=bond)


def cut(*sources: Sequence[Sample], tokens: int, epochs: int, seed: int, weights: Sequence[float] = ()) -> list[list[Sample]]:
    """The samples of each step."""
    with tempfile.TemporaryDirectory() as folder:
        pool = Pool(tuple(stored(Path(folder) / str(i), lambda _, rows=rows: rows) for i, rows in enumerate(sources)))
        return list(_training.cut(pool, tokens=tokens, epochs=epochs, seed=seed, weights=weights))


def names(steps: list[list[Sample]]) -> list[list[str]]:
    return [[s.id for s in step] for step in steps]


ROWS = st.lists(st.integers(2, 40), min_size=1, max_size=30).map(lambda sizes: [sample(str(i), n) for i, n in enumerate(sizes)])


@given(rows=ROWS, tokens=st.integers(16, 100), epochs=st.integers(1, 3), seed=st.integers(0, 99))
def test_every_row_is_seen_once_an_epoch_and_no_step_is_too_long(rows: list[Sample], tokens: int, epochs: int, seed: int) -> None:
    steps = cut(rows, tokens=tokens, epochs=epochs, seed=seed)
    assert Counter(s.id for step in steps for s in step) == {row.id: epochs for row in rows}
    assert all(steps)
    assert all(sum(len(s.tokens) for s in step) <= tokens or len(step) == 1 for step in steps)
    assert names(steps) == names(cut(rows, tokens=tokens, epochs=epochs, seed=seed))


@given(rows=ROWS, seed=st.integers(0, 99))
def test_a_step_is_closed_only_when_the_next_row_would_not_fit(rows: list[Sample], seed: int) -> None:
    steps = cut(rows, tokens=50, epochs=1, seed=seed)
    for this, following in zip(steps, steps[1:], strict=False):
        assert sum(len(s.tokens) for s in this) + len(following[0].tokens) > 50


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    rows = [sample(str(i), 2) for i in range(20)]
    two = [name for step in names(cut(rows, tokens=40, epochs=2, seed=1)) for name in step]
    assert two[:20] != two[20:]
    assert two != [name for step in names(cut(rows, tokens=40, epochs=2, seed=2)) for name in step]


def test_more_epochs_begin_with_the_steps_of_fewer() -> None:
    rows = [sample(str(i), 5) for i in range(7)]
    assert names(cut(rows, tokens=10, epochs=3, seed=1))[:8] == names(cut(rows, tokens=10, epochs=2, seed=1))


def test_a_pair_stays_together_and_in_order_even_when_it_is_too_long() -> None:
    rows = [sample(f"{i}/{side}", 30, bond=str(i)) for i in range(5) for side in ("chosen", "rejected")]
    steps = names(cut(rows, tokens=50, epochs=1, seed=3))
    assert sorted(steps) == [[f"{i}/chosen", f"{i}/rejected"] for i in range(5)]


def test_weights_say_how_often_an_epoch_holds_each_source() -> None:
    """2.5 = every row twice and half of them once more; in the next epoch the other half."""
    chat, maths = [sample(f"c{i}", 3) for i in range(8)], [sample(f"m{i}", 3) for i in range(6)]
    epochs = [Counter(s.id for step in cut(chat, maths, tokens=9, epochs=n, seed=4, weights=(1.0, 2.5)) for s in step) for n in (1, 2)]
    assert all(epochs[0][s.id] == 1 for s in chat)
    assert sorted(epochs[0][s.id] for s in maths) == [2, 2, 2, 3, 3, 3]
    assert {s.id: epochs[1][s.id] for s in maths} == dict.fromkeys((s.id for s in maths), 5)


def test_sources_keep_their_own_bonds() -> None:
    """Two sources number their bonds alike; that does not make them one."""
    first, second = ([sample(f"{name}{side}", 5, bond="0") for side in "ab"] for name in "xy")
    steps = cut(first, second, tokens=10, epochs=1, seed=0)
    assert sorted(names(steps)) == [["xa", "xb"], ["ya", "yb"]]
    assert len({s.bond for step in steps for s in step}) == 2


def test_weights_that_leave_nothing_are_an_error() -> None:
    with pytest.raises(DataError, match="no row falls into 1 epochs"):
        cut([sample("a", 3)], tokens=9, epochs=1, seed=0, weights=(0.001,))
