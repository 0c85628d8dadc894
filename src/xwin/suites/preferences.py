"""A reward model against the gold scorer, on held-out prompts."""

from __future__ import annotations

from xwin.suites._reward_pairs import Pair, accuracy_rows
from xwin.suites.base import Evidence, Row, Suite


class Preferences(Suite):
    """Over all pairs of an accepted and a refused answer to one prompt: how often the reward model prefers the accepted one, over all pairs and
    over those of one length, and how often mere length does.

    The answers are those of the first model of which a reward model picks one of several.
    """

    def measure(self, evidence: Evidence) -> list[Row]:
        scored = next((rows for rows in evidence.samples.values() if any(a.reward is not None for row in rows for a in row)), ())
        pairs = [
            Pair(str(place), good.reward, bad.reward, (len(good.text), len(bad.text)))
            for place, answers in enumerate(scored)
            for good in answers
            for bad in answers
            if good.passed and not bad.passed and good.reward is not None and bad.reward is not None
        ]
        return accuracy_rows("reward model", "", pairs) if pairs else []
