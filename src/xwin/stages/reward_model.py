"""Reward modelling from preferences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
from annotated_types import Ge

from xwin.data.batch import Sample, pack
from xwin.data.conversation import Message, Preference
from xwin.data.template import Template
from xwin.errors import DataError
from xwin.learning.learner import Learner
from xwin.models.heads import RewardStats
from xwin.objectives.bradley_terry import BradleyTerry
from xwin.run.artifacts import Artifact, NetworkRef, PreferencesRef
from xwin.run.artifacts import RewardModel as RewardModelArtifact
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
        template = ctx.template(self.init, "vicuna")
        refs = (self.data,) if isinstance(self.data, str) else self.data
        rows = paired(template, ctx.preferences(*refs), longest=self.tokens_per_batch)
        held_rows = paired(template, ctx.preferences(self.validation), longest=self.tokens_per_batch) if self.validation else []
        held = pack(held_rows, tokens=self.tokens_per_batch, share=True)
        steps = cut(rows, tokens=self.tokens_per_step, epochs=self.epochs, seed=ctx.seed("data"))
        learner = ctx.learner(self.init, head="score", objective=self.objective, tune=self.tune, optim=self.optim, total=len(steps))
        loop = ctx.loop(self, len(steps), {"policy": learner}, state={}, patience=self.patience if held else None)
        for step in loop:
            metrics = learner.step(pack(steps[step], tokens=self.tokens_per_batch, share=True))
            validation = validate(learner, held) if held and due(step, self.eval_every, len(steps)) else None
            loop.done(metrics, validation=validation, score=validation["validation_loss"] if validation else None)
        loop.restore_best()
        assert learner.model.head is not None
        learner.model.head.stats = measure(learner, rows[:512], self.tokens_per_batch)
        ctx.finish(learner, loop, "final")


def paired(template: Template, preferences: Sequence[Preference], *, longest: int) -> list[Sample]:
    """Two bonded samples per preference, chosen first, with the column `margin`.

    Raises:
        DataError: a pair is longer than `longest` tokens; names the row.
    """
    rows = []
    for index, preference in enumerate(preferences):
        bond = f"{index}:{preference.id}"
        both = [_sample(template, preference, answer, f"{bond}/{side}", bond) for side, answer in _sides(preference)]
        if sum(len(s.tokens) for s in both) > longest:
            raise DataError(f"a pair of {sum(len(s.tokens) for s in both)} tokens does not fit {longest}", preference.id, "raise tokens_per_batch")
        rows += both
    return rows


def _sides(preference: Preference) -> tuple[tuple[str, Message], tuple[str, Message]]:
    return ("chosen", preference.chosen), ("rejected", preference.rejected)


def _sample(template: Template, preference: Preference, answer: Message, name: str, bond: str) -> Sample:
    """The prompt is exactly the one an engine continues, so the answer starts at the same token in both samples."""
    prompt = template.prompt(preference.prompt)
    tokens = template.render((*preference.prompt, answer)).tokens
    mask = (False,) * len(prompt) + (True,) * (len(tokens) - len(prompt))
    return Sample(name, tokens, mask, {"margin": preference.margin or 0.0}, bond)


def measure(learner: Learner, rows: Sequence[Sample], tokens: int) -> RewardStats:
    """Mean and spread of the scores of training answers: the zero and the unit of what the reward model is used for."""
    batches = pack(rows, tokens=tokens, share=True)
    said = [out.get("score") for out in learner.forward(batches, frozenset({"score"}))]
    scores = [float(score[s]) for batch, score in zip(batches, said, strict=True) for s in batch.samples()]
    return RewardStats(float(np.mean(scores)), max(float(np.std(scores)), 1e-6))
