"""Reinforcement learning from a scorer: sample, score, assign credit, step. PPO and its successors differ in credit, objective and critic."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from annotated_types import Ge, Gt

from xwin.credit.base import Credit
from xwin.credit.gae import Gae
from xwin.credit.group import GroupRelative
from xwin.credit.round import Round
from xwin.data.conversation import Conversation
from xwin.data.rollout import Group, Prompt
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
from xwin.run import memory
from xwin.run.artifacts import Artifact, ConversationsRef, Model, ModelRef, NetworkRef
from xwin.run.events import Mean
from xwin.run.guards import ENGINE_GAP, LARGEST_ENGINE_GAP, Guard
from xwin.scorers._outcome import ScorerError, has_failed
from xwin.scorers.base import Scorer, ScorerKind
from xwin.seeds import derive
from xwin.spec import Spec
from xwin.stages._rl import (
    Drawn,
    Packing,
    RolloutLog,
    Team,
    carried,
    context_of,
    describe,
    divergence,
    in_order,
    minibatches,
    require_room,
    update,
    usable,
    variance_explained,
    varied,
)
from xwin.stages._sampling import group, judged
from xwin.stages._start import require_ratio, require_sound_round
from xwin.stages._training import Training, require_able
from xwin.stages._work import Answers, Phase, Use
from xwin.stages.sft import due

if TYPE_CHECKING:
    from xwin.stages._context import Context


RAW = frozenset({"old_logp", "ref_logp"})
"""Columns that the stage computes and samples may carry, whatever the credit makes of them."""


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
    """Reward units per nat, at the start; 0 = KL is measured and costs nothing."""

    target: Annotated[float, Gt(0)] | None = None
    """Nats per answer that the price is steered to (Ziegler et al. 2019, arXiv:1909.08593, section 2.2); null = the price stays."""

    rate: Annotated[float, Gt(0)] = 0.1
    """Largest relative change of the price in one step is a fifth of this, unitless."""

    def following(self, coef: float, kl: float) -> float:
        """The price after a step whose answers had `kl` nats: x (1 + rate * clip(kl / target - 1, -0.2, 0.2))."""
        if self.target is None:
            return coef
        return coef * (1 + self.rate * min(max(kl / self.target - 1, -0.2), 0.2))


class Refill(Spec):
    """DAPO's dynamic sampling: groups whose answers all score the same are dropped, and others drawn until the round is full.

    Yu et al. 2025, arXiv:2503.14476, equation 11. So are groups of which no answer could be scored. What is drawn in vain is logged and
    counted, and its prompts are used up. When the draws are spent the round is learned from as far as it is full; when no group varied at
    all, from the first ones, where only shaping beside `part`, a price of KL or a critic is left to learn from.
    """

    draws: Annotated[int, Ge(2)] = 4
    """Times that prompts are drawn for a round, at most."""

    part: str | None = None
    """Part of the score that must vary, before any shaping, such as a name in a sum; null = the score itself."""


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

    kl: Kl | None = Kl()
    """The price of leaving the reference; null = no price, and no reference is loaded unless the objective reads one."""

    refill: Refill | None = None
    """What is done about groups whose answers all score the same; null = they stay in the round."""

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

    patience: Annotated[int, Ge(1)] | None = None
    """Evaluations without improvement after which training ends; null = never."""

    engine: EngineKind = Local()
    """What writes the answers."""

    makes: ClassVar[Mapping[str, type[Artifact]]] = {"final": Model}

    def summary(self) -> str:
        return f"{self.steps} rounds of {self.prompts_per_step} prompts x {self.n} answers, {self.objective.kind} with {self.credit.kind}"

    def work(self) -> Sequence[Phase]:
        """Everything is held at once: sampling and learning take turns from round to round."""
        needs = self._needs()
        uses = [Use("policy", self.init, tune=self.tune, trained=self.passes, read=int("old_logp" in needs)), Use("engine", self.init)]
        if self.critic is not None:
            uses.append(Use("critic", self.critic.init, "value", tune=self.critic.tune, trained=self.passes, read=1))
        if "ref_logp" in needs:
            uses.append(Use("reference", self.init, read=1))
        rows = self.engine.rows if isinstance(self.engine, Local) else 0
        asked, steps = self.prompts_per_step * self.steps, self.steps * self.passes * self.minibatches
        answers = Answers(self.prompts, self.n, self.sampling.max_tokens, rows, self.prompts_per_step, asked=asked, steps=steps)
        return (Phase(tuple(uses), answers, self.tokens_per_batch, (self.scorer,)),)

    def check(self) -> Sequence[tuple[str, str, str]]:
        return [*self._credit_mistakes(), *self._objective_mistakes(), *self._kl_mistakes(), *self._sampling_mistakes()]

    def _credit_mistakes(self) -> Iterator[tuple[str, str, str]]:
        if "advantage" not in self.objective.needs:
            what = f"{self.objective.kind} does not read the advantage, so the scores would teach nothing"
            yield "objective", what, "choose one that does, such as ppo, grpo, gspo, cispo or reinforce"
        missing = self.objective.needs - self.credit.gives - RAW
        if missing:
            what = f"{self.objective.kind} needs the column {', '.join(sorted(missing))}, and {self.credit.kind} does not make it"
            yield "credit", what, "choose another credit"
        reads_values = "value" in self.credit.needs
        if reads_values and self.critic is None:
            what = f"{self.credit.kind} needs the column value, and without a critic nothing makes it"
            yield "critic", what, "add critic: {init: ...}"
        if self.critic is not None and not reads_values:
            yield "critic", f"{self.credit.kind} reads no values, so the critic would learn for nothing", "remove critic, or set credit: gae"
        if isinstance(self.credit, GroupRelative) and self.n == 1:
            yield "n", "credit group compares the answers to one prompt, and there is one", "set n above 1, or credit: round"
        if isinstance(self.credit, Round) and self.credit.baseline == "mean" and self.n == 1:
            what = "an answer less the mean of its group is 0 when it is alone, so the scores would teach nothing"
            yield "n", what, "set n above 1, or baseline: none"

    def _objective_mistakes(self) -> Iterator[tuple[str, str, str]]:
        """An objective without a ratio takes the answers for the policy's own: they are until its first step."""
        if "old_logp" in self.objective.needs:
            return
        what = f"{self.objective.kind} takes the answers for the policy's own"
        if self.passes > 1:
            yield "passes", f"{what}, and in a second pass they are not", "set passes: 1, or an objective with a ratio"
        if self.minibatches > 1:
            yield "minibatches", f"{what}, and after the first minibatch they are not", "set minibatches: 1, or an objective with a ratio"

    def _kl_mistakes(self) -> Iterator[tuple[str, str, str]]:
        if "ref_logp" in self.objective.needs and self.kl is not None and self.kl.coef > 0:
            yield "kl", "KL would be paid twice: in the reward and in the loss", "set kl: {coef: 0}, or remove objective.kl"
        if self.kl is not None and self.kl.coef == 0 and self.kl.target is not None:
            what = "the price is multiplied from step to step, so one of 0 never reaches a target"
            yield "kl.coef", what, "set kl.coef above 0, or remove kl.target"

    def _sampling_mistakes(self) -> Iterator[tuple[str, str, str]]:
        if self.sampling.top_p < 1 or self.sampling.temperature == 0:
            what = "the ratio is biased unless answers are drawn from the whole distribution"
            yield "sampling", what, "set top_p: 1 and temperature above 0"
        if self.refill is not None and self.n == 1:
            yield "refill", "one answer never differs from its siblings, so every group would be dropped", "set n above 1, or refill: null"

    def require(self) -> None:
        require_able(self.optim, self.tune)
        if self.critic is not None:
            require_able(self.critic.optim, self.critic.tune)

    def _needs(self) -> frozenset[str]:
        """Columns to compute for a round."""
        return self.credit.needs | (self.objective.needs & RAW) | (frozenset({"ref_logp"}) if self.kl else frozenset())

    def run(self, ctx: Context) -> None:
        total = self.steps * self.passes * self.minibatches
        policy = ctx.learner(self.init, head="language", objective=self.objective, tune=self.tune, optim=self.optim, total=total)
        team = Team(policy, self._critic(ctx, total), ctx.reference(self.init, policy) if "ref_logp" in self._needs() else None)
        template = ctx.template(self.init)
        writer = Writer(ctx.engine(self.engine, self.init, template), template, ctx.scorer(self.scorer))
        prompts = ctx.conversations(self.prompts)
        held = ctx.conversations(self.validation) if self.validation else []
        context = {"the model's context": context_of(policy)}
        require_room(prompts, template, self.sampling.max_tokens, {"tokens_per_batch": self.tokens_per_batch, **context})
        require_room(held, template, self.sampling.max_tokens, context)
        log = RolloutLog(ctx.directory.rollouts)
        begin = RLState(rows_consumed=0, kl_coef=self.kl.coef if self.kl else 0.0)
        loop = ctx.loop(
            self._watched(), self.steps, team.learners(), state=asdict(begin), patience=self.patience if held else None, rewind=log.rewind
        )
        for step in loop:
            state = RLState(**loop.state)
            if loop.skips(*self._passed(ctx, prompts, state)):
                continue
            writer.engine.load(policy.weights())  # so a resumed run never samples from stale weights
            drawn = self._draw(ctx, writer, prompts, state.rows_consumed)
            memory.trim()
            log.append(step, drawn.kept, dropped=drawn.dropped)
            with loop.trial():
                metrics = self._learn(drawn, team, state, ctx.seed("minibatch", step), template if step == 0 else None)
                memory.trim()
                loop.state = asdict(RLState(state.rows_consumed + drawn.rows, self._next_coef(state, metrics)))
                validation = self._validate(ctx, writer, policy, held) if held and due(step, self.eval_every, self.steps) else None
                loop.done(metrics, validation=validation, score=-validation["validation_reward"] if validation else None)
        writer.engine.close()
        ctx.finish(policy, loop, "final", ctx.template_name(self.init))

    def _passed(self, ctx: Context, prompts: Sequence[Conversation], state: RLState) -> tuple[list[str], dict[str, Any]]:
        """The prompts that a round may draw, by name, and the state after it when it is passed over: none of them is asked again."""
        most = self.prompts_per_step * (self.refill.draws if self.refill else 1)
        asked = placed(window(prompts, ctx.seed("prompts"), state.rows_consumed, most), state.rows_consumed)
        return [prompt.id for prompt in asked], asdict(replace(state, rows_consumed=state.rows_consumed + most))

    def _watched(self) -> Rl:
        """These settings, with a guard on the engine that only warns where the credit corrects for what the engine does otherwise."""
        if getattr(self.credit, "correction", None) is None or any(guard.metric == ENGINE_GAP for guard in self.guards):
            return self
        return self.model_copy(update={"guards": (*self.guards, Guard(metric=ENGINE_GAP, above=LARGEST_ENGINE_GAP, do="warn"))})

    def _critic(self, ctx: Context, total: int) -> Learner | None:
        if self.critic is None:
            return None
        c = self.critic
        return ctx.learner(c.init, head="value", objective=c.objective, tune=c.tune, optim=c.optim, total=total)

    def _draw(self, ctx: Context, writer: Writer, prompts: Sequence[Conversation], start: int) -> Drawn:
        """The answers of a round. A function of the seed, the position in the stream and the policy alone, so a resumed round is the same."""
        kept: list[Group] = []
        dropped: list[Group] = []
        rows = 0
        for _ in range(self.refill.draws if self.refill else 1):
            asked = window(prompts, ctx.seed("prompts"), start + rows, self.prompts_per_step - len(kept))
            groups = writer.write(placed(asked, start + rows), self.sampling, seed=ctx.seed("rollout"), n=self.n)
            rows += len(asked)
            kept += [g for g in groups if self._teaches(g)]
            dropped += [g for g in groups if not self._teaches(g)]
            if len(kept) == self.prompts_per_step:
                break
        if not kept:
            kept, dropped = dropped[: self.prompts_per_step], dropped[self.prompts_per_step :]
        return Drawn(kept, dropped, rows)

    def _teaches(self, group: Group) -> bool:
        if self.refill is None:
            return True
        found = usable([group])
        return bool(found) and varied(found[0], self.refill.part)

    def _next_coef(self, state: RLState, metrics: Mapping[str, Any]) -> float:
        return self.kl.following(state.kl_coef, float(metrics["kl"])) if self.kl else 0.0

    def _learn(self, drawn: Drawn, team: Team, state: RLState, seed: int, check: Template | None) -> dict[str, Any]:
        """Credit and updates of one round; returns its metrics. With a template it is the first one, and what must hold there is checked.

        Raises:
            TrainingStopped: it does not hold.
            ScorerError: no answer of the round could be scored.
        """
        groups = usable(drawn.kept)
        if not groups:
            raise ScorerError("no answer of the round could be scored", fix="look at the notes of the last step in rollouts.jsonl")
        packing = Packing(self.tokens_per_batch, self.sampling.temperature)
        passes = [minibatches(len(groups), self.minibatches, derive(seed, number)) for number in range(self.passes)]
        columns = in_order(team.columns(self._needs(), [[groups[i] for i in part] for part in passes[0]], packing), groups)
        credited = self.credit.assign(groups, columns, state.kl_coef)
        rows = iter(carried(credited.samples, {name: columns[name] for name in self.objective.needs - self.credit.gives}))
        samples = [list(islice(rows, len(g.rollouts))) for g in groups]
        if check is not None:
            require_sound_round(list(team.learners().values()), [(groups[i], samples[i]) for i in passes[0][0]], packing.batches, check)
        metrics = {name: Mean(*pair) for name, pair in credited.stats.items()} | update(team, samples, passes, packing)
        if check is not None:
            require_ratio(metrics, team.policy.model.dtype)
        shown = describe(drawn.everything) | divergence(groups, columns) | variance_explained(credited.samples)
        if self.kl is not None:
            shown["kl_coef"] = state.kl_coef
        if self.refill is not None:
            shown["drawn"] = float(drawn.rows)
        return metrics | shown

    def _validate(self, ctx: Context, writer: Writer, policy: Learner, held: Sequence[Conversation]) -> dict[str, float]:
        """Mean score on prompts the policy is not trained on; answers that could not be scored are left out and said.

        Raises:
            ScorerError: none could be scored.
        """
        writer.engine.load(policy.weights())
        groups = writer.write(held, self.sampling, seed=ctx.seed("validation"), n=1)
        rollouts = [r for g in groups for r in g.rollouts]
        values = [r.score.value for r in rollouts if r.score and not has_failed(r.score)]
        if not values:
            raise ScorerError("no answer to a validation prompt could be scored", f"{ctx.name}.scorer", "mend the scorer")
        failed = len(rollouts) - len(values)
        if failed:
            ctx.console.message(f"{ctx.name}: {failed} of {len(rollouts)} validation answers could not be scored")
        found = {"validation_reward": sum(values) / len(values), "validation_length": sum(len(r.completion) for r in rollouts) / len(rollouts)}
        return found | ({"validation_failed": float(failed)} if failed else {})


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
        return judged(groups, self.scorer)


def placed(prompts: Sequence[Conversation], start: int) -> list[Conversation]:
    """The prompts with ids that name their place in the endless stream: a prompt that comes again is answered anew."""
    return [replace(p, id=f"{p.id}@{start + i}") for i, p in enumerate(prompts)]
