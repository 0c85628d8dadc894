"""What the gold scorer gives, where it gives more than right or wrong: a reward model that nothing was trained on, say."""

from __future__ import annotations

from collections.abc import Sequence

from xwin.run.statistics import mean_interval, paired_means
from xwin.suites.base import Answer, Evidence, Row, Suite


class Gold(Suite):
    """Mean score of the gold scorer over all prompts, in its unit, with paired t tests against the row before. Student's t interval."""

    def measure(self, evidence: Evidence) -> list[Row]:
        rows = []
        for model, answers in evidence.answers.items():
            mine, before = _scores(answers), evidence.before.get(model)
            test = paired_means(_scores(evidence.answers[before]), mine) if before else None
            rows.append(Row.of(model, "gold", mean_interval(mine), test, before))
        return rows


def _scores(answers: Sequence[Answer]) -> list[float]:
    """Of every answer: the stage has seen to it that each has one."""
    return [answer.gold for answer in answers if answer.gold is not None]
