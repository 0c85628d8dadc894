"""The stages of a plan as the estimator sees them: which networks they hold, of which shape, and how much goes through."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import ceil, inf

from xwin.errors import ModelError
from xwin.models.hub import config_of
from xwin.recipe._amounts import Amounts
from xwin.recipe._lower import lower
from xwin.recipe._machines import Machine
from xwin.recipe._networks import NetworkShape, UnknownShape, read_shape
from xwin.recipe.estimate import Held, Load, Memory, fits, memory, time
from xwin.recipe.fields import references
from xwin.recipe.plan import Plan, PlannedStage, root_of
from xwin.run.artifacts import RewardModel
from xwin.stages._work import Amount, Answers, Phase, Rows, Use


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a stage needs."""

    parameters: int
    """Of the network that is trained or writes."""
    trained: int
    """Of all networks of the stage."""
    memory: Memory
    """Of the phase that needs most."""
    seconds: float | None
    """None when the amount of data is not known."""
    bound: bool
    """Whether data are not made yet, so that time is an upper bound."""
    advice: str
    """What to lower when it does not fit; empty when it does."""


def estimate(plan: Plan, stage: PlannedStage, machine: Machine, amounts: Amounts) -> Estimate | None:
    """What a stage needs on a machine; None when it holds no network.

    Raises:
        ModelError: the shape of a model is not known.
    """
    phases = stage.spec.work()
    if not phases:
        return None
    held = [tuple(_held(plan, stage, phase)) for phase in phases]
    loads = [load(phase, amounts_of(amounts, stage, phase), machine.count) for phase in phases]
    memories = [memory(h, each, machine) for h, each in zip(held, loads, strict=True)]
    most = max(range(len(phases)), key=lambda i: memories[i].peak)
    main = held[-1][0]
    advice = "" if fits(memories[most], machine) else lower(held[most], loads[most], machine)
    times = [time(h, each, machine) for h, each in zip(held, loads, strict=True)]
    known = all(each.amount.rows for each in loads)
    trained = max(sum(network.trained for network in group) for group in held)
    bound = not all(each.amount.known for each in loads) or any(each.answers for each in loads)
    return Estimate(main.shape.parameters, trained, memories[most], sum(times) if known else None, bound, advice)


def tokens_a_second(plan: Plan, stage: PlannedStage, machine: Machine, amounts: Amounts) -> float | None:
    """The speed that is expected of the last phase of a stage; None when its data or its model are not known."""
    phase = stage.spec.work()[-1]
    try:
        held = tuple(_held(plan, stage, phase))
    except ModelError:
        return None
    each = load(phase, amounts_of(amounts, stage, phase), machine.count)
    return each.tokens / time(held, each, machine) if each.tokens else None


def amounts_of(amounts: Amounts, stage: PlannedStage, phase: Phase) -> Sequence[Amount | None]:
    """How much each source of a phase holds."""
    refs = phase.data.refs if isinstance(phase.data, Rows) else (phase.data.prompts,)
    longest = phase.batch if isinstance(phase.data, Rows) else inf
    return [amounts.of(stage, ref, phase.uses[0].ref, longest) for ref in refs]


def load(phase: Phase, found: Sequence[Amount | None], gpus: int = 1) -> Load:
    """What goes through a phase.

    Args:
        phase: of a stage.
        found: how much each of its sources holds; None where that is not known. A batch is then taken to be full.
        gpus: that share a step.
    """
    if isinstance(phase.data, Rows):
        return _rows_load(phase, phase.data, found, gpus)
    return _answers_load(phase, phase.data, found[0], gpus)


def _rows_load(phase: Phase, data: Rows, found: Sequence[Amount | None], gpus: int) -> Load:
    if any(each is None for each in found):
        step = data.step or phase.batch
        return Load(Amount(0, 0, min(phase.batch, step)), 0, min(phase.batch, step), ceil(step / phase.batch / gpus), 0)
    weights = data.weights or (1.0,) * len(found)
    whole = sum((replace(a, rows=a.rows * w) for a, w in zip(found, weights, strict=True) if a), Amount(0, 0))
    whole = replace(whole, sides=max(a.sides for a in found if a))
    counted = whole.sides * whole.prompt + whole.answer  # a step counts prompts with each answer, a batch computes them once
    per_step = (data.step or phase.batch) * (whole.prompt + whole.answer) / max(counted, 1)
    rows = whole.rows * data.epochs
    steps = ceil(rows * counted / data.step) if data.step else 0
    return Load(whole, rows, min(phase.batch, per_step), max(1, ceil(per_step / phase.batch / gpus)), steps)


def _answers_load(phase: Phase, data: Answers, found: Amount | None, gpus: int) -> Load:
    prompts = found or Amount(0, 0, longest=0)
    asked = data.asked if data.asked is not None else min(prompts.rows, data.limit or prompts.rows)
    amount = Amount(prompts.rows, prompts.prompt, float(data.n * data.longest), data.n, prompts.longest, known=False)
    tokens = asked * (amount.prompt + amount.answer)
    per_step = tokens / data.steps if data.steps else float(phase.batch)
    return Load(amount, asked, min(phase.batch, per_step or phase.batch), max(1, ceil(per_step / phase.batch / gpus)), data.steps, data)


def _held(plan: Plan, stage: PlannedStage, phase: Phase) -> Iterator[Held]:
    judges = [r.text for kind in phase.scorers for r in references(type(kind), kind) if issubclass(r.wants.artifact, RewardModel)]
    for use in (*phase.uses, *(Use("scorer", ref, "score", read=1) for ref in dict.fromkeys(judges))):
        yield Held(use, _shape(plan, stage, use.ref), stage.inputs[use.ref].dtype)


def _shape(plan: Plan, stage: PlannedStage, ref: str) -> NetworkShape:
    root = root_of(plan, stage, ref)
    config = config_of(root, plan.read.source.folder) if root else None
    if root is None or config is None:
        where = root.path if root else ref
        raise ModelError("the shape of the model is not known before it is fetched", where, f"`xwin chat {where}` fetches it, and so does `xwin run`")
    try:
        shape = read_shape(config)
    except UnknownShape as error:
        raise ModelError(f"the shape of the model is not known: {error}", root.path) from error
    return replace(shape, writes=False) if issubclass(stage.inputs[ref].artifact, RewardModel) else shape
