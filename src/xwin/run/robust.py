"""Robust statistics of a metric's last values: where a spike begins, and whether it rises or falls. A few wild values do not move them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

NORMAL = 1.4826
"""Standard deviations of a normal distribution in one median absolute deviation."""

SMALLEST_SPREAD = 0.01
"""Of the median: a metric that hardly moves has at least this standard deviation, so that rounding is no spike."""


def spike_bound(values: Sequence[float], deviations: float) -> float:
    """median + deviations * 1.4826 * MAD: the modified z-score of Iglewicz and Hoaglin 1993 ("How to detect and handle outliers", section 3.3).

    Args:
        values: at least one, of one metric.
        deviations: robust standard deviations above the median, unitless.
    """
    middle = median(values)
    spread = NORMAL * median(abs(value - middle) for value in values)
    return middle + deviations * max(spread, SMALLEST_SPREAD * abs(middle))


def trend(values: Sequence[float]) -> float:
    """Whether the values rise (above 0) or fall: the z of the test of Mann 1945 and Kendall 1975, about normal where there is no trend.

        S = sum_{i<j} sign(x_j - x_i),  z = (S - sign S) / sqrt(n (n - 1) (2n + 5) / 18)

    The correction for ties is left out: with ties |z| is a little too small.

    Args:
        values: in order of time, at least two.
    """
    n = len(values)
    steps = [later - earlier for i, earlier in enumerate(values) for later in values[i + 1 :]]
    rise = sum((step > 0) - (step < 0) for step in steps)
    return (rise - ((rise > 0) - (rise < 0))) / math.sqrt(n * (n - 1) * (2 * n + 5) / 18)
