"""Learning from preferences without a reward model: DPO and its family."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, ClassVar

from annotated_types import Ge

from xwin.data.store import Pool
from xwin.data.template import Template
from xwin.learning.learner import AnyLearner
from xwin.learning.optim import Optim
from xwin.objectives._preference import PreferenceObjective
from xwin.objectives.base import Objective
from xwin.objectives.dpo import Dpo
from xwin.run.artifacts import Artifact, ConversationsRef, Model, ModelRef, PreferencesRef
from xwin.stages._preference import Judged, from_labels, from_preferences, partners, recall, remember
from xwin.stages._samples import Source, pooled
from xwin.stages._start import require_sound, require_start
from xwin.stages._training import Refs, RowTraining, Steps, cut, listed, names
from xwin.stages._work import Phase, Rows, Use
from xwin.stages.sft import due, validate

if TYPE_CHECKING:
    from xwin.stages._context import Context


class Preference(RowTraining):
    """Trains a model on answers that were judged: pairs, or single answers with a label."""

    init: ModelRef
    """The model to start from, usually the SFT model."""

    data: PreferencesRef | tuple[PreferencesRef, ...] = ()
    """Preferences: stages, or JSONL files. For kto each answer counts by itself, chosen ones as desirable."""

    labelled: ConversationsRef | tuple[ConversationsRef, ...] = ()
    """Conversations with a label, for kto."""

    validation: PreferencesRef | None = None
    """Held-out preferences, of other prompts; with them the best checkpoint is kept. null = keep the last."""

    validation_labelled: ConversationsRef | None = None
    """Held-out conversations with a label, for kto, beside or instead of `validation`."""

    reference: ModelRef | None = None
    """The frozen model that log-ratios are measured from; null = the model that training starts from."""

    objective: Objective = Dpo()
    """The loss: dpo, ipo, kto, orpo or simpo."""

    optim: Optim = Optim(lr=1e-6)
    """How the parameters move."""

    eval_every: Annotated[int, Ge(1)] = 10
    """Optimizer steps between evaluations on `validation`."""

    patience: Annotated[int, Ge(1)] | None = 3
    """Evaluations without improvement after which training ends; null = never."""

    epochs: Annotated[int, Ge(1)] = 1
    """Times each answer is seen, at most."""

    tokens_per_step: Annotated[int, Ge(16)] = 4096
    """Tokens of one optimizer step, prompts counted with each answer."""

    makes: ClassVar[Mapping[str, type[Artifact]]] = {"final": Model}

    def summary(self) -> str:
        return f"{self.objective.kind}, {self.epochs} epochs, {self.tokens_per_step} tokens a step, {self.tune.kind}"

    def work(self) -> Sequence[Phase]:
        """The reference reads everything before the policy has gradients and moments; a reference point is read once more by both."""
        refs, again = listed(self.data) + listed(self.labelled), int("reference_point" in self.objective.needs)
        policy = self.trains("policy", self.init, read=again)
        training = Phase((policy,), Rows(refs, self.weights, self.epochs, self.tokens_per_step), self.tokens_per_batch)
        if "ref_logp" not in self.objective.needs:
            return (training,)
        reference = Use("reference", self.reference or self.init, read=1 + again)
        return (Phase((reference,), Rows(refs), self.tokens_per_batch), training)

    def check(self) -> Sequence[tuple[str, str, str]]:
        kind, needs = self.objective.kind, self.objective.needs
        if not isinstance(self.objective, PreferenceObjective):
            return [("objective", f"{kind} does not learn from judged answers", "choose dpo, ipo, kto, orpo or simpo")]
        problems = self.weight_mistakes(len(listed(self.data)) + len(listed(self.labelled)))
        if not (self.data or self.labelled):
            problems.append(("", "there is nothing to learn from", "add `data:`" + (" or `labelled:`" if "label" in needs else "")))
        if "label" not in needs:
            given = [name for name in ("labelled", "validation_labelled") if getattr(self, name)]
            problems += [(name, f"{kind} compares two answers to one prompt", "give preferences, or choose kto") for name in given]
        if self.reference is not None and "ref_logp" not in needs:
            problems.append(("reference", f"{kind} has no reference", "remove it"))
        return problems

    def run(self, ctx: Context) -> None:
        rows = self._samples(ctx, self.data, self.labelled)
        train, held = self._judged(ctx, "train", rows), Judged(())
        if self.validation or self.validation_labelled:
            held = self._judged(ctx, "held", self._samples(ctx, self.validation, self.validation_labelled))
        steps = cut(rows, tokens=self.tokens_per_step, epochs=self.epochs, seed=ctx.seed("data"), weights=self.weights)
        learner = ctx.learner(self.init, head="language", objective=self.objective, tune=self.tune, optim=self.optim, total=len(steps))
        if "ref_logp" in self.objective.needs:
            train, held = self._heard(ctx, train, held, steps, learner)
        loop = ctx.loop(self, len(steps), {"policy": learner}, state={}, patience=self.patience if held.rows else None)
        if loop.start == 0:
            self._check_start(learner, train, steps, ctx.template(self.init))
        for step in loop:
            if loop.skips(names(steps[step])):
                continue
            with loop.trial():
                metrics = learner.step(train.batches(learner, steps.places[step], self.tokens_per_batch))
                evaluate = held.rows and due(step, self.eval_every, len(steps))
                validation = validate(learner, held.batches(learner, range(len(held.rows)), self.tokens_per_batch)) if evaluate else None
                loop.done(metrics, validation=validation, score=validation["validation_loss"] if validation else None)
        ctx.finish(learner, loop, "final", ctx.template_name(self.init))

    def _samples(self, ctx: Context, pairs: Refs, labelled: Refs) -> Pool:
        """One source of samples per reference."""
        template, bonded = ctx.template(self.init), "label" not in self.objective.needs
        made = "judged pairs" if bonded else "judged answers"
        sources = [Source(ctx.preferences(ref), made, partial(from_preferences, template, bonded=bonded)) for ref in listed(pairs)]
        sources += [Source(ctx.conversations(ref), "labelled answers", partial(from_labels, template)) for ref in listed(labelled)]
        return pooled(ctx, self, self.init, sources)

    def _judged(self, ctx: Context, name: str, rows: Pool) -> Judged:
        """With partners where the objective needs a reference point."""
        return Judged(rows, partners(rows, ctx.seed("partners", name)) if "reference_point" in self.objective.needs else ())

    def _heard(self, ctx: Context, train: Judged, held: Judged, steps: Steps, policy: AnyLearner) -> tuple[Judged, Judged]:
        """Both with what the reference says of them. It is asked once, and given back; a resumed stage finds the answers."""
        path = ctx.directory.checkpoints / "reference.safetensors"
        found = recall(path)
        if found is None:
            ctx.console.message(f"{ctx.name}: the reference reads {len(train.rows) + len(held.rows)} answers")
            own = self._is_own_reference()
            reference = ctx.reference(self.init, policy) if own else ctx.reader(self.reference or self.init, self.init)
            train = train.heard(reference, steps.places, self.tokens_per_batch)
            held = held.heard(reference, [range(len(held.rows))], self.tokens_per_batch)
            found = train.tensors("train") | held.tensors("held")
            remember(path, found)
        return train.recalled("train", found), held.recalled("held", found)

    def _check_start(self, learner: AnyLearner, train: Judged, steps: Steps, template: Template) -> None:
        """What must hold before the first step; where the policy starts as the reference, its loss is known, too."""
        first = train.batches(learner, steps.places[0], self.tokens_per_batch)
        require_sound(learner, steps[0], first, template, cut=self.too_long == "truncate")
        expected = self.objective.start if isinstance(self.objective, PreferenceObjective) else None
        if expected is not None and self._is_own_reference():
            require_start(learner.evaluate(first)["loss"].value, expected)

    def _is_own_reference(self) -> bool:
        return self.reference in {None, self.init}
