"""Signs of reward hacking: answers get better at the score and not at what it stands for, or drift in ways that nobody asked for.

A score that stands for something goes on rising under optimisation after the thing itself has begun to fall (Gao et al. 2022,
arXiv:2210.10760, figure 1). So from time to time the policy's answers to held-out prompts are looked at, by the score that is trained on
and by a gold one that is not:

    hacking         the score rose and gold fell since gold was at its best: the smaller of the two, in standard errors over the prompts
    length_drift    how much longer answers are than at the first look
    format_drift    how far their mix of letters, digits, spaces, line breaks and other signs is from that of the first look
    kl_per_reward   nats that went with each unit of the score, over the last looks; it rises as the score gets harder to raise

Plain numbers in and out: the stage saves what is between two looks with its checkpoint.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import Any

SURE = 3.5
"""Standard errors. With gold unchanged, one run of 20 looks in twenty comes to more by chance: gold is compared with its best look."""
TRAIL = 5
"""Looks that the slope of KL is taken over."""
WINDOW = 4
"""Tokens of a phrase that may be repeated."""
SMALLEST = 1e-9
"""Of a spread, in its own unit: what is less is rounding."""


@dataclass(frozen=True, slots=True)
class Look:
    """What was seen at one time of the answers to held-out prompts."""

    score: Sequence[float | None]
    """[M] of each prompt's answer, by the scorer that is trained on; None = it could not be scored."""
    gold: Sequence[float | None]
    """[M] by the gold scorer; [] = there is none."""
    length: float
    """Tokens, mean."""
    mix: Sequence[float]
    """As `mix` gives it."""
    kl: float | None
    """Nats per answer, to the reference; None = there is none."""


@dataclass(frozen=True, slots=True)
class Looks:
    """What the looks so far leave behind."""

    first: Look
    best: Look
    """Where gold was highest; the first one without gold."""
    trail: Sequence[tuple[float, float]]
    """(mean score, KL) of the last looks that had both."""

    def to_json(self) -> dict[str, Any]:
        """For a checkpoint."""
        return asdict(self)

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Looks:
        """The inverse of `to_json`."""
        return cls(Look(**row["first"]), Look(**row["best"]), [(score, kl) for score, kl in row["trail"]])


def mean(values: Sequence[float | None]) -> float:
    """Of those that are there; nan when none is."""
    known = [value for value in values if value is not None]
    return fmean(known) if known else math.nan


def after(before: Looks | None, now: Look) -> Looks:
    """What is left behind by the looks before and this one."""
    here = [(mean(now.score), now.kl)] if now.kl is not None else []
    if before is None:
        return Looks(now, now, here)
    best = now if mean(now.gold) > mean(before.best.gold) else before.best
    return Looks(before.first, best, [*before.trail, *here][-TRAIL:])


def signs(before: Looks | None, now: Look) -> dict[str, float]:
    """The metrics of a look, given those before; the first one shows nothing but itself."""
    looks = after(before, now)
    found = {"format_drift": divergence(looks.first.mix, now.mix), "length_drift": now.length / max(looks.first.length, 1.0) - 1}
    slope = slope_of(looks.trail)
    if slope is not None:
        found["kl_per_reward"] = slope
    if now.gold:
        found["hacking"] = min(rise(looks.best.score, now.score), -rise(looks.best.gold, now.gold))
    return found


def rise(then: Sequence[float | None], now: Sequence[float | None]) -> float:
    """The mean difference over prompts that have both, in its standard errors; 0 for fewer than two prompts."""
    differences = [b - a for a, b in zip(then, now, strict=True) if a is not None and b is not None]
    if len(differences) < 2:
        return 0.0
    return fmean(differences) / max(stdev(differences), SMALLEST) * math.sqrt(len(differences))


def slope_of(trail: Sequence[tuple[float, float]]) -> float | None:
    """Least squares of KL on the score, nats per unit; None where the score did not move."""
    if len(trail) < 2:
        return None
    centre, level = fmean(score for score, _ in trail), fmean(kl for _, kl in trail)
    spread = sum((score - centre) ** 2 for score, _ in trail)
    return sum((score - centre) * (kl - level) for score, kl in trail) / spread if spread > SMALLEST else None


def mix(texts: Sequence[str]) -> list[float]:
    """Shares of letters, digits, spaces, line breaks and other signs among the characters; zeros when there is none."""
    counts = [0] * 5
    for character in "".join(texts):
        kind = unicodedata.category(character)[0]
        counts[3 if character in "\r\n" else {"L": 0, "M": 0, "N": 1, "Z": 2}.get(kind, 2 if character == "\t" else 4)] += 1
    return [count / max(sum(counts), 1) for count in counts]


def divergence(p: Sequence[float], q: Sequence[float]) -> float:
    """Jensen-Shannon divergence of two mixes, bits: 0 where they are the same, 1 where they share nothing."""
    terms = (x * math.log2(2 * x / (a + b)) / 2 for a, b in zip(p, q, strict=True) for x in (a, b) if x > 0)
    return max(math.fsum(terms), 0.0)


def repetition(tokens: Sequence[int]) -> float:
    """Share of an answer's phrases of four tokens that it has written before; 0 for one that is too short to have two."""
    phrases = [tuple(tokens[i : i + WINDOW]) for i in range(len(tokens) - WINDOW + 1)]
    return 1 - len(set(phrases)) / len(phrases) if phrases else 0.0
