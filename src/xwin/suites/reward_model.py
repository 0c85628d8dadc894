"""Reward models against sets of preferences that people or stronger judges gave."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, ClassVar

import torch
from annotated_types import MinLen
from torch import Tensor

from xwin.data.batch import Sample, pack
from xwin.data.conversation import Conversation, Preference
from xwin.data.template import Template, answers
from xwin.errors import DataError
from xwin.learning.learner import AnyLearner
from xwin.models.heads import RewardStats
from xwin.run.artifacts import PreferencesRef, RewardModelRef
from xwin.suites._reward_pairs import Pair, accuracy_rows, confidence_row
from xwin.suites.base import Evidence, Row, Suite

TOKENS = 4096
"""Of a packed batch; bounds memory, does not change a score but for rounding."""
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

    def distinct(self) -> str:
        return f"{self._name} on {', '.join(self.sets)}"

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
        read = [list(_samples(template, block)) for _, template in members]
        kept = [place for place in range(len(block)) if all(_fits(learner, said, place) for (learner, _), said in zip(members, read, strict=True))]
        if not kept:
            continue
        told = [_scores(learner, [said[i] for p in kept for i in (2 * p, 2 * p + 1)]) for (learner, _), said in zip(members, read, strict=True)]
        scores = together(told, stats)
        for place, chosen, rejected in zip(kept, scores[::2], scores[1::2], strict=True):
            row = block[place]
            yield Pair("\n".join(f"{m.role}: {m.text}" for m in row.prompt), chosen, rejected, (len(row.chosen.text), len(row.rejected.text)))


def _fits(learner: AnyLearner, read: Sequence[Sample], place: int) -> bool:
    return all(len(sample.tokens) <= learner.about.context for sample in read[2 * place : 2 * place + 2])


def _samples(template: Template, rows: Sequence[Preference]) -> Iterator[Sample]:
    sides = [Conversation(row.id, (*row.prompt, answer), meta=row.meta) for row in rows for answer in (row.chosen, row.rejected)]
    for place, said in enumerate(answers(template, sides)):
        yield Sample(f"{place // 2}/{place % 2}", said.tokens, said.mask)


def _scores(learner: AnyLearner, samples: Sequence[Sample]) -> Tensor:
    """[N, K] raw scores by the K heads of one model, float64."""
    batches = pack(samples, tokens=max([TOKENS, *(len(s.tokens) for s in samples)]), share=True)
    said = learner.forward(batches, frozenset({"score"}))
    found = {batch.ids[s]: out.get("score")[s].reshape(-1).tolist() for batch, out in zip(batches, said, strict=True) for s in batch.samples()}
    return torch.tensor([found[s.id] for s in samples], dtype=torch.float64)


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
