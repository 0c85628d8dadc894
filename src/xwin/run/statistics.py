"""How sure a number is: intervals and paired tests, thin over scipy. Everything here is 95 % and two-sided.

A share of yes and no gets `proportion`, a mean of numbers (a win rate with ties as one half, a length, a KL) gets `mean_interval`, two models
over the same prompts get `paired`. scipy.stats takes a second to import, so it is imported when it is used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95
"""Of every interval."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A value and the range it may lie in.  Example: Interval(0.8, 0.49, 0.94, n=10)"""

    value: float
    low: float
    high: float
    n: int
    """How many draws it rests on."""


@dataclass(frozen=True, slots=True)
class Paired:
    """Two models compared over the same prompts.  Example: Paired(0.4, 0.06, 0.74, p=0.021, n=20)"""

    difference: float
    """Share passed by the second minus share passed by the first."""
    low: float
    high: float
    p: float
    """Chance of a split at least this uneven if neither were better."""
    n: int
    """Prompts."""


def proportion(successes: float, n: int) -> Interval:
    """The Wilson score interval of a share (scipy.stats.binomtest).

    Args:
        successes: how many of `n`; a whole number (`mean_interval` is for halves).
        n: how many were tried. 0 gives the value nan in the interval [0, 1]: nothing is known.

    Raises:
        ValueError: not a whole number, or not in 0..n.
    """
    if successes != int(successes) or not 0 <= successes <= n:
        raise ValueError(f"successes must be a whole number in 0..{n}, not {successes}")
    if n == 0:
        return Interval(math.nan, 0.0, 1.0, 0)
    from scipy import stats

    low, high = stats.binomtest(int(successes), n).proportion_ci(CONFIDENCE, method="wilson")
    return Interval(successes / n, float(low), float(high), n)


def mean_interval(values: Sequence[float], *, bounds: tuple[float, float] = (-math.inf, math.inf)) -> Interval:
    """The mean and its Student t interval: mean +- t(n - 1) * standard deviation / sqrt(n).

    Args:
        values: independent numbers, one per prompt. One alone gives no width: low and high are nan; none gives nan throughout.
        bounds: what the mean can be at all; the interval is cut there (a win rate lies in 0..1).
    """
    n = len(values)
    if n == 0:
        return Interval(math.nan, math.nan, math.nan, 0)
    mean = math.fsum(values) / n
    if n == 1:
        return Interval(mean, math.nan, math.nan, 1)
    if min(values) == max(values):  # scipy has no t distribution of width 0
        return Interval(mean, mean, mean, n)
    from scipy import stats

    low, high = stats.t.interval(CONFIDENCE, n - 1, loc=mean, scale=stats.sem(values))
    return Interval(mean, max(float(low), bounds[0]), min(float(high), bounds[1]), n)


def paired(first: Sequence[bool], second: Sequence[bool]) -> Paired:
    """Is the second better? Exact McNemar test: a sign test (scipy.stats.binomtest) over the prompts on which the two differ.

    The interval of the difference is `mean_interval` over the prompts' differences (-1, 0, 1).

    Args:
        first: passed or not, per prompt.
        second: the same prompts in the same order. Where the two never differ, or there are none, p = 1.

    Raises:
        ValueError: not the same number of prompts.
    """
    gains = [int(b) - int(a) for a, b in zip(first, second, strict=True)]
    spread = mean_interval(gains, bounds=(-1.0, 1.0))
    won, differ = gains.count(1), gains.count(1) + gains.count(-1)
    if differ == 0:
        return Paired(spread.value, spread.low, spread.high, 1.0, spread.n)
    from scipy import stats

    return Paired(spread.value, spread.low, spread.high, float(stats.binomtest(won, differ).pvalue), spread.n)
