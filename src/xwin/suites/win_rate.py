"""Win rate against a reference model, judged by the gold scorer."""

from __future__ import annotations

from xwin.run.statistics import mean_interval, paired
from xwin.suites.base import Evidence, Row, Suite


class WinRate(Suite):
    """A model wins a prompt when its answer passes and the reference's does not; ties count one half. Student's t interval over prompts."""

    def measure(self, evidence: Evidence) -> list[Row]:
        reference = [a.passed for a in evidence.answers[evidence.reference]]
        rows = []
        for model, answers in evidence.answers.items():
            if model != evidence.reference:
                passed = [a.passed for a in answers]
                outcome = [0.5 + 0.5 * (mine - theirs) for mine, theirs in zip(passed, reference, strict=True)]
                test = paired(reference, passed)
                rows.append(Row.of(model, "win_rate", mean_interval(outcome, bounds=(0.0, 1.0)), test, evidence.reference))
        return rows
