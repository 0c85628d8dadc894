"""How far a model moved: KL to the reference and length of its answers."""

from __future__ import annotations

import math

from xwin.run.statistics import mean_interval
from xwin.suites.base import Evidence, Row, Suite


class Drift(Suite):
    """Mean length in tokens, and KL to the reference in nats per answer (k1: mean of log pi - log ref over sampled answers)."""

    def measure(self, evidence: Evidence) -> list[Row]:
        rows = []
        for model, answers in evidence.answers.items():
            rows.append(Row.of(model, "length", mean_interval([float(a.length) for a in answers], bounds=(0.0, math.inf))))
            kl = [a.kl for a in answers if a.kl is not None]
            if kl:
                rows.append(Row.of(model, "kl", mean_interval(kl)))
        return rows
