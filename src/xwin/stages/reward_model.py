"""Reward modelling from preferences."""

from __future__ import annotations

import math
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
from xwin.errors import TrainingStopped
from xwin.learning.learner import Learner
from xwin.models.heads import RewardStats
from xwin.objectives.bradley_terry import BradleyTerry
from xwin.run.artifacts import Artifact, NetworkRef, PreferencesRef
from xwin.run.artifacts import RewardModel as RewardModelArtifact
from xwin.seeds import permutation
from xwin.stages._samples import Source, both, pooled
from xwin.stages._start import UNTRAINED_TOLERANCE, require_sound, require_start
from xwin.stages._training import RowTraining, cut, names
from xwin.stages._work import Phase, Rows, Use
from xwin.stages.sft import due, validate

if TYPE_CHECKING:
    from xwin.stages._context import Context


class RewardModel(RowTraining):
    """Trains a scalar head, and what is below it, to score the chosen answer above the rejected one."""

    init: NetworkRef
    """The model to start from, usually the SFT model."""

    data: PreferencesRef | tuple[PreferencesRef, ...]
    """Preferences: stages, or JSONL files."""

    validation: PreferencesRef | None = None
    """Held-out preferences, of other prompts; with them the best checkpoint is kept. null = keep the last."""

    eval_every: Annotated[int, Ge(1)] = 10
    """Optimizer steps between evaluations on `validation`."""

    patience: Annotated[int, Ge(1)] | None = 3
    """Evaluations without improvement after which training ends; null = never."""

    epochs: Annotated[int, Ge(1)] = 1
    """Times each pair is seen, at most. Reward models overfit in the second epoch (arXiv:2203.02155, appendix C.2)."""

    tokens_per_step: Annotated[int, Ge(16)] = 4096
    """Tokens of one optimizer step, prompts counted with each answer."""

    objective: BradleyTerry = BradleyTerry()
    """The loss."""

    makes: ClassVar[Mapping[str, type[Artifact]]] = {"final": RewardModelArtifact}

    def summary(self) -> str:
        return f"{self.epochs} epochs, {self.tokens_per_step} tokens a step, {self.tune.kind}"

    def work(self) -> Sequence[Phase]:
        refs = (self.data,) if isinstance(self.data, str) else self.data
        rows = Rows(refs, self.weights, self.epochs, self.tokens_per_step)
        return (Phase((Use("reward model", self.init, "score", tune=self.tune, trained=1),), rows, self.tokens_per_batch),)

    def check(self) -> Sequence[tuple[str, str, str]]:
        return self.weight_mistakes(1 if isinstance(self.data, str) else len(self.data))

    def run(self, ctx: Context) -> None:
        refs = (self.data,) if isinstance(self.data, str) else self.data
        rows = self._samples(ctx, *refs)
        held = pack(self._samples(ctx, self.validation), tokens=self.tokens_per_batch, share=True) if self.validation else []
        steps = cut(rows, tokens=self.tokens_per_step, epochs=self.epochs, seed=ctx.seed("data"), weights=self.weights)
        learner = ctx.learner(self.init, head="score", objective=self.objective, tune=self.tune, optim=self.optim, total=len(steps))
        loop = ctx.loop(self, len(steps), {"policy": learner}, state={}, patience=self.patience if held else None)
        for step in loop:
            if loop.skips(names(steps[step])):
                continue
            batches = pack(steps[step], tokens=self.tokens_per_batch, share=True)
            if step == 0:
                self._check_start(learner, steps[0], batches, ctx.template(self.init))
            with loop.trial():
                metrics = learner.step(batches)
                validation = validate(learner, held) if held and due(step, self.eval_every, len(steps)) else None
                loop.done(metrics, validation=validation, score=validation["validation_loss"] if validation else None)
        loop.restore_best()
        assert learner.model.head is not None
        learner.model.head.stats = measure(learner, some(rows, MEASURED, ctx.seed("stats")), self.tokens_per_batch)
        ctx.finish(learner, loop, "final", ctx.template_name(self.init))

    def _check_start(self, learner: Learner, samples: Sequence[Sample], batches: Sequence[Batch], template: Template) -> None:
        """What must hold before the first step; a head that is drawn anew knows nothing, so the loss is ln 2."""
        require_sound(learner, samples, batches, template, cut=self.too_long == "truncate")
        assert learner.model.head is not None
        if learner.model.head.stats == RewardStats() and not self.objective.margin_scale:
            require_start(learner.evaluate(batches)["loss"].value, math.log(2), UNTRAINED_TOLERANCE)

    def _samples(self, ctx: Context, *refs: str) -> Pool:
        template = ctx.template(self.init)
        return pooled(ctx, self, self.init, [Source(ctx.preferences(ref), "pairs", partial(paired, template)) for ref in refs])


def paired(template: Template, preferences: Iterable[Preference]) -> Iterator[Sample]:
    """Two bonded samples per preference, chosen first, with the column `margin`."""
    for preference, *samples in both(template, preferences):
        yield from (replace(sample, columns={"margin": preference.margin or 0.0}) for sample in samples)


MEASURED = 256
"""Pairs that tell the zero and the unit of a reward model."""


SAME = 1e-6
"""Reward units. A spread below this is none."""


def some(rows: Pool, count: int, seed: int) -> list[Sample]:
    """The samples of at most `count` units, drawn from all sources alike."""
    chosen = permutation(int(rows.units[-1]) + 1, seed)[:count]
    return [rows[int(i)] for i in np.flatnonzero(np.isin(rows.units, chosen))]


def measure(learner: Learner, rows: Sequence[Sample], tokens: int) -> RewardStats:
    """Mean and spread of the scores of training answers: the zero and the unit of what the reward model is used for.

    Raises:
        TrainingStopped: all scores are equal, so there is no unit.
    """
    batches = pack(rows, tokens=tokens, share=True)
    said = [out.get("score") for out in learner.forward(batches, frozenset({"score"}))]
    scores = [float(score[s]) for batch, score in zip(batches, said, strict=True) for s in batch.samples()]
    if np.std(scores) < SAME:
        fix = "it has learned nothing: lower lr, or look at the pairs"
        raise TrainingStopped(f"the reward model gives all of {len(scores)} answers the same score, {scores[0]:.4g}", fix=fix)
    return RewardStats(float(np.mean(scores)), float(np.std(scores)))
