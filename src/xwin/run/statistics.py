"""How sure a number is: intervals and paired tests, thin over scipy. Everything here is 95 % and two-sided.

A share of yes and no gets `proportion`, a mean of numbers (a win rate with ties as one half, a length, a KL) gets `mean_interval` or, where the
published practice is to resample, `bootstrap_interval`. Two models over the same prompts get `paired` (passed or not) or `paired_means` (numbers);
`prompts_needed` says how many prompts would decide what is still open. scipy.stats takes a second to import, so it is imported when it is used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from xwin.seeds import generator

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


def bootstrap_interval(values: Sequence[float], *, seed: int, resamples: int = 2000) -> Interval:
    """The mean and its percentile bootstrap interval (scipy.stats.bootstrap): the values are drawn anew with replacement.

    Args:
        values: independent numbers, one per prompt; none or one give no width, as in `mean_interval`.
        seed: of the draws.
        resamples: how often they are drawn.
    """
    if len(values) < 2 or min(values) == max(values):
        return mean_interval(values)
    from scipy import stats

    found = stats.bootstrap(
        (np.asarray(values, dtype=float),),
        np.mean,
        n_resamples=resamples,
        batch=256,
        vectorized=True,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=generator(seed, "bootstrap"),
    ).confidence_interval
    return Interval(math.fsum(values) / len(values), float(found.low), float(found.high), len(values))


def paired_means(first: Sequence[float], second: Sequence[float]) -> Paired:
    """Is the mean of the second higher? Student's paired t test (scipy.stats.ttest_rel) and its interval of the difference.

    Args:
        first: a number per prompt.
        second: the same prompts in the same order. Where the two never differ, or there is one prompt alone, p = 1.

    Raises:
        ValueError: not the same number of prompts.
    """
    gains = [b - a for a, b in zip(first, second, strict=True)]
    spread = mean_interval(gains)
    if len(gains) < 2 or not any(gains):
        return Paired(spread.value, spread.low, spread.high, 1.0, spread.n)
    if min(gains) == max(gains):  # the same gain on every prompt: no spread to measure it by
        return Paired(spread.value, spread.low, spread.high, 0.0, spread.n)
    from scipy import stats

    return Paired(spread.value, spread.low, spread.high, float(stats.ttest_rel(second, first).pvalue), spread.n)


def prompts_needed(first: Sequence[float], second: Sequence[float], *, power: float = 0.8) -> int | None:
    """How many prompts a paired t test at 5 % needs in all to find a difference as large as the one seen.

    The smallest n with P(|T| > t(n - 1)) >= power, T noncentral t with n - 1 degrees of freedom and centre sqrt(n) * mean / sd of the gains
    (the power function that G*Power and statsmodels use).

    Args:
        first: a number per prompt.
        second: the same prompts in the same order.
        power: chance that the test then decides, in (0.05, 1).

    Returns:
        At least 2; None where no number would do: no difference was seen, or one prompt alone says nothing of the spread.
    """
    gains = np.asarray(second, dtype=float) - np.asarray(first, dtype=float)
    if len(gains) < 2 or gains.mean() == 0:
        return None
    spread = float(gains.std(ddof=1))
    if spread == 0:
        return 2
    effect = abs(float(gains.mean())) / spread
    from scipy import stats

    two_sided = 1 - (1 - CONFIDENCE) / 2
    n = max(2, math.floor(((stats.norm.ppf(two_sided) + stats.norm.ppf(power)) / effect) ** 2))  # the normal limit, always a little too small
    while True:
        edge, centre = stats.t.ppf(two_sided, n - 1), effect * math.sqrt(n)
        if stats.nct.sf(edge, n - 1, centre) + stats.nct.cdf(-edge, n - 1, centre) >= power:
            return n
        n += 1
