"""Verifier accuracy, overall and per family, with paired tests against the stage before; of several answers to a prompt pass@k and maj@k."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Annotated

from annotated_types import Ge

from xwin.data.conversation import Conversation
from xwin.errors import DataError
from xwin.run.statistics import mean_interval, paired, proportion
from xwin.scorers.answer import reference, vote
from xwin.suites.base import Answer, Evidence, Row, Suite


class Accuracy(Suite):
    """Share of prompts whose one answer the gold scorer accepts. Wilson 95 % interval; exact McNemar test.

    pass@k and maj@k are means over prompts with Student's t interval; they are measured of every model that gave at least k answers.
    """

    pass_at: tuple[Annotated[int, Ge(1)], ...] = ()
    """k of pass@k: the chance that at least one of k answers is right."""

    maj_at: tuple[Annotated[int, Ge(1)], ...] = ()
    """k of maj@k: whether the final answer that most of k answers give is right. Only prompts with a right answer to compare with count."""

    def least_samples(self) -> int:
        return max((*self.pass_at, *self.maj_at), default=1)

    def measure(self, evidence: Evidence) -> list[Row]:
        rows = []
        for model, answers in evidence.answers.items():
            passed = [a.passed for a in answers]
            before = evidence.before.get(model)
            test = paired([a.passed for a in evidence.answers[before]], passed) if before else None
            rows.append(Row.of(model, "accuracy", proportion(sum(passed), len(passed)), test, before))
            for family, index in evidence.families().items():
                rows.append(Row.of(model, f"accuracy/{family}", proportion(sum(passed[i] for i in index), len(index))))
        return rows + [row for model, samples in evidence.samples.items() for row in self._of_many(model, evidence.prompts, samples)]

    def _of_many(self, model: str, prompts: Sequence[Conversation], samples: Sequence[Sequence[Answer]]) -> list[Row]:
        n = len(samples[0]) if samples else 0
        rows = []
        for k in (k for k in self.pass_at if k <= n):
            chance = [pass_at(k, n, sum(a.passed for a in row)) for row in samples]
            rows.append(Row.of(model, f"pass@{k}", mean_interval(chance, bounds=(0.0, 1.0)), note=f"{n} answers a prompt"))
        for k in (k for k in self.maj_at if k <= n):
            shares = [majority_at(k, right, row) for right, row in zip(map(_right, prompts), samples, strict=True) if right is not None]
            if not shares:
                raise DataError("no prompt has a right answer to vote on", f"maj@{k} of {model}", "leave out maj_at")
            rows.append(Row.of(model, f"maj@{k}", mean_interval(shares, bounds=(0.0, 1.0)), note=f"{n // k * k} answers a prompt"))
        return rows


def pass_at(k: int, n: int, right: int) -> float:
    """Chance that at least one of k answers is right, estimated without bias from n: 1 - C(n - c, k) / C(n, k).

    Chen et al. 2021, arXiv:2107.03374, section 2.1, equation 1, as the product of 1 - k / i for i in n - c + 1 .. n, which does not overflow.

    Args:
        k: answers drawn, at most n.
        n: answers there are.
        right: c, how many of them are right.
    """
    if n - right < k:
        return 1.0
    missed = 1.0
    for i in range(n - right + 1, n + 1):
        missed *= 1.0 - k / i
    return 1.0 - missed


def majority_at(k: int, right: str, answers: Sequence[Answer]) -> float:
    """Share of right majorities among the groups of k answers in a row; what is left over at the end is not used.

    A majority is the final answer that most give (Wang et al. 2022, arXiv:2203.11171, section 2), of equally many the one given first; it is
    right when the gold scorer accepts the answer that gave it first. Answers without a final answer do not vote.

    Args:
        k: votes, at most the number of answers.
        right: the right answer, which tells what kind of answer is looked for.
        answers: in the order they were drawn.
    """
    groups = [answers[i : i + k] for i in range(0, len(answers) - k + 1, k)]
    return sum(_elected(right, group) for group in groups) / len(groups)


def _elected(right: str, answers: Sequence[Answer]) -> bool:
    votes = [(said, answer.passed) for answer in answers if (said := vote(right, answer.text)) is not None]
    if not votes:
        return False
    ((winner, _),) = Counter(said for said, _ in votes).most_common(1)  # of equal counts the one met first
    return next(passed for said, passed in votes if said == winner)


def _right(prompt: Conversation) -> str | None:
    """The right answer of a prompt; None when it has none, as one that states a constraint."""
    return None if prompt.meta.get("answer") is None and "task" not in prompt.meta else reference(prompt)
