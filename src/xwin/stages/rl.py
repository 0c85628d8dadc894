"""Reinforcement learning from a scorer: sample, score, assign credit, step. PPO and its successors differ in credit, objective and critic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from annotated_types import Ge, Gt

from xwin.credit.base import Credit
from xwin.credit.gae import Gae
from xwin.data.conversation import Conversation
from xwin.data.rollout import Group, Prompt, scored
from xwin.data.sources import window
from xwin.data.template import Template
from xwin.engines.base import Engine, EngineKind, Sampling
from xwin.engines.local import Local
from xwin.learning.learner import Learner
from xwin.learning.optim import Optim
from xwin.models.tuning import LastLayers, Tuning
from xwin.objectives.base import Objective
from xwin.objectives.ppo import Ppo
from xwin.objectives.value import Value
from xwin.run.artifacts import Artifact, ConversationsRef, Model, ModelRef, NetworkRef
from xwin.run.events import Mean
from xwin.scorers.base import Scorer, ScorerKind
from xwin.seeds import derive
from xwin.spec import Spec
from xwin.stages._rl import Packing, RolloutLog, Team, describe, in_order, minibatches, update, variance_explained
from xwin.stages._sampling import group
from xwin.stages._training import Training
from xwin.stages.sft import due

if TYPE_CHECKING:
    from xwin.stages._context import Context


class Critic(Spec):
    """The model that says what a token is worth."""

    init: NetworkRef
    """What it starts from, usually the reward model; its value head is drawn anew."""

    tune: Tuning = LastLayers()
    """Which of its parameters are trained, beside the head."""

    optim: Optim = Optim(lr=1e-4, schedule="constant")
    """How they move."""

    objective: Value = Value()
    """Its loss."""


class Kl(Spec):
    """The price of leaving the reference, paid per token inside the reward."""

    coef: Annotated[float, Ge(0)] = 0.05
    """Reward units per nat, at the start."""

    target: Annotated[float, Gt(0)] | None = None
    """Nats per answer that the price is steered to (Ziegler et al. 2019, arXiv:1909.08593, section 2.2); null = the price stays."""

    rate: Annotated[float, Gt(0)] = 0.1
    """Largest relative change of the price in one step is a fifth of this, unitless."""

    def following(self, coef: float, kl: float) -> float:
        """The price after a step whose answers had `kl` nats: x (1 + rate * clip(kl / target - 1, -0.2, 0.2))."""
        if self.target is None:
            return coef
        return coef * (1 + self.rate * min(max(kl / self.target - 1, -0.2), 0.2))


@dataclass(frozen=True, slots=True)
class RLState:
    """What the loop carries from step to step beside weights; saved in every checkpoint."""

    rows_consumed: int
    kl_coef: float


class Rl(Training):
    """Trains a policy on its own answers."""

    init: ModelRef
    """The policy to start from; also the reference that KL is measured to."""

    prompts: ConversationsRef
    """What is asked: conversations without their last answer."""

    scorer: ScorerKind
    """Who judges."""

    objective: Objective = Ppo()
    """The loss of the policy."""

    credit: Credit = Gae()
    """From scores to advantages."""

    critic: Critic | None = None
    """Needed by credit that reads values; null = none."""

    kl: Kl = Kl()
    """The price of leaving the reference."""

    steps: Annotated[int, Ge(1)] = 50
    """Rounds of sampling and learning."""

    prompts_per_step: Annotated[int, Ge(1)] = 16
    """Prompts of a round."""

    n: Annotated[int, Ge(1)] = 4
    """Answers per prompt."""

    minibatches: Annotated[int, Ge(1)] = 2
    """Optimizer steps per pass over a round's answers."""

    passes: Annotated[int, Ge(1)] = 1
    """Passes over a round's answers."""

    sampling: Sampling = Sampling()
    """How answers are drawn. Log-probs are taken at its temperature; top_p must be 1."""

    validation: ConversationsRef | None = None
    """Prompts on which the policy is scored as it learns; the best by mean score is kept. null = keep the last."""

    eval_every: Annotated[int, Ge(1)] = 10
    """Rounds between those."""

    engine: EngineKind = Local()
    """What writes the answers."""

    makes: ClassVar[Mapping[str, type[Artifact]]] = {"final": Model}

    def summary(self) -> str:
        return f"{self.steps} rounds of {self.prompts_per_step} prompts x {self.n} answers, {self.objective.kind} with {self.credit.kind}"

    def check(self) -> Sequence[tuple[str, str, str]]:
        problems = []
        missing = self.objective.needs - self.credit.gives
        if missing:
            what = f"{self.objective.kind} needs the column {', '.join(sorted(missing))}, and {self.credit.kind} does not make it"
            problems.append(("credit", what, "choose another credit"))
        if "value" in self.credit.needs and self.critic is None:
            what = f"{self.credit.kind} needs the column value, and without a critic nothing makes it"
            problems.append(("critic", what, "add critic: {init: ...}"))
        if self.sampling.top_p < 1 or self.sampling.temperature == 0:
            what = "the ratio is biased unless answers are drawn from the whole distribution"
            problems.append(("sampling", what, "set top_p: 1 and temperature above 0"))
        return problems

    def run(self, ctx: Context) -> None:
        total = self.steps * self.passes * self.minibatches
        policy = ctx.learner(self.init, head="language", objective=self.objective, tune=self.tune, optim=self.optim, total=total)
        team = Team(policy, self._critic(ctx, total), ctx.frozen(self.init) if "ref_logp" in self.credit.needs else None)
        template = ctx.template(self.init, "vicuna")
        writer = Writer(ctx.engine(self.engine, self.init, template), template, ctx.scorer(self.scorer))
        prompts = ctx.conversations(self.prompts)
        held = ctx.conversations(self.validation) if self.validation else []
        loop = ctx.loop(self, self.steps, team.learners(), state=asdict(RLState(rows_consumed=0, kl_coef=self.kl.coef)))
        log = RolloutLog(ctx.directory.rollouts)
        log.rewind(loop.start)
        for step in loop:
            state = RLState(**loop.state)
            writer.engine.load(policy.weights())  # so a resumed run never samples from stale weights
            asked = window(prompts, ctx.seed("prompts"), state.rows_consumed, self.prompts_per_step)
            groups = writer.write(placed(asked, state.rows_consumed), self.sampling, seed=ctx.seed("rollout"), n=self.n)
            log.append(step, groups)
            metrics = self._learn(groups, team, state, ctx.seed("minibatch", step))
            loop.state = asdict(RLState(state.rows_consumed + len(asked), self.kl.following(state.kl_coef, float(metrics["kl"]))))
            validation = self._validate(ctx, writer, policy, held) if held and due(step, self.eval_every, self.steps) else None
            loop.done(metrics, validation=validation, score=-validation["validation_reward"] if validation else None)
        writer.engine.close()
        ctx.finish(policy, loop, "final")

    def _critic(self, ctx: Context, total: int) -> Learner | None:
        if self.critic is None:
            return None
        c = self.critic
        return ctx.learner(c.init, head="value", objective=c.objective, tune=c.tune, optim=c.optim, total=total)

    def _learn(self, groups: Sequence[Group], team: Team, state: RLState, seed: int) -> dict[str, Any]:
        """Credit and updates of one round; returns its metrics."""
        packing = Packing(self.tokens_per_batch, self.sampling.temperature)
        passes = [minibatches(len(groups), self.minibatches, derive(seed, number)) for number in range(self.passes)]
        columns = in_order(team.columns(self.credit.needs, [[groups[i] for i in part] for part in passes[0]], packing), groups)
        credited = self.credit.assign(groups, columns, state.kl_coef)
        rows = iter(credited.samples)
        samples = [list(islice(rows, len(g.rollouts))) for g in groups]
        stats = {name: Mean(*pair) for name, pair in credited.stats.items()}
        metrics = update(team, samples, passes, packing)
        return {**stats, **metrics, **describe(groups, columns), **variance_explained(credited.samples), "kl_coef": state.kl_coef}

    def _validate(self, ctx: Context, writer: Writer, policy: Learner, held: Sequence[Conversation]) -> dict[str, float]:
        """Mean score on prompts the policy is not trained on."""
        writer.engine.load(policy.weights())
        groups = writer.write(held, self.sampling, seed=ctx.seed("validation"), n=1)
        rollouts = [r for g in groups for r in g.rollouts]
        reward = sum(r.score.value for r in rollouts if r.score) / len(rollouts)
        return {"validation_reward": reward, "validation_length": sum(len(r.completion) for r in rollouts) / len(rollouts)}


@dataclass(frozen=True)
class Writer:
    """Who writes answers and who scores them."""

    engine: Engine
    template: Template
    scorer: Scorer

    def write(self, prompts: Sequence[Conversation], sampling: Sampling, *, seed: int, n: int) -> list[Group]:
        """n scored answers to each prompt."""
        asked = [Prompt(p.id, self.template.prompt(p.prompt)) for p in prompts]
        groups = group(prompts, list(self.engine.generate(asked, sampling, seed=seed, n=n)), self.template)
        return scored(groups, self.scorer.score(groups))


def placed(prompts: Sequence[Conversation], start: int) -> list[Conversation]:
    """The prompts with ids that name their place in the endless stream: a prompt that comes again is answered anew."""
    return [replace(p, id=f"{p.id}@{start + i}") for i, p in enumerate(prompts)]
