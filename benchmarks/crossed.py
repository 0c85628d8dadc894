"""What is sure of a mean over seeds and prompts, where every seed was tested on the same prompts.

A number y[s, p] is the grand mean plus what is peculiar to a seed, to a prompt, and to the two together, all drawn at random. Seeds as well as
prompts could have been others, so the variance of the mean has a part from each (two-way random effects, one number a cell):

    V = (MS_seeds + MS_prompts - MS_rest) / (S P)

with the usual mean squares; a mean square below MS_rest counts as MS_rest. Degrees of freedom by Satterthwaite (1946, "An approximate distribution
of estimates of variance components", Biometrics Bulletin 2, p. 110). Of one seed it is Student's t over prompts, which says nothing of other seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from xwin.run.statistics import CONFIDENCE


@dataclass(frozen=True, slots=True)
class Crossed:
    """A mean, its 95 % interval, and the p of a two-sided test that it is 0.  Example: Crossed(0.4, 0.1, 0.7, 0.012, seeds=3, prompts=120)"""

    mean: float
    low: float
    high: float
    p: float
    seeds: int
    prompts: int


def crossed(values: Sequence[Sequence[float]]) -> Crossed:
    """The mean of all values and how sure it is.

    Args:
        values: [S][P] of each seed a number per prompt, the prompts in one order. One seed and one prompt alone give no width: nan. Nor do
            numbers that are all the same: p is then the sign test's over prompts.
    """
    table = np.asarray(values, dtype=float)
    seeds, prompts = table.shape
    mean, variance, freedom = float(table.mean()), *_spread(table)
    if not freedom:
        return Crossed(mean, math.nan, math.nan, math.nan, seeds, prompts)
    if variance == 0:
        return Crossed(mean, math.nan, math.nan, 2.0 ** (1 - prompts) if mean else 1.0, seeds, prompts)
    from scipy import stats

    error = math.sqrt(variance)
    width = float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom)) * error
    return Crossed(mean, mean - width, mean + width, float(2 * stats.t.sf(abs(mean) / error, freedom)), seeds, prompts)


def _spread(table: np.ndarray) -> tuple[float, float]:
    """The variance of the mean and its degrees of freedom; 0 of them where nothing is known."""
    seeds, prompts = table.shape
    of_seeds, of_prompts = table.mean(1, keepdims=True), table.mean(0, keepdims=True)
    if seeds == 1 or prompts == 1:
        line = (of_prompts if seeds == 1 else of_seeds).ravel()
        return (float(line.var(ddof=1)) / len(line), len(line) - 1.0) if len(line) > 1 else (0.0, 0.0)
    free = (seeds - 1, prompts - 1, (seeds - 1) * (prompts - 1))
    rest = float(((table - of_seeds - of_prompts + table.mean()) ** 2).sum()) / free[2]
    squares = (max(prompts * float(of_seeds.var(ddof=1)), rest), max(seeds * float(of_prompts.var(ddof=1)), rest), rest)
    parts = [square / table.size for square in squares]
    variance = parts[0] + parts[1] - parts[2]
    uncertain = sum(part**2 / degrees for part, degrees in zip(parts, free, strict=True))
    return variance, variance**2 / uncertain if uncertain else 1.0


def holm(ps: Sequence[float]) -> list[float]:
    """p-values that may be read together: that any is below 0.05 by chance happens in one table of twenty (Holm 1979, "A simple sequentially
    rejective multiple test procedure", Scandinavian Journal of Statistics 6, p. 65)."""
    order = sorted(range(len(ps)), key=lambda i: ps[i])
    found, highest = [0.0] * len(ps), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(ps) - rank) * ps[i]))
        found[i] = highest
    return found
