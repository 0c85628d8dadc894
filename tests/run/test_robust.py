"""Robust statistics, against numbers worked out by hand and against slow definitions."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xwin.run.robust import spike_bound, trend

NUMBERS = st.lists(st.integers(-50, 50), min_size=3, max_size=12)


def test_the_bound_of_a_spike_by_hand() -> None:
    """Median 3; deviations 2, 1, 0, 1, 97, so their median is 1: one wild value moves neither."""
    assert spike_bound([1, 2, 3, 4, 100], 2) == pytest.approx(3 + 2 * 1.4826)


def test_values_that_do_not_move_have_a_hundredth_of_their_size_as_spread() -> None:
    assert spike_bound([2.0, 2.0, 2.0], 5) == pytest.approx(2.1)
    assert spike_bound([-2.0, -2.0, -2.0], 5) == pytest.approx(-1.9)
    assert spike_bound([0.0, 0.0, 0.0], 5) == 0.0


def test_the_trend_by_hand() -> None:
    """Five rising values: S = 10, variance 5 * 4 * 15 / 18 = 16.67, so z = 9 / 4.08."""
    assert trend([1, 2, 3, 4, 5]) == pytest.approx(9 / math.sqrt(50 / 3))
    assert trend([5, 4, 3, 2, 1]) == pytest.approx(-9 / math.sqrt(50 / 3))
    assert trend([1, 1]) == 0.0


@given(NUMBERS, st.integers(-9, 9), st.sampled_from([1, 3]))
def test_a_trend_does_not_change_with_unit_or_zero(values: list[int], shift: int, scale: int) -> None:
    assert trend([shift + scale * value for value in values]) == trend(values)
    assert trend([-value for value in values]) == -trend(values)
    assert trend(values[::-1]) == -trend(values)


@given(NUMBERS, st.sampled_from([2.0, 8.0]))
def test_the_bound_moves_with_the_values_and_a_single_wild_one_hardly_moves_it(values: list[int], deviations: float) -> None:
    bound = spike_bound(values, deviations)
    assert spike_bound([value * 2 for value in values], deviations) == pytest.approx(2 * bound)
    assert bound >= sorted(values)[(len(values) - 1) // 2]
