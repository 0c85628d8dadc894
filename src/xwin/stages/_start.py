"""What must hold before the first step of a training stage. A failure says which rows, and what is wrong with data, template or model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from xwin.data.batch import Batch, Sample, pack
from xwin.data.rollout import Group
from xwin.data.template import Template
from xwin.errors import TrainingStopped
from xwin.learning.learner import AnyLearner
from xwin.run.events import Measure

START_TOLERANCE = 0.01
"""Relative to the expected loss, or nats where that is below one: policy and reference compute one function on one layout."""

UNTRAINED_TOLERANCE = 0.15
"""Nats. A new reward head is drawn small, not zero."""

ALONE = {torch.float32: 1e-4, torch.bfloat16: 0.1}
"""Mean difference, nats or reward units, that rounding may make between a sample in a pack and the same sample alone."""

RATIO = {torch.float32: 1e-5, torch.bfloat16: 0.0}
"""Nats. Old and new log-probs of the first minibatch are made by one computation on one layout, so their ratio is exactly 1; in fp32 a device
that adds up in another order is forgiven, in bf16 it would drown the signal."""


def require_sound(learner: AnyLearner, samples: Sequence[Sample], batches: Sequence[Batch], template: Template, *, cut: bool) -> None:
    """Checks the first step of a stage: masks, ends and beginnings of its samples, and that packing does not change what the model says.

    Args:
        learner: that will take the step.
        samples: of the step.
        batches: the same, packed.
        template: they were rendered in.
        cut: whether long rows were truncated, so that an answer may have no end.

    Raises:
        TrainingStopped: names the sample, and what to do.
    """
    for sample in samples:
        _require_whole(sample, template, cut=cut)
    _require_same_alone(learner, samples, batches[0])


def require_sound_round(
    learners: Sequence[AnyLearner],
    round_: Sequence[tuple[Group, Sequence[Sample]]],
    lay_out: Callable[[Sequence[Sample]], list[Batch]],
    template: Template,
) -> None:
    """The same of the first minibatch of reinforcement learning, for policy and critic. An answer that was cut at its limit has no end.

    Args:
        learners: that will take the step.
        round_: groups, each with the samples of its rollouts in order.
        lay_out: packs samples as the step will.
        template: the prompts were rendered in.

    Raises:
        TrainingStopped: names the sample, and what to do.
    """
    samples = [sample for _, some in round_ for sample in some]
    finishes = [rollout.finish for group, _ in round_ for rollout in group.rollouts]
    for sample, finish in zip(samples, finishes, strict=True):
        _require_whole(sample, template, cut=finish != "stop")
    first, *_ = lay_out(samples)
    for learner in learners:
        _require_same_alone(learner, samples, first)


def require_ratio(metrics: Mapping[str, Measure], dtype: torch.dtype) -> None:
    """Checks what the first step measured of the ratio of new to old probabilities, where its objective measures it.

    Raises:
        TrainingStopped: it did not start at 1.
    """
    gap = metrics["ratio_gap"].value if "ratio_gap" in metrics else 0.0
    if not gap <= RATIO[dtype]:
        what = f"a log-probability moved by {gap:.3g} nats before anything was learned; at most {RATIO[dtype]:g} is rounding"
        fix = "the model does not compute the same twice: look for dropout, for noise in its layers, or for kernels that are not deterministic"
        raise TrainingStopped(what, "step 0", fix)


def require_start(found: float, expected: float, tolerance: float = START_TOLERANCE) -> None:
    """Checks the loss before the first step, which is known: the policy still is the reference, or a reward head has learned nothing.

    Raises:
        TrainingStopped: it is not what the objective gives there, ln 2 for DPO and for Bradley-Terry.
    """
    if abs(found - expected) > tolerance * max(1.0, expected):
        what = f"the loss before the first step is {found:.4f}, but where nothing has been learned it must be {expected:.4f}"
        fix = "check that model, reference, dtype and template are those that were meant"
        raise TrainingStopped(what, "step 0", fix)


def _require_whole(sample: Sample, template: Template, *, cut: bool) -> None:
    _require_ends(sample, template.stop, cut=cut)
    if template.bos is not None and sample.tokens[:2] == (template.bos, template.bos):
        fix = "the chat template writes the token and the tokenizer adds it once more: use another template"
        raise TrainingStopped("begins with two beginning-of-sequence tokens", f"sample {sample.id}", fix)


def _require_ends(sample: Sample, stop: Sequence[int], *, cut: bool) -> None:
    """Every trained stretch ends with a token that ends an answer, so that the model learns to stop."""
    if True not in sample.mask:
        raise TrainingStopped("nothing of it would be trained", f"sample {sample.id}", "remove the row; `xwin data show` shows what is trained")
    ends = [t for t, (here, after) in enumerate(zip(sample.mask, (*sample.mask[1:], False), strict=True)) if here and not after]
    unended = next((t for t in ends if sample.tokens[t] not in stop), None)
    if unended is not None and not (cut and unended == len(sample.tokens) - 1):
        what = f"its answer ends with token {sample.tokens[unended]}, not with the end token {stop[0]}, so the model would never learn to stop"
        raise TrainingStopped(what, f"sample {sample.id}, token {unended}", "`xwin data show` shows what is trained; use another template")


def _require_same_alone(learner: AnyLearner, samples: Sequence[Sample], batch: Batch) -> None:
    """The model says the same of a sample in a pack and alone: no other sample is attended to."""
    name = "score" if learner.about.heads else "logp"
    packed = {sample.id: sample for sample in samples if sample.id in batch.ids}
    sample = min(packed.values(), key=lambda s: len(s.tokens))
    (alone,) = pack([sample], tokens=len(sample.tokens), temperature=batch.temperature)
    found = []
    for where in (batch, alone):
        (out,) = learner.forward([where], frozenset({name}))
        segment = where.ids.index(sample.id)
        values = out.get(name)
        found.append(values[segment : segment + 1] if name == "score" else values[(where.segment == segment) & where.mask])
    gap = float((found[0] - found[1]).abs().mean())
    if not gap <= ALONE[learner.about.dtype]:  # also where it is not a number
        what = f"the model says something else of it in a pack than alone: a mean difference of {gap:.3g}"
        fix = "its attention does not keep to single samples: this architecture cannot be trained in packs"
        raise TrainingStopped(what, f"sample {sample.id}", fix)
