"""Reward modelling: from preferences, or from answers that are labelled right or wrong."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
from annotated_types import Ge

from xwin.data.batch import Batch, Sample, pack
from xwin.data.conversation import Preference
from xwin.data.store import Pool
from xwin.data.template import Template
from xwin.errors import DataError, ModelError
from xwin.learning.learner import AnyLearner
from xwin.models.heads import RewardStats
from xwin.objectives._reward import RewardObjective
from xwin.objectives.base import Objective
from xwin.objectives.bradley_terry import BradleyTerry
from xwin.run.artifacts import Artifact, ConversationsRef, NetworkRef, PreferencesRef
from xwin.run.artifacts import RewardModel as RewardModelArtifact
from xwin.run.calibration import HOTTEST
from xwin.run.cards import Calibration, RewardCard, write_card
from xwin.seeds import permutation
from xwin.stages._preference import from_labels, from_preferences
from xwin.stages._reward_card import calibrate, hear, length_bias, measure, why_not
from xwin.stages._samples import Source, both, pooled
from xwin.stages._start import UNTRAINED_TOLERANCE, require_sound, require_start
from xwin.stages._training import Refs, RowTraining, cut, listed, names
from xwin.stages._work import Phase, Rows
from xwin.stages.sft import due, validate

if TYPE_CHECKING:
    from xwin.stages._context import Context


class RewardModel(RowTraining):
    """Trains a scalar head, and what is below it, to score the better answer above the worse one."""

    init: NetworkRef
    """The model to start from, usually the SFT model."""

    data: PreferencesRef | tuple[PreferencesRef, ...] = ()
    """Preferences: stages, or JSONL files. For the objective outcome each answer counts by itself, chosen ones as right."""

    labelled: ConversationsRef | tuple[ConversationsRef, ...] = ()
    """Conversations with a label, for the objective outcome: a `labels` stage, or JSONL files."""

    validation: PreferencesRef | None = None
    """Held-out preferences, of other prompts; with them the best checkpoint is kept and the scores are calibrated. null = keep the last."""

    validation_labelled: ConversationsRef | None = None
    """Held-out conversations with a label, beside or instead of `validation`."""

    eval_every: Annotated[int, Ge(1)] = 10
    """Optimizer steps between evaluations on `validation`."""

    patience: Annotated[int, Ge(1)] | None = 3
    """Evaluations without improvement after which training ends; null = never."""

    epochs: Annotated[int, Ge(1)] = 1
    """Times each pair is seen, at most. Reward models overfit in the second epoch (arXiv:2203.02155, appendix C.2)."""

    tokens_per_step: Annotated[int, Ge(16)] = 4096
    """Tokens of one optimizer step, prompts counted with each answer."""

    objective: Objective = BradleyTerry()
    """The loss: bradley_terry for pairs, outcome for labels."""

    heads: Annotated[int, Ge(1)] = 1
    """Heads on one body. Above 1 the model is an ensemble: its score is their mean, and they may disagree."""

    makes: ClassVar[Mapping[str, type[Artifact]]] = {"final": RewardModelArtifact}

    def summary(self) -> str:
        return f"{self.epochs} epochs, {self.tokens_per_step} tokens a step, {self.tune.kind}"

    def work(self) -> Sequence[Phase]:
        refs = (*listed(self.data), *listed(self.labelled))
        rows = Rows(refs, self.weights, self.epochs, self.tokens_per_step)
        return (Phase((self.trains("reward model", self.init, "score"),), rows, self.tokens_per_batch),)

    def check(self) -> Sequence[tuple[str, str, str]]:
        if not isinstance(self.objective, RewardObjective):
            return [("objective", f"{self.objective.kind} does not learn a score", "choose bradley_terry or outcome")]
        problems = self.weight_mistakes(len(listed(self.data)) + len(listed(self.labelled)))
        if not (self.data or self.labelled):
            problems.append(("", "there is nothing to learn from", "add `data:`" + (" or `labelled:`" if self._reads_labels else "")))
        if not self._reads_labels:
            given = [name for name in ("labelled", "validation_labelled") if getattr(self, name)]
            problems += [(name, f"{self.objective.kind} compares two answers to one prompt", "give preferences, or choose outcome") for name in given]
        return problems

    @property
    def _reads_labels(self) -> bool:
        return "label" in self.objective.needs

    def run(self, ctx: Context) -> None:
        rows = self._samples(ctx, self.data, self.labelled)
        tested = self._samples(ctx, self.validation, self.validation_labelled) if self.validation or self.validation_labelled else None
        held = pack(tested, tokens=self.tokens_per_batch, share=True) if tested else []
        if self._reads_labels:
            require_both(rows)
        steps = cut(rows, tokens=self.tokens_per_step, epochs=self.epochs, seed=ctx.seed("data"), weights=self.weights)
        learner = self._learner(ctx, len(steps))
        loop = ctx.loop(self, len(steps), {"policy": learner}, state={}, patience=self.patience if held else None)
        for step in loop:
            samples = steps[step]
            if loop.skips(names(samples)):
                continue
            batches = pack(samples, tokens=self.tokens_per_batch, share=True)
            if step == 0:
                self._check_start(learner, samples, batches, ctx.template(self.init))
            with loop.trial():
                metrics = learner.step(batches)
                validation = validate(learner, held) if held and due(step, self.eval_every, len(steps)) else None
                loop.done(metrics, validation=validation, score=validation["validation_loss"] if validation else None)
        loop.restore_best()
        self._describe(ctx, learner, some(rows, MEASURED, ctx.seed("stats")), tested)
        ctx.finish(learner, loop, "final", ctx.template_name(self.init))

    def _learner(self, ctx: Context, total: int) -> AnyLearner:
        learner = ctx.learner(self.init, head="score", objective=self.objective, tune=self.tune, optim=self.optim, total=total, heads=self.heads)
        found = learner.about.heads
        if found != self.heads:
            raise ModelError(f"is a reward model of {found} heads, and heads is {self.heads}", self.init, f"set heads: {found}")
        return learner

    def _check_start(self, learner: AnyLearner, samples: Sequence[Sample], batches: Sequence[Batch], template: Template) -> None:
        """What must hold before the first step; heads that are drawn anew know nothing, so the loss is known."""
        require_sound(learner, samples, batches, template, cut=self.too_long == "truncate")
        assert isinstance(self.objective, RewardObjective)
        if learner.about.stats == RewardStats() and self.objective.start is not None:
            require_start(learner.evaluate(batches)["loss"].value, self.objective.start, UNTRAINED_TOLERANCE)

    def _describe(self, ctx: Context, learner: AnyLearner, trained: Sequence[Sample], tested: Sequence[Sample] | None) -> None:
        """Gives the head its zero and unit, and its temperature where one can be fitted; writes what the scores are worth."""
        heard = hear(learner, trained, self.tokens_per_batch)
        stats = measure(heard, labelled=self._reads_labels)
        notes: list[str] = ["not calibrated: there are no held-out answers"]
        found = None
        if tested is not None:
            heard = hear(learner, tested, self.tokens_per_batch)
            reason = why_not(heard, labelled=self._reads_labels)
            found = None if reason else calibrate(heard, labelled=self._reads_labels)
            notes = _doubts(found) if found else [reason]
        if found:
            stats = replace(stats, temperature=found.temperature, even=0.0 if self._reads_labels else stats.mean)
        learner.measure_in(stats)
        bias = length_bias(heard)
        card = RewardCard(tested is not None, len(heard.lengths), self.heads, stats.mean, stats.std, bias, found, tuple(notes))
        (ctx.folder / "card.json").write_text(write_card(card), encoding="utf-8")
        for note in notes if tested is not None else ():
            ctx.console.message(f"{ctx.name}: {note}")
        ctx.metrics |= _numbers(card)

    def _samples(self, ctx: Context, pairs: Refs, labelled: Refs) -> Pool:
        """One source of samples per reference."""
        template = ctx.template(self.init)
        if not self._reads_labels:
            return pooled(ctx, self, self.init, [Source(ctx.preferences(ref), "pairs", partial(paired, template)) for ref in listed(pairs)])
        single = partial(from_preferences, template, bonded=False)
        sources = [Source(ctx.preferences(ref), "judged answers", single) for ref in listed(pairs)]
        sources += [Source(ctx.conversations(ref), "labelled answers", partial(from_labels, template)) for ref in listed(labelled)]
        return pooled(ctx, self, self.init, sources)


def paired(template: Template, preferences: Iterable[Preference]) -> Iterator[Sample]:
    """Two bonded samples per preference, chosen first, with the column `margin`."""
    for preference, *samples in both(template, preferences):
        yield from (replace(sample, columns={"margin": preference.margin or 0.0}) for sample in samples)


def require_both(rows: Sequence[Sample]) -> None:
    """Sees to it that there are right answers and wrong ones.

    Raises:
        DataError: all labels are the same, so there is nothing to tell apart.
    """
    first = rows[0].columns["label"]
    if all(row.columns["label"] == first for row in rows):
        fix = "add answers of the other kind: a `labels` stage with a larger n, or prompts that the policy sometimes solves"
        raise DataError(f"all {len(rows)} answers are labelled {'right' if first else 'wrong'}: there is nothing to tell apart", fix=fix)


MEASURED = 256
"""Pairs, or labelled answers, that tell the zero and the unit of a reward model."""


def some(rows: Pool, count: int, seed: int) -> list[Sample]:
    """The samples of at most `count` units, drawn from all sources alike."""
    chosen = permutation(int(rows.units[-1]) + 1, seed)[:count]
    return [rows[int(i)] for i in np.flatnonzero(np.isin(rows.units, chosen))]


def _doubts(found: Calibration) -> list[str]:
    if found.temperature < 0.99 * HOTTEST:
        return []
    return ["the scores rank held-out answers no better than chance: the temperature is the highest there is, and every probability one half"]


def _numbers(card: RewardCard) -> dict[str, float]:
    """The metrics of a card."""
    bias, found = card.length_bias, card.calibration
    numbers: dict[str, float | None] = {}
    if bias is not None:
        numbers |= {"final_accuracy": bias.accuracy, "final_longer_wins": bias.longer_wins, "length_correlation": bias.correlation}
        numbers |= {"matched_accuracy": bias.matched_accuracy, "shorter_accuracy": bias.shorter_accuracy}
    if found is not None:
        numbers |= {"temperature": found.temperature, "calibration_error": found.error, "calibrated_error": found.calibrated_error}
    return {name: value for name, value in numbers.items() if value is not None}
