"""Reliability, calibration error and temperature against numbers by hand."""

import math

import numpy as np
import pytest
from scipy.optimize import brentq

from xwin.run.calibration import HOTTEST, calibration_error, fit_temperature, reliability
from xwin.run.cards import Bin


def test_bins_and_their_error_by_hand() -> None:
    """[0.5, 0.6): 0.5 and 0.55, one right. [0.6, 0.7): 0.6, wrong. [0.9, 1]: 0.95 and 1, both right.
    Error: 2/5 |0.525 - 0.5| + 1/5 |0.6 - 0| + 2/5 |0.975 - 1| = 0.01 + 0.12 + 0.01."""
    bins = reliability([0.5, 0.55, 0.6, 0.95, 1.0], [1, 0, 0, 1, 1], low=0.5, bins=5)
    assert [(b.n, b.confidence, b.right) for b in bins] == [(2, pytest.approx(0.525), 0.5), (1, 0.6, 0.0), (2, pytest.approx(0.975), 1.0)]
    assert [(b.low, b.high) for b in bins] == [pytest.approx(pair) for pair in ((0.5, 0.6), (0.6, 0.7), (0.9, 1.0))]
    assert calibration_error(bins) == pytest.approx(0.14)


def test_a_probability_on_an_edge_is_in_the_upper_bin() -> None:
    """0.3 / 0.1 is 2.9999999999999996 in floating point."""
    edges = [k / 10 for k in range(10)]
    assert [b.n for b in reliability(edges, [1] * 10)] == [1] * 10


def test_ties_count_one_half() -> None:
    assert reliability([0.5, 0.5], [0.5, 0.5], low=0.5) == (Bin(0.5, 0.55, 2, 0.5, 0.5),)


def test_the_temperature_of_equal_margins_by_hand() -> None:
    """40 pairs whose scores differ by 2, 30 of them the right way. The target is 41/42 on the better side, so the likely share of the winner
    is p = (30 * 41 + 10 * 1) / (40 * 42) = 1240 / 1680, and sigmoid(2 / T) = p gives T = 2 / log(p / (1 - p)) = 1.931."""
    logits = [2.0] * 30 + [-2.0] * 10
    p = 1240 / 1680
    assert fit_temperature(logits, [1.0] * 40) == pytest.approx(2 / math.log(p / (1 - p)), rel=1e-5)


def test_the_temperature_is_where_the_slope_is_zero() -> None:
    """A second way: the root of the derivative in b = 1 / T, sum of z (sigmoid(b z) - target) = 0."""
    random = np.random.Generator(np.random.Philox(3))
    z = random.normal(0, 3, 200)
    y = (random.random(200) < 1 / (1 + np.exp(-0.4 * z))).astype(float)
    ones, zeros = y.sum(), (1 - y).sum()
    target = np.where(y == 1, (ones + 1) / (ones + 2), 1 / (zeros + 2))
    root = brentq(lambda b: float((z * (1 / (1 + np.exp(-b * z)) - target)).sum()), 1e-3, 50)
    found = fit_temperature(z.tolist(), y.tolist())
    assert found == pytest.approx(1 / root, rel=1e-5)
    assert found == pytest.approx(1 / 0.4, rel=0.3), "the labels were drawn at a temperature of 2.5"


def test_scores_that_are_all_right_have_a_finite_temperature() -> None:
    found = fit_temperature([1.0] * 50, [1.0] * 50)
    assert found == pytest.approx(1 / math.log(51), rel=1e-5)


def test_scores_that_say_the_opposite_get_the_highest_temperature() -> None:
    assert fit_temperature([-1.0] * 50, [1.0] * 50) == pytest.approx(HOTTEST, rel=1e-3)


def test_far_logits_are_finite() -> None:
    assert 0 < fit_temperature([1e4, -1e4, 5.0] * 20, [1.0] * 60) <= HOTTEST
