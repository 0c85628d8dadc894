"""How sure a number is: intervals and paired tests, thin over scipy. Everything here is 95 % and two-sided.

A share of yes and no gets `proportion`, a mean of numbers (a win rate with ties as one half, a length, a KL) gets `mean_interval` or, where the
published practice is to resample, `bootstrap_interval`; where several values belong to one prompt, `clustered`. Two models over the same prompts get
`paired` (passed or not) or `paired_means` (numbers); `prompts_needed` says how many prompts would decide what is still open. scipy.stats takes a
second to import, so it is imported when it is used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from xwin.seeds import generator

CONFIDENCE = 0.95
"""Of every interval."""

Bounds = tuple[float, float]
"""What a mean can be at all: a win rate lies in 0..1."""
ANYTHING: Bounds = (-math.inf, math.inf)


@dataclass(frozen=True, slots=True)
class Interval:
    """A value and the range it may lie in.  Example: Interval(0.8, 0.49, 0.94, n=10)"""

    value: float
    low: float
    high: float
    n: int
    """How many draws it rests on."""

    def scaled(self, factor: float) -> Interval:
        """The same in another unit: a share times 100 is percent."""
        return Interval(factor * self.value, factor * self.low, factor * self.high, self.n)


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


def mean_interval(values: Sequence[float], *, bounds: Bounds = ANYTHING) -> Interval:
    """The mean and its Student t interval: mean +- t(n - 1) * standard deviation / sqrt(n).

    Values that are all the same have no spread, which does not make them sure. Where both bounds are finite, Wilson's interval of 0 of n says how
    large a share u of all prompts may have another value, and those may lie anywhere: from mean - u (mean - lower) to mean + u (upper - mean).
    Of n times 0, or n times 1, in 0..1 this is Wilson's interval itself. Without bounds there is nothing to say, and the width is 0.

    Args:
        values: independent numbers, one per prompt. One alone gives no width: low and high are nan; none gives nan throughout.
        bounds: the interval is cut there.
    """
    n = len(values)
    if n == 0:
        return Interval(math.nan, math.nan, math.nan, 0)
    mean = math.fsum(values) / n
    if n == 1:
        return Interval(mean, math.nan, math.nan, 1)
    least, most = bounds
    if min(values) == max(values):  # scipy has no t distribution of width 0
        if not math.isfinite(most - least):
            return Interval(mean, mean, mean, n)
        other = proportion(0, n).high
        return Interval(mean, mean - other * (mean - least), mean + other * (most - mean), n)
    from scipy import stats

    low, high = stats.t.interval(CONFIDENCE, n - 1, loc=mean, scale=stats.sem(values))
    return Interval(mean, max(float(low), least), min(float(high), most), n)


def clustered(groups: Sequence[Sequence[float]]) -> Interval:
    """The mean of values in 0..1 of which those of a group belong together, as all votes on one pair do: only groups are independent.

    Student's t over groups, by `ratio_error`; Wilson's interval where every group says yes or no as a whole, and where all say the same
    what `mean_interval` says of it.

    Args:
        groups: values of each, at least one; none gives nan throughout.
    """
    values = [value for group in groups for value in group]
    if not values:
        return mean_interval([])
    shares = [math.fsum(group) / len(group) for group in groups]
    alike = len({len(group) for group in groups}) == 1 or len(set(shares)) == 1
    if alike and set(shares) <= {0.0, 1.0}:
        return proportion(sum(shares), len(groups))
    mean = math.fsum(values) / len(values)
    if len(set(shares)) == 1:
        return mean_interval(shares, bounds=(0.0, 1.0))
    from scipy import stats

    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(groups) - 1)) * ratio_error(groups)
    return Interval(mean, max(mean - half, 0.0), min(mean + half, 1.0), len(groups))


def ratio_error(groups: Sequence[Sequence[float]]) -> float:
    """Standard error of the mean over all values of several groups: that of a ratio estimator (Cochran 1977, "Sampling techniques", section 2.11),
    sd of (sum - mean * count) over groups, by sqrt(groups) * mean count. 0 of one group, of which nothing is known.

    Args:
        groups: at least one, of at least one value each.
    """
    n, count = len(groups), sum(map(len, groups))
    if n < 2:
        return 0.0
    mean = math.fsum(map(math.fsum, groups)) / count
    off = [math.fsum(group) - mean * len(group) for group in groups]  # their mean is 0
    return math.sqrt(math.fsum(x * x for x in off) / (n - 1) * n) / count


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


def bootstrap_interval(values: Sequence[float], *, seed: int, bounds: Bounds = ANYTHING, resamples: int = 2000) -> Interval:
    """The mean and its percentile bootstrap interval (scipy.stats.bootstrap): the values are drawn anew with replacement.

    Args:
        values: independent numbers, one per prompt; none, one, or several that are all the same as in `mean_interval`.
        seed: of the draws.
        bounds: what the mean can be at all.
        resamples: how often they are drawn.
    """
    if len(values) < 2 or min(values) == max(values):
        return mean_interval(values, bounds=bounds)
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


def paired_means(first: Sequence[float], second: Sequence[float], *, bounds: Bounds = ANYTHING) -> Paired:
    """Is the mean of the second higher? Student's paired t test (scipy.stats.ttest_rel) and its interval of the difference.

    Where every prompt gains the same there is no spread to measure the gain by: the sign test counts the prompts then.

    Args:
        first: a number per prompt.
        second: the same prompts in the same order. Where the two never differ, or there is one prompt alone, p = 1.
        bounds: what the difference can be at all: -1 and 1 of shares.

    Raises:
        ValueError: not the same number of prompts.
    """
    gains = [b - a for a, b in zip(first, second, strict=True)]
    spread = mean_interval(gains, bounds=bounds)
    if len(gains) < 2 or not any(gains):
        return Paired(spread.value, spread.low, spread.high, 1.0, spread.n)
    if _alike(gains):
        return Paired(spread.value, spread.low, spread.high, 2.0 ** (1 - spread.n), spread.n)
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
        At least 2; None where no number would do: no difference was seen, or one prompt alone says nothing of the spread. Where every prompt
        gains the same, as many as the sign test needs.
    """
    gains = np.asarray(second, dtype=float) - np.asarray(first, dtype=float)
    if len(gains) < 2 or gains.mean() == 0:
        return None
    if _alike(gains.tolist()):
        return math.ceil(1 - math.log2(1 - CONFIDENCE))
    effect = abs(float(gains.mean())) / float(gains.std(ddof=1))
    from scipy import stats

    two_sided = 1 - (1 - CONFIDENCE) / 2
    n = max(2, math.floor(((stats.norm.ppf(two_sided) + stats.norm.ppf(power)) / effect) ** 2))  # the normal limit, always a little too small
    while True:
        edge, centre = stats.t.ppf(two_sided, n - 1), effect * math.sqrt(n)
        if stats.nct.sf(edge, n - 1, centre) + stats.nct.cdf(-edge, n - 1, centre) >= power:
            return n
        n += 1


def _alike(gains: Sequence[float]) -> bool:
    """Whether all are the same but for rounding."""
    return max(gains) - min(gains) <= 1e-9 * max(map(abs, gains))
