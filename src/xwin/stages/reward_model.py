"""Reward modelling from preferences."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
from annotated_types import Ge

from xwin.data.batch import Sample, pack
from xwin.data.conversation import Preference
from xwin.data.store import Pool
from xwin.data.template import Template
from xwin.learning.learner import Learner
from xwin.models.heads import RewardStats
from xwin.objectives.bradley_terry import BradleyTerry
from xwin.run.artifacts import Artifact, NetworkRef, PreferencesRef
from xwin.run.artifacts import RewardModel as RewardModelArtifact
from xwin.stages._samples import Source, both, pooled
from xwin.stages._training import Training, cut
from xwin.stages.sft import due, validate

if TYPE_CHECKING:
    from xwin.stages._context import Context


class RewardModel(Training):
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

    def run(self, ctx: Context) -> None:
        refs = (self.data,) if isinstance(self.data, str) else self.data
        rows = self._samples(ctx, *refs)
        held = pack(self._samples(ctx, self.validation), tokens=self.tokens_per_batch, share=True) if self.validation else []
        steps = cut(rows, tokens=self.tokens_per_step, epochs=self.epochs, seed=ctx.seed("data"), weights=self.weights)
        learner = ctx.learner(self.init, head="score", objective=self.objective, tune=self.tune, optim=self.optim, total=len(steps))
        loop = ctx.loop(self, len(steps), {"policy": learner}, state={}, patience=self.patience if held else None)
        for step in loop:
            metrics = learner.step(pack(steps[step], tokens=self.tokens_per_batch, share=True))
            validation = validate(learner, held) if held and due(step, self.eval_every, len(steps)) else None
            loop.done(metrics, validation=validation, score=validation["validation_loss"] if validation else None)
        loop.restore_best()
        assert learner.model.head is not None
        learner.model.head.stats = measure(learner, rows[:512], self.tokens_per_batch)
        ctx.finish(learner, loop, "final", ctx.template_name(self.init))

    def _samples(self, ctx: Context, *refs: str) -> Pool:
        template = ctx.template(self.init)
        return pooled(ctx, self, self.init, [Source(ctx.preferences(ref), "pairs", partial(paired, template)) for ref in refs])


def paired(template: Template, preferences: Iterable[Preference]) -> Iterator[Sample]:
    """Two bonded samples per preference, chosen first, with the column `margin`."""
    for preference, *samples in both(template, preferences):
        yield from (replace(sample, columns={"margin": preference.margin or 0.0}) for sample in samples)


def measure(learner: Learner, rows: Sequence[Sample], tokens: int) -> RewardStats:
    """Mean and spread of the scores of training answers: the zero and the unit of what the reward model is used for."""
    batches = pack(rows, tokens=tokens, share=True)
    said = [out.get("score") for out in learner.forward(batches, frozenset({"score"}))]
    scores = [float(score[s]) for batch, score in zip(batches, said, strict=True) for s in batch.samples()]
    return RewardStats(float(np.mean(scores)), max(float(np.std(scores)), 1e-6))
