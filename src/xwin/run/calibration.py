"""Whether a confidence of 80 % is right 80 % of the time; and one number that makes it so, as far as one number can.

Guo et al. 2017, arXiv:1706.04599: reliability and expected calibration error (section 2), temperature scaling (section 4.2).
scipy.optimize takes a while to import, so it is imported when it is used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from xwin.run.cards import Bin

COLDEST, HOTTEST = 0.01, 100.0
"""Between which a temperature is looked for."""


def reliability(probability: Sequence[float], right: Sequence[float], *, low: float = 0.0, bins: int = 10) -> tuple[Bin, ...]:
    """Bins of equal width over [low, 1] that hold anything, from the least sure to the surest.

    Args:
        probability: [N] in [low, 1].
        right: [N] 1 where it came true, 0 where not, one half for a tie.
        low: where the first bin begins; 0.5 where a probability is that of the side it favours.
        bins: how many.
    """
    p, y = np.asarray(probability, np.float64), np.asarray(right, np.float64)
    width = (1 - low) / bins
    place = np.clip(np.floor((p - low) / width + 1e-9).astype(int), 0, bins - 1)  # 0.3 / 0.1 is just below 3
    found = []
    for k in np.unique(place).tolist():
        inside = place == k
        found.append(Bin(low + k * width, low + (k + 1) * width, int(inside.sum()), float(p[inside].mean()), float(y[inside].mean())))
    return tuple(found)


def calibration_error(bins: Sequence[Bin]) -> float:
    """Expected calibration error: sum over bins of n / N |confidence - right|, in [0, 1]."""
    return sum(b.n * abs(b.confidence - b.right) for b in bins) / sum(b.n for b in bins)


def fit_temperature(logits: Sequence[float], labels: Sequence[float]) -> float:
    """T that makes sigmoid(logit / T) most likely: the least mean of -y log p - (1 - y) log(1 - p).

    Targets are a little less than certain, (n1 + 1) / (n1 + 2) for the n1 labels of 1 and 1 / (n0 + 2) for the n0 of 0 (Platt 1999,
    "Probabilistic outputs for support vector machines", section 2.2): without that, T would be 0 where all logits have the right sign.

    Args:
        logits: [N] log-odds that the label is 1, nats; of a pair the difference of its scores, with label 1.
        labels: [N] 1 or 0.

    Returns:
        In [COLDEST, HOTTEST]; HOTTEST where the logits say nothing, or the opposite of what is true.
    """
    from scipy.optimize import minimize_scalar

    z, y = np.asarray(logits, np.float64), np.asarray(labels, np.float64)
    ones, zeros = float((y == 1).sum()), float((y == 0).sum())
    target = np.where(y == 1, (ones + 1) / (ones + 2), 1 / (zeros + 2))

    def loss(log_temperature: float) -> float:
        scaled = z / math.exp(log_temperature)
        return float(np.mean(np.logaddexp(0.0, scaled) - target * scaled))

    found = minimize_scalar(loss, bounds=(math.log(COLDEST), math.log(HOTTEST)), method="bounded", options={"xatol": 1e-7})
    return math.exp(float(found.x))
