"""Verifier accuracy, overall and per family, with paired tests against the stage before."""

from __future__ import annotations

from xwin.run.statistics import paired, proportion
from xwin.suites.base import Evidence, Row, Suite


class Accuracy(Suite):
    """Share of prompts whose one answer the gold scorer accepts. Wilson 95 % interval; exact McNemar test."""

    def measure(self, evidence: Evidence) -> list[Row]:
        rows = []
        for model, answers in evidence.answers.items():
            passed = [a.passed for a in answers]
            before = evidence.before.get(model)
            test = paired([a.passed for a in evidence.answers[before]], passed) if before else None
            rows.append(Row.of(model, "accuracy", proportion(sum(passed), len(passed)), test, before))
            for family, index in evidence.families().items():
                rows.append(Row.of(model, f"accuracy/{family}", proportion(sum(passed[i] for i in index), len(index))))
        return rows
