"""Length-controlled win rate, exactly as AlpacaEval 2 publishes it: what the win rate would be if both outputs were equally long.

Dubois et al. 2024, "Length-Controlled AlpacaEval", arXiv:2404.04475, and alpaca_eval's `metrics/glm_winrate.py`. Per model one logistic regression,

    P(model wins pair i) = sigma( w_length tanh(d_i / sd(d)) + w_difficulty q_i + w_model ),   d_i = len(output_1) - len(output_2),

fitted to soft labels with an L1 penalty, together with 1,610 pairs of the baseline's concise and verbose variants (w_model switched off) that keep
w_length sane; the length-controlled win rate is the mean prediction with the length term left out. q_i is a fixed difficulty per instruction.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from xwin.errors import DataError, MissingExtra
from xwin.seeds import generator
from xwin.suites._alpaca_labels import Labels

Array = NDArray[np.float64]
Join = Literal["instruction", "position"]
CS = tuple(float(c) for c in np.logspace(-4, 4, 10))
"""Inverse strengths of the penalty that cross-validation chooses from."""
FOLDS = 5
GAMED_WEIGHT = 0.1
"""Of a regularisation pair, against 1 of a pair of the model."""


@dataclass(frozen=True, slots=True)
class Weights:
    """Of the regression, unitless."""

    length: float
    difficulty: float
    model: float


@dataclass(frozen=True, slots=True)
class Covariates:
    """The pairs of a regression, [n] each."""

    length: Array
    """tanh of the length difference in standard deviations, reference less model."""
    difficulty: Array
    target: Array
    """Share of the pair that the model won, in [0, 1]; nan where the judge's answer could not be had."""


@dataclass(frozen=True, slots=True)
class LengthControlled:
    """A length-controlled win rate, percent, and where it is from."""

    win_rate: float
    standard_error: float
    """100 sd(predictions) / sqrt(n), as published: the spread over instructions, not the doubt about the weights."""
    weights: Weights
    source: str
    """For instance "published weights" or "cross-validated, C = 2.783"."""
    c: float | None = None
    """Inverse strength of the penalty that it was fitted at; None where nothing was fitted."""
    note: str = ""
    """What is wrong with it; empty when nothing is."""


def covariates(labels: Labels, difficulty: Mapping[int, float], join: Join = "instruction") -> Covariates:
    """The pairs of a model, in the order of its file.

    Args:
        labels: of one model, with the lengths of both outputs.
        difficulty: number of an instruction -> its difficulty.
        join: "instruction" looks each row's instruction up; "position" is alpaca_eval's own way, which takes the difficulty of the instruction whose
            number is the row's position. The two differ where a file lacks rows: its published values come from the second.

    Raises:
        DataError: a row without lengths or with an instruction that has no difficulty; names the row.
    """
    order = sorted(difficulty)
    if join == "position" and len(labels.rows) > len(order):
        raise DataError(f"{labels.model} has {len(labels.rows)} rows, but the table of difficulties {len(order)}", labels.source)
    lengths, found = [], []
    for position, row in enumerate(labels.rows):
        if row.chars is None or row.reference is None:
            raise DataError("has not the lengths of both outputs", row.where, "length control needs output_1 and output_2, or len_1 and len_2")
        key = order[position] if join == "position" else row.key
        if not isinstance(key, int) or key not in difficulty:
            what = f"the instruction {str(key)[:60]!r} has no difficulty: length control knows AlpacaEval's own {len(order)} instructions only"
            raise DataError(what, row.where, "judge those instructions, or leave --length-controlled out")
        lengths.append(float(row.reference.chars - row.chars))
        found.append(difficulty[key])
    target = [math.nan if row.credit is None else row.credit for row in labels.rows]
    return Covariates(_standardised(np.array(lengths), labels), np.array(found), np.array(target))


def from_weights(weights: Weights, pairs: Covariates, source: str) -> LengthControlled:
    """The mean prediction at equal length, over all pairs, those without a valid label too."""
    predictions = sigmoid(weights.difficulty * pairs.difficulty + weights.model)
    error = float(predictions.std(ddof=1)) / math.sqrt(len(predictions)) if len(predictions) > 1 else math.nan
    return LengthControlled(100 * float(predictions.mean()), 100 * error, weights, source)


def fit(pairs: Covariates, gamed: Covariates, c: float) -> LengthControlled:
    """The regression at one strength of the penalty.

    Args:
        pairs: of the model.
        gamed: regularisation pairs.
        c: inverse strength: the loss is |w|_1 + c * sum(weight * log loss).

    Raises:
        MissingExtra: scikit-learn is not installed.
    """
    if _all_equal(pairs):
        return from_weights(Weights(0.0, 0.0, 0.0), pairs, "every pair is equal: no fit")
    return replace(from_weights(_solve(_stack(pairs, gamed), c), pairs, f"refitted, C = {c:.4g}"), c=c)


def cross_validate(pairs: Covariates, gamed: Covariates) -> LengthControlled:
    """The regression at the strength that five folds choose: how alpaca_eval treats a model that its table does not know.

    Raises:
        MissingExtra: scikit-learn is not installed.
    """
    if _all_equal(pairs):
        return fit(pairs, gamed, 1.0)
    rows = _stack(pairs, gamed)
    folds = list(_folds(len(rows.target)))
    scores = [sum(_held_out_loss(rows, fold, c) for fold in folds) for c in CS]
    best = CS[int(np.argmin(scores))]
    return replace(fit(pairs, gamed, best), source=f"cross-validated, C = {best:.4g}")


def resampled(pairs: Covariates, gamed: Covariates, c: float, seed: int, resamples: int = 200) -> tuple[float, float]:
    """The 95 % interval of a refit, percent: percentiles over refits at one strength, pairs of the model drawn anew with replacement.

    The doubt about the weights is in it, which the published standard error leaves out; the doubt about the strength is not.

    Raises:
        MissingExtra: scikit-learn is not installed.
    """
    draw, count = generator(seed, "length_control"), len(pairs.target)
    rates = []
    for _ in range(resamples):
        chosen = draw.integers(count, size=count)
        rates.append(fit(Covariates(pairs.length[chosen], pairs.difficulty[chosen], pairs.target[chosen]), gamed, c).win_rate)
    low, high = np.percentile(rates, [2.5, 97.5])
    return float(low), float(high)


def doubtful(length_controlled: float, win_rate: float) -> bool:
    """Whether the two are further apart than alpaca_eval takes for plausible; both percent."""
    low = min(win_rate - win_rate / 4, win_rate - 10)
    high = max(win_rate + (100 - win_rate) / 4, win_rate + 10)
    return not low <= length_controlled <= high


def sigmoid(z: Array) -> Array:
    """1 / (1 + exp(-z))"""
    return 1 / (1 + np.exp(-z))


@dataclass(frozen=True, slots=True)
class _Rows:
    """Everything a regression sees, [n] rows."""

    features: Array
    """[n, 3]: length, difficulty, model."""
    target: Array
    weight: Array

    def take(self, chosen: NDArray[Any]) -> _Rows:
        return _Rows(self.features[chosen], self.target[chosen], self.weight[chosen])


def _stack(pairs: Covariates, gamed: Covariates) -> _Rows:
    """The regularisation pairs, then the model's pairs that have a label."""
    valid = ~np.isnan(pairs.target)
    ours = np.stack([pairs.length[valid], pairs.difficulty[valid], np.ones(valid.sum())], axis=1)
    theirs = np.stack([gamed.length, gamed.difficulty, np.zeros(len(gamed.target))], axis=1)
    weight = np.concatenate([np.full(len(theirs), GAMED_WEIGHT), np.ones(len(ours))])
    return _Rows(np.concatenate([theirs, ours]), np.concatenate([gamed.target, pairs.target[valid]]), weight)


def _solve(rows: _Rows, c: float) -> Weights:
    """The weights at strength `c`. A soft label is two rows, won and lost, that share its weight."""
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError:
        raise MissingExtra("scikit-learn", "eval") from None
    model = LogisticRegression(l1_ratio=1.0, solver="liblinear", fit_intercept=False, random_state=123, C=c)
    outcome = np.concatenate([np.ones(len(rows.target)), np.zeros(len(rows.target))])
    weight = np.concatenate([rows.target * rows.weight, (1 - rows.target) * rows.weight])
    model.fit(np.concatenate([rows.features, rows.features]), outcome, sample_weight=weight)
    length, difficulty, own = (float(w) for w in model.coef_[0])
    return Weights(length, difficulty, own)


def _folds(count: int) -> Any:
    """(training, held out) rows of each fold, as scikit-learn's GroupKFold deals rows that are a group each."""
    try:
        from sklearn.model_selection import GroupKFold
    except ImportError:
        raise MissingExtra("scikit-learn", "eval") from None
    return GroupKFold(FOLDS).split(np.zeros(count), groups=np.arange(count))


def _held_out_loss(rows: _Rows, fold: tuple[NDArray[Any], NDArray[Any]], c: float) -> float:
    """Mean weighted log loss on the held-out rows of a fold."""
    training, held_out = (rows.take(chosen) for chosen in fold)
    weights = _solve(training, c)
    p = sigmoid(held_out.features @ np.array([weights.length, weights.difficulty, weights.model])).clip(1e-15, 1 - 1e-15)
    loss = -(held_out.target * np.log(p) + (1 - held_out.target) * np.log(1 - p))
    return float((held_out.weight * loss).mean())


def _all_equal(pairs: Covariates) -> bool:
    """The baseline against itself: AlpacaEval's weights are 0 by construction."""
    known = pairs.target[~np.isnan(pairs.target)]
    return bool((known == 0.5).all())


def _standardised(difference: Array, labels: Labels) -> Array:
    spread = float(difference.std(ddof=1)) if len(difference) > 1 else 0.0
    if spread == 0:
        if not difference.any():
            return difference
        raise DataError(f"{labels.model}: every output differs from its reference by the same number of characters", labels.source)
    return np.tanh(difference / spread)
