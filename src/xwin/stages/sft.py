"""Supervised fine-tuning on conversations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, ClassVar

from annotated_types import Ge

from xwin.data.batch import Batch, pack
from xwin.data.store import Pool
from xwin.data.template import samples
from xwin.learning.learner import AnyLearner
from xwin.models.hub import TemplateName
from xwin.objectives.sft import Sft as CrossEntropy
from xwin.run.artifacts import Artifact, ConversationsRef, Model, ModelRef
from xwin.stages._samples import Source, pooled
from xwin.stages._start import require_sound
from xwin.stages._training import RowTraining, cut, names
from xwin.stages._work import Phase, Rows

if TYPE_CHECKING:
    from xwin.stages._context import Context


class Sft(RowTraining):
    """Trains a model on the assistant's turns of conversations."""

    init: ModelRef
    """The model to start from."""

    data: ConversationsRef | tuple[ConversationsRef, ...]
    """Conversations: stages, or JSONL files."""

    validation: ConversationsRef | None = None
    """Held-out conversations; with them the best checkpoint is kept. null = keep the last."""

    eval_every: Annotated[int, Ge(1)] = 10
    """Optimizer steps between evaluations on `validation`."""

    patience: Annotated[int, Ge(1)] | None = 3
    """Evaluations without improvement after which training ends; null = never."""

    epochs: Annotated[int, Ge(1)] = 2
    """Times each conversation is seen, at most."""

    tokens_per_step: Annotated[int, Ge(16)] = 4096
    """Tokens of one optimizer step, prompts included."""

    template: TemplateName = "vicuna"
    """The chat template that is learned and written into the tokenizer; own = the one the tokenizer brings."""

    objective: CrossEntropy = CrossEntropy()
    """The loss."""

    makes: ClassVar[Mapping[str, type[Artifact]]] = {"final": Model}

    def summary(self) -> str:
        return f"{self.epochs} epochs, {self.tokens_per_step} tokens a step, {self.tune.kind}"

    def work(self) -> Sequence[Phase]:
        refs = (self.data,) if isinstance(self.data, str) else self.data
        rows = Rows(refs, self.weights, self.epochs, self.tokens_per_step)
        return (Phase((self.trains("policy", self.init),), rows, self.tokens_per_batch),)

    def check(self) -> Sequence[tuple[str, str, str]]:
        return self.weight_mistakes(1 if isinstance(self.data, str) else len(self.data))

    def run(self, ctx: Context) -> None:
        refs = (self.data,) if isinstance(self.data, str) else self.data
        held = self._batches(ctx, self.validation)
        steps = cut(self._samples(ctx, *refs), tokens=self.tokens_per_step, epochs=self.epochs, seed=ctx.seed("data"), weights=self.weights)
        learner = ctx.learner(self.init, head="language", objective=self.objective, tune=self.tune, optim=self.optim, total=len(steps))
        loop = ctx.loop(self, len(steps), {"policy": learner}, state={}, patience=self.patience if held else None)
        for step in loop:
            rows = steps[step]
            if loop.skips(names(rows)):
                continue
            batches = pack(rows, tokens=self.tokens_per_batch, share=True)
            if step == 0:
                require_sound(learner, rows, batches, ctx.template(self.init, self.template), cut=self.too_long == "truncate")
            with loop.trial():
                metrics = learner.step(batches)
                validation = validate(learner, held) if held and due(step, self.eval_every, len(steps)) else None
                loop.done(metrics, validation=validation, score=validation["validation_loss"] if validation else None)
        ctx.finish(learner, loop, "final", self.template)

    def _samples(self, ctx: Context, *refs: str) -> Pool:
        template = ctx.template(self.init, self.template)
        return pooled(ctx, self, self.init, [Source(ctx.conversations(ref), "sft", partial(samples, template)) for ref in refs], self.template)

    def _batches(self, ctx: Context, ref: str | None) -> list[Batch]:
        return [] if ref is None else pack(self._samples(ctx, ref), tokens=self.tokens_per_batch, share=True)


def due(step: int, every: int, total: int) -> bool:
    """Whether step `step` of `total` ends with an evaluation; the last one always does."""
    return (step + 1) % every == 0 or step + 1 == total


def validate(learner: AnyLearner, held: list[Batch]) -> dict[str, float]:
    """Loss and stats of the objective on held-out batches, as validation_* metrics."""
    return {f"validation_{name}": measure.value for name, measure in learner.evaluate(held).items()}
