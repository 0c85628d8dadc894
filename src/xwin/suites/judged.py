"""Win rate against the reference, by a judge that reads the answers (`judge` of the evaluate stage)."""

from __future__ import annotations

from xwin.run.statistics import Paired, mean_interval, paired_means
from xwin.suites.base import Evidence, Row, Suite


class Judged(Suite):
    """The mean of what the judge gives each answer against the reference's. Student's t interval over prompts; paired t test against `before`."""

    def measure(self, evidence: Evidence) -> list[Row]:
        rows = []
        for model, answers in evidence.answers.items():
            known = [a.judged for a in answers if a.judged is not None]
            if model == evidence.reference or not known:
                continue
            unread = len(answers) - len(known)
            note = f"{unread} of {len(answers)} judgements could not be read and are left out" if unread else ""
            before = evidence.before.get(model)
            test = _test(evidence, before, model) if before not in (None, evidence.reference) else None
            rows.append(Row.of(model, "judged", mean_interval(known, bounds=(0.0, 1.0)), test, before, note=note))
        return rows


def _test(evidence: Evidence, first: str | None, second: str) -> Paired | None:
    """Over the prompts that have a judgement of both; None where there is none."""
    pairs = zip(evidence.answers[first or ""], evidence.answers[second], strict=True)
    both = [(a.judged, b.judged) for a, b in pairs if a.judged is not None and b.judged is not None]
    return paired_means([a for a, _ in both], [b for _, b in both]) if both else None
