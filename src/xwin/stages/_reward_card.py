"""What a reward model's scores are worth: their zero and unit, how much of them is length, and how sure they may be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from xwin.data.batch import Sample
from xwin.errors import TrainingStopped
from xwin.learning.learner import AnyLearner
from xwin.models.heads import RewardStats
from xwin.run.calibration import calibration_error, fit_temperature, reliability
from xwin.run.cards import Bin, Calibration, LengthBias
from xwin.scorers.reward_model import raw_scores

SAME = 1e-6
"""Reward units. A spread below this is none."""

FEWEST = 32
"""Pairs or answers that a temperature can be fitted on."""

ALIKE = 0.1
"""Answers are about equally long when the shorter one lacks at most this share of the longer."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Heard:
    """What a reward model says of N judged answers."""

    scores: Floats
    """[N, K] raw, of each head."""
    lengths: Floats
    """[N] tokens of the answer, the stop token included."""
    labels: Floats
    """[N] 1 of a chosen or right answer, 0 of the other."""
    pairs: NDArray[np.int64]
    """[P, 2] the better and the worse one of a pair; of labelled answers, every right with every wrong one to the same prompt."""

    @property
    def score(self) -> Floats:
        """[N] mean over heads."""
        return self.scores.mean(1)

    @property
    def gaps(self) -> Floats:
        """[P] score of the better less score of the worse."""
        return self.score[self.pairs[:, 0]] - self.score[self.pairs[:, 1]]


def hear(learner: AnyLearner, rows: Sequence[Sample], tokens: int) -> Heard:
    """Asks a reward model about judged answers.

    Args:
        learner: that holds it.
        rows: bonded pairs, chosen first, or single answers with the column `label`.
        tokens: of a batch.
    """
    scores = raw_scores(learner, [replace(row, id=str(i)) for i, row in enumerate(rows)], tokens).numpy()
    labels, pairs = _ranked(rows)
    return Heard(scores, np.array([float(sum(row.mask)) for row in rows]), labels, pairs)


def _ranked(rows: Sequence[Sample]) -> tuple[Floats, NDArray[np.int64]]:
    """(labels [N], pairs [P, 2])"""
    labels = np.zeros(len(rows))
    sides: dict[object, tuple[list[int], list[int]]] = {}
    for i, row in enumerate(rows):
        good, bad = sides.setdefault(row.bond or row.tokens[: row.start], ([], []))
        better = row.columns["label"] == 1.0 if row.bond is None else not good  # the chosen one of a bond comes first
        labels[i] = float(better)
        (good if better else bad).append(i)
    pairs = [(g, b) for good, bad in sides.values() for g in good for b in bad]
    return labels, np.array(pairs, np.int64).reshape(-1, 2)


def measure(heard: Heard, *, labelled: bool) -> RewardStats:
    """Zero and unit of a reward model, from what it says of training answers.

    Args:
        heard: what it says.
        labelled: whether it learned from labels, which fix the zero of every head; pairs leave each head's own free.

    Raises:
        TrainingStopped: all scores are equal, so there is no unit.
    """
    mean, std = float(np.mean(heard.score)), float(np.std(heard.score))
    if std < SAME:
        fix = "it has learned nothing: lower lr, or look at the data"
        raise TrainingStopped(f"the reward model gives all of {len(heard.score)} answers the same score, {heard.score[0]:.4g}", fix=fix)
    heads = heard.scores.shape[1]
    offsets = tuple((heard.scores.mean(0) - mean).tolist()) if heads > 1 and not labelled else ()
    return RewardStats(mean, std, offsets)


def length_bias(heard: Heard) -> LengthBias | None:
    """How much of the scores is length; None where there are no pairs."""
    if not len(heard.pairs):
        return None
    wins, better, worse = _wins(heard.gaps), heard.lengths[heard.pairs[:, 0]], heard.lengths[heard.pairs[:, 1]]
    matched, shorter = np.abs(better - worse) <= ALIKE * np.maximum(better, worse), better < worse
    flat = np.std(heard.score) < SAME or np.std(heard.lengths) == 0
    return LengthBias(
        pairs=len(wins),
        accuracy=float(wins.mean()),
        longer_wins=float(_wins(better - worse).mean()),
        matched=int(matched.sum()),
        matched_accuracy=_mean(wins[matched]),
        shorter=int(shorter.sum()),
        shorter_accuracy=_mean(wins[shorter]),
        correlation=None if flat else float(np.corrcoef(heard.score, heard.lengths)[0, 1]),
    )


def why_not(heard: Heard, *, labelled: bool) -> str:
    """Why no temperature can be fitted on these answers; "" where one can."""
    what, count = ("answers", len(heard.labels)) if labelled else ("pairs", len(heard.pairs))
    if count < FEWEST:
        return f"not calibrated: {count} held-out {what} are too few, it takes {FEWEST}"
    if labelled and np.all(heard.labels == heard.labels[0]):
        return f"not calibrated: all {count} held-out answers have one label"
    return ""


def calibrate(heard: Heard, *, labelled: bool) -> Calibration:
    """Fits a temperature on held-out answers, and says what it mends.

    Args:
        heard: answers for which `why_not` finds no reason.
        labelled: whether the score is the log-odds of being right; else differences of scores are log-odds of being better.
    """
    logits, labels = (heard.score, heard.labels) if labelled else (heard.gaps, np.ones(len(heard.gaps)))
    temperature = fit_temperature(logits.tolist(), labels.tolist())
    before, after = (_bins(logits / t, labels) for t in (1.0, temperature))
    return Calibration(temperature, calibration_error(before), calibration_error(after), before, after)


def _bins(logits: Floats, labels: Floats) -> tuple[Bin, ...]:
    """How often what is favoured is so, by how sure the model is of it."""
    confidence = [1 / (1 + math.exp(-min(abs(z), 700.0))) for z in logits.tolist()]
    right = _wins(logits * (2 * labels - 1))
    return reliability(confidence, right.tolist(), low=0.5)


def _wins(gap: Floats) -> Floats:
    """1 where positive, 0 where negative, one half where neither."""
    return (1 + np.sign(gap)) / 2


def _mean(values: Floats) -> float | None:
    return float(values.mean()) if len(values) else None
