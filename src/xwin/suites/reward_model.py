"""Reward models against sets of preferences that people or stronger judges gave."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, ClassVar

import torch
from annotated_types import MinLen
from torch import Tensor

from xwin.data.batch import Sample
from xwin.data.conversation import Conversation, Preference
from xwin.data.template import Template, answers
from xwin.errors import DataError
from xwin.learning.learner import AnyLearner
from xwin.models.heads import RewardStats
from xwin.run.artifacts import PreferencesRef, RewardModelRef
from xwin.scorers.reward_model import raw_scores
from xwin.suites._reward_pairs import Pair, accuracy_rows, confidence_row
from xwin.suites.base import Evidence, Row, Suite

BLOCK = 512
"""Preferences scored at a time."""

Member = tuple[AnyLearner, Template]
"""A reward model, and the template that it was trained in."""


class RewardModelSuite(Suite):
    """How often a reward model prefers the answer that was preferred, set by set: over all pairs and over those of one length, beside how often
    the longer answer was preferred; and whether it is as sure as it is right."""

    model: RewardModelRef | Annotated[tuple[RewardModelRef, ...], MinLen(1)]
    """The reward model, or several as one ensemble, as in the scorer."""

    sets: dict[str, PreferencesRef]
    """Name -> preferences that it was not trained on."""

    reads_answers: ClassVar[bool] = False

    def distinct(self) -> frozenset[str]:
        return frozenset(f"{self._name} on {name}" for name in self.sets)

    @property
    def _refs(self) -> tuple[str, ...]:
        return (self.model,) if isinstance(self.model, str) else self.model

    @property
    def _name(self) -> str:
        return " + ".join(self._refs)

    def measure(self, evidence: Evidence) -> list[Row]:
        shop = evidence.workshop
        assert shop is not None
        sets = {name: shop.preferences(ref) for name, ref in self.sets.items()}
        return measure_sets(self._name, [(shop.frozen_scorer(ref), shop.template(ref)) for ref in self._refs], sets)

    def questions(self, evidence: Evidence) -> Mapping[str, Sequence[str]]:
        assert evidence.workshop is not None
        read = evidence.workshop.preferences
        return {name: [row.prompt[-1].text for row in read(ref)] for name, ref in self.sets.items()}


def measure_sets(model: str, members: Sequence[Member], sets: Mapping[str, Sequence[Preference]]) -> list[Row]:
    """The rows of every set.

    Args:
        model: its name in the table.
        members: the reward model, or those of an ensemble.
        sets: name -> preferences, at least one each.

    Raises:
        DataError: every pair of a set is longer than the model can read.
    """
    rows: list[Row] = []
    for name, preferences in sets.items():
        pairs = list(score_pairs(members, preferences))
        if not pairs:
            context = min(learner.about.context for learner, _ in members)
            raise DataError(f"each of its {len(preferences)} pairs is longer than {model} can read, {context} tokens", name)
        first, *others = [*accuracy_rows(model, name, pairs), confidence_row(model, name, pairs)]
        lost = len(preferences) - len(pairs)
        rows += [replace(first, note=f"{first.note}; {lost} pairs are longer than the model can read") if lost else first, *others]
    return rows


def score_pairs(members: Sequence[Member], rows: Sequence[Preference]) -> Iterator[Pair]:
    """Each preference with the scores of its two answers: raw, of an ensemble as `together` joins them; one that a model cannot read is left out.

    Args:
        members: the reward model, or those of an ensemble.
        rows: prompts are told apart by what they say.
    """
    stats = [learner.about.stats or RewardStats() for learner, _ in members]
    for begin in range(0, len(rows), BLOCK):
        block = rows[begin : begin + BLOCK]
        read = zip(*(_sides(template, block) for _, template in members), strict=True)
        kept = [(row, sides) for row, sides in zip(block, read, strict=True) if _can_read(members, sides)]
        if not kept:
            continue
        told = [raw_scores(learner, [side for _, sides in kept for side in sides[k]]) for k, (learner, _) in enumerate(members)]
        scores = together(told, stats)
        for (row, _), chosen, rejected in zip(kept, scores[::2], scores[1::2], strict=True):
            yield Pair("\n".join(f"{m.role}: {m.text}" for m in row.prompt), chosen, rejected, (len(row.chosen.text), len(row.rejected.text)))


def _sides(template: Template, rows: Sequence[Preference]) -> Iterator[tuple[Sample, Sample]]:
    """The better and the worse answer of each row, in a model's template."""
    told = [Conversation(row.id, (*row.prompt, answer), meta=row.meta) for row in rows for answer in (row.chosen, row.rejected)]
    samples = (Sample(str(number), said.tokens, said.mask) for number, said in enumerate(answers(template, told)))
    return zip(samples, samples, strict=True)


def _can_read(members: Sequence[Member], sides: Sequence[tuple[Sample, Sample]]) -> bool:
    """Whether every model has room for both, each in its own template."""
    return all(len(side.tokens) <= learner.about.context for (learner, _), both in zip(members, sides, strict=True) for side in both)


def together(told: Sequence[Tensor], stats: Sequence[RewardStats]) -> list[float]:
    """[N] one score of each answer: raw where one head alone says it, else the mean over all heads of all models, each in units of its model's
    own spread as in the scorer, times the mean spread, so that differences are log-odds as those of a single model are.

    Args:
        told: of each model [N, K] raw scores.
        stats: of each model.
    """
    if sum(raw.shape[1] for raw in told) == 1:
        return told[0][:, 0].tolist()
    levelled = torch.cat([known.standard(raw) for raw, known in zip(told, stats, strict=True)], 1)
    return (levelled.mean(1) * (sum(known.std for known in stats) / len(stats))).tolist()
