"""A reward model against the gold scorer, on held-out prompts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from xwin.run.statistics import mean_interval
from xwin.suites.base import Answer, Evidence, Row, Suite


class Preferences(Suite):
    """Over all pairs of an accepted and a refused answer to one prompt: how often the reward model, or mere length, prefers the accepted one.

    The unit of the interval is the prompt (the mean over its pairs), since the pairs of one prompt are not independent. Ties count one half.
    """

    def measure(self, evidence: Evidence) -> list[Row]:
        mixed = [pairs for answers in evidence.samples if (pairs := list(_pairs(answers)))]
        if not mixed:
            return []
        scored = [sum(_wins(good.reward or 0.0, bad.reward or 0.0) for good, bad in pairs) / len(pairs) for pairs in mixed]
        longer = [sum(_wins(len(good.text), len(bad.text)) for good, bad in pairs) / len(pairs) for pairs in mixed]
        note = f"{sum(map(len, mixed))} pairs of {len(mixed)} prompts"
        return [
            Row.of("reward model", "rm_accuracy", mean_interval(scored, bounds=(0.0, 1.0)), note=note),
            Row.of("reward model", "longer_wins", mean_interval(longer, bounds=(0.0, 1.0)), note=note),
        ]


def _pairs(answers: Sequence[Answer]) -> Iterator[tuple[Answer, Answer]]:
    return ((good, bad) for good in answers if good.passed for bad in answers if not bad.passed)


def _wins(good: float, bad: float) -> float:
    return 0.5 + 0.5 * ((good > bad) - (good < bad))
