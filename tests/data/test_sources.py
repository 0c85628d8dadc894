"""The order of rows: a function of seed and position alone."""

from hypothesis import given
from hypothesis import strategies as st

from xwin.data.sources import window


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
