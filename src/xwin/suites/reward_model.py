"""Reward models against sets of preferences that people or stronger judges gave."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

from xwin.data.batch import Sample, pack
from xwin.data.conversation import Conversation, Preference
from xwin.data.template import Template, answers
from xwin.errors import DataError
from xwin.learning.learner import AnyLearner
from xwin.run.artifacts import PreferencesRef, RewardModelRef
from xwin.suites._reward_pairs import Pair, accuracy_rows, confidence_row
from xwin.suites.base import Evidence, Row, Suite

TOKENS = 4096
"""Of a packed batch; bounds memory, does not change a score but for rounding."""
BLOCK = 512
"""Preferences scored at a time."""


class RewardModelSuite(Suite):
    """How often a reward model prefers the answer that was preferred, set by set: over all pairs and over those of one length, beside how often
    the longer answer was preferred; and whether it is as sure as it is right."""

    model: RewardModelRef
    """The reward model."""

    sets: dict[str, PreferencesRef]
    """Name -> preferences that it was not trained on."""

    reads_answers: ClassVar[bool] = False

    def distinct(self) -> str:
        return f"{self.model} on {', '.join(self.sets)}"

    def measure(self, evidence: Evidence) -> list[Row]:
        assert evidence.workshop is not None
        sets = {name: evidence.workshop.preferences(ref) for name, ref in self.sets.items()}
        return measure_sets(self.model, evidence.workshop.frozen_scorer(self.model), evidence.workshop.template(self.model), sets)

    def questions(self, evidence: Evidence) -> Mapping[str, Sequence[str]]:
        assert evidence.workshop is not None
        read = evidence.workshop.preferences
        return {name: [row.prompt[-1].text for row in read(ref)] for name, ref in self.sets.items()}


def measure_sets(model: str, learner: AnyLearner, template: Template, sets: Mapping[str, Sequence[Preference]]) -> list[Row]:
    """The rows of every set.

    Args:
        model: its name in the table.
        learner: the reward model.
        template: that it was trained in.
        sets: name -> preferences, at least one each.

    Raises:
        DataError: every pair of a set is longer than the model can read.
    """
    rows: list[Row] = []
    for name, preferences in sets.items():
        pairs = list(score_pairs(learner, template, preferences))
        if not pairs:
            raise DataError(f"each of its {len(preferences)} pairs is longer than {model} can read, {learner.about.context} tokens", name)
        first, *others = [*accuracy_rows(model, name, pairs), confidence_row(model, name, pairs)]
        lost = len(preferences) - len(pairs)
        rows += [replace(first, note=f"{first.note}; {lost} pairs are longer than the model can read") if lost else first, *others]
    return rows


def score_pairs(learner: AnyLearner, template: Template, rows: Sequence[Preference]) -> Iterator[Pair]:
    """Each preference with the raw scores of its two answers, of an ensemble their mean; one that the model cannot read at once is left out.

    Args:
        learner: a reward model.
        template: that it was trained in.
        rows: prompts are told apart by what they say.
    """
    for begin in range(0, len(rows), BLOCK):
        block = rows[begin : begin + BLOCK]
        scores = _scores(learner, [sample for sample in _samples(template, block) if len(sample.tokens) <= learner.about.context])
        for place, row in enumerate(block):
            chosen, rejected = scores.get(f"{place}/0"), scores.get(f"{place}/1")
            if chosen is not None and rejected is not None:
                said = "\n".join(f"{m.role}: {m.text}" for m in row.prompt)
                yield Pair(said, chosen, rejected, (len(row.chosen.text), len(row.rejected.text)))


def _samples(template: Template, rows: Sequence[Preference]) -> Iterator[Sample]:
    sides = [Conversation(row.id, (*row.prompt, answer), meta=row.meta) for row in rows for answer in (row.chosen, row.rejected)]
    for place, said in enumerate(answers(template, sides)):
        yield Sample(f"{place // 2}/{place % 2}", said.tokens, said.mask)


def _scores(learner: AnyLearner, samples: Sequence[Sample]) -> dict[str, float]:
    """Sample id -> raw score."""
    batches = pack(samples, tokens=max([TOKENS, *(len(s.tokens) for s in samples)]), share=True)
    said = learner.forward(batches, frozenset({"score"}))
    return {batch.ids[s]: float(out.get("score")[s].mean()) for batch, out in zip(batches, said, strict=True) for s in batch.samples()}
