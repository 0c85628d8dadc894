"""Reinforcement learning from a scorer: sample, score, assign credit, step. PPO and its successors differ in credit, objective and critic."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from annotated_types import Ge

from xwin.credit.base import Credit
from xwin.credit.gae import Gae
from xwin.credit.group import GroupRelative
from xwin.credit.round import Round
from xwin.data.conversation import Conversation
from xwin.data.rollout import Group
from xwin.data.sources import window
from xwin.data.template import Template
from xwin.data.vocabulary import require_same_tokens
from xwin.engines.base import EngineKind, Sampling
from xwin.engines.local import Local
from xwin.learning.learner import AnyLearner, Reader
from xwin.objectives.base import Objective
from xwin.objectives.ppo import Ppo
from xwin.run import memory
from xwin.run.artifacts import Artifact, ConversationsRef, Model, ModelRef
from xwin.run.events import Mean
from xwin.run.guards import ENGINE_GAP, LARGEST_ENGINE_GAP, Guard
from xwin.run.hacking import SURE
from xwin.scorers.base import ScorerKind
from xwin.seeds import derive
from xwin.stages._held_out import HeldOut, Seen
from xwin.stages._rl import (
    Cut,
    Drawn,
    Packing,
    RolloutLog,
    Team,
    carried,
    describe,
    divergence,
    in_order,
    minibatches,
    nothing_left,
    require_room,
    update,
    usable,
    variance_explained,
    varied,
)
from xwin.stages._rl_settings import Critic, Kl, Refill
from xwin.stages._sampling import Writer, placed, room, unended
from xwin.stages._start import require_ratio, require_sound_round
from xwin.stages._training import Training, require_able
from xwin.stages._work import Answers, Phase, Use
from xwin.stages.sft import due

if TYPE_CHECKING:
    from xwin.stages._context import Context


RAW = frozenset({"old_logp", "ref_logp"})
"""Columns that the stage computes and samples may carry, whatever the credit makes of them."""


@dataclass(frozen=True, slots=True)
class RLState:
    """What the loop carries from step to step beside weights; saved in every checkpoint."""

    rows_consumed: int
    kl_coef: float
    looks: Mapping[str, Any] | None = None
    """What was seen of held-out answers; None = nothing yet."""


class Rl(Training):
    """Trains a policy on its own answers."""

    init: ModelRef
    """The policy to start from."""

    reference: ModelRef | None = None
    """The frozen model that KL is measured to, or the teacher of credit distil; null = the policy as it starts."""

    prompts: ConversationsRef
    """What is asked: conversations without their last answer."""

    scorer: ScorerKind | None = None
    """Who judges; null = nobody, which only credit distil can learn from."""

    objective: Objective = Ppo()
    """The loss of the policy."""

    credit: Credit = Gae()
    """From scores to advantages."""

    critic: Critic | None = None
    """Needed by credit that reads values; null = none."""

    kl: Kl | None = Kl()
    """The price of leaving the reference; null = no price, and no reference is loaded unless objective or credit read one."""

    refill: Refill | None = None
    """What is done about groups whose answers all score the same; null = they stay in the round."""

    cut: Cut = "learn"
    """What is done about answers that hit the length limit: learned from with the score they got, or masked, as if they had not been drawn:
    their siblings are not compared with them either (overlong filtering: Yu et al. 2025, arXiv:2503.14476, section 3.4)."""

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
    """How answers are drawn. Log-probs are taken at its temperature; top_p, top_k and min_p must leave nothing out."""

    validation: ConversationsRef | None = None
    """Prompts on which the policy is scored as it learns; the best by mean score is kept. null = keep the last."""

    eval_every: Annotated[int, Ge(1)] = 10
    """Rounds between those."""

    patience: Annotated[int, Ge(1)] | None = None
    """Evaluations without improvement after which training ends; null = never."""

    gold: ScorerKind | None = None
    """Who judges the answers to `validation` beside the scorer, before the first round and then as often; nothing is trained on it. When the
    score rises and gold falls the metric `hacking` says so, and a guard warns unless there is one of your own on it. null = nobody."""

    engine: EngineKind = Local()
    """What writes the answers."""

    makes: ClassVar[Mapping[str, type[Artifact]]] = {"final": Model}

    def summary(self) -> str:
        return f"{self.steps} rounds of {self.prompts_per_step} prompts x {self.n} answers, {self.objective.kind} with {self.credit.kind}"

    def work(self) -> Sequence[Phase]:
        """Everything is held at once: sampling and learning take turns from round to round."""
        needs = self._needs()
        uses = [self.trains("policy", self.init, trained=self.passes, read=int("old_logp" in needs)), Use("engine", self.init)]
        if self.critic is not None:
            c = self.critic
            uses.append(Use("critic", c.init, "value", c.tune, self.passes, 1, c.optim.kept, self.recompute))
        if "ref_logp" in needs:
            uses.append(Use("reference", self.reference or self.init, read=1))
        rows, cache = room(self.engine)
        asked, steps = self.prompts_per_step * self.steps, self.steps * self.passes * self.minibatches
        answers = Answers(self.prompts, self.n, self.sampling.max_tokens, rows, self.prompts_per_step, asked=asked, steps=steps, cache=cache)
        return (Phase(tuple(uses), answers, self.tokens_per_batch, tuple(s for s in (self.scorer, self.gold) if s is not None)),)

    def check(self) -> Sequence[tuple[str, str, str]]:
        some = (self._credit_mistakes(), self._objective_mistakes(), self._reference_mistakes(), self._sampling_mistakes(), self._scorer_mistakes())
        return [mistake for found in some for mistake in found]

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

    def _reference_mistakes(self) -> Iterator[tuple[str, str, str]]:
        teaches = "ref_logp" in self.credit.needs
        if "ref_logp" in self.objective.needs and self.kl is not None and self.kl.coef > 0:
            yield "kl", "KL would be paid twice: in the reward and in the loss", "set kl: {coef: 0}, or remove objective.kl"
        if teaches and self.kl is not None and self.kl.coef > 0:
            yield "kl", f"credit {self.credit.kind} is the KL to its teacher; a price of the same KL would not be paid", "set kl: null"
        if teaches and self.reference is None:
            yield "reference", f"credit {self.credit.kind} learns from a teacher, and the policy cannot be its own", "add reference: the teacher"
        if self.reference is not None and "ref_logp" not in self._needs():
            yield "reference", "nothing reads it: there is no price of KL", "remove it, or add kl"
        if self.kl is not None and self.kl.coef == 0 and self.kl.target is not None:
            what = "the price is multiplied from step to step, so one of 0 never reaches a target"
            yield "kl.coef", what, "set kl.coef above 0, or remove kl.target"

    def _sampling_mistakes(self) -> Iterator[tuple[str, str, str]]:
        if self.sampling.filters or self.sampling.temperature == 0:
            what = "the ratio is biased unless answers are drawn from the whole distribution"
            yield "sampling", what, "set top_p: 1, top_k: 0, min_p: 0 and temperature above 0"
        yield from unended(self.sampling)
        if self.minibatches > self.prompts_per_step:
            what = f"a pass over {self.prompts_per_step} prompts has no more optimizer steps than prompts: the learning rate would wait for others"
            yield "minibatches", what, f"set it to {self.prompts_per_step} at most, or raise prompts_per_step"
        if self.refill is not None and self.n == 1:
            yield "refill", "one answer never differs from its siblings, so every group would be dropped", "set n above 1, or refill: null"

    def _scorer_mistakes(self) -> Iterator[tuple[str, str, str]]:
        if self.gold is not None and self.validation is None:
            yield "gold", "it judges answers to validation prompts, and there are none", "add validation: prompts of their own"
        if self.scorer is not None:
            return
        if "ref_logp" not in self.credit.needs:
            yield "scorer", "nobody says how good an answer is", "add a scorer, or learn from a teacher: credit distil"
        for field in ("refill", "validation"):
            if getattr(self, field) is not None:
                yield field, "it goes by scores, and there are none", f"add a scorer, or remove {field}"

    def require(self) -> None:
        require_able(self.optim, self.tune)
        if self.critic is not None:
            require_able(self.critic.optim, self.critic.tune)
        self.engine.require()

    def _needs(self) -> frozenset[str]:
        """Columns to compute for a round."""
        return self.credit.needs | (self.objective.needs & RAW) | (frozenset({"ref_logp"}) if self.kl else frozenset())

    def run(self, ctx: Context) -> None:
        total = self.steps * self.passes * self.minibatches
        policy = ctx.learner(self.init, head="language", objective=self.objective, tune=self.tune, optim=self.optim, total=total)
        team = Team(policy, self._critic(ctx, total), self._reference(ctx, policy))
        template = ctx.template(self.init)
        writer = Writer(ctx.engine(self.engine, self.init, template), template, ctx.scorer(self.scorer, self.init, template) if self.scorer else None)
        prompts, held = ctx.conversations(self.prompts), self._held_out(ctx)
        context = {"the model's context": policy.about.context}
        require_room(prompts, template, self.sampling.max_tokens, {"tokens_per_batch": self.tokens_per_batch, **context})
        require_room(held.prompts, template, self.sampling.max_tokens, context)
        log = RolloutLog(ctx.directory.rollouts)
        begin = RLState(rows_consumed=0, kl_coef=self.kl.coef if self.kl else 0.0)
        loop = ctx.loop(
            self._watched(), self.steps, team.learners(), state=asdict(begin), patience=self.patience if held.prompts else None, rewind=log.rewind
        )
        for step in loop:
            state = RLState(**loop.state)
            if loop.skips(*self._passed(ctx, prompts, state)):
                continue
            writer.engine.load(policy.weights())  # so a resumed run never samples from stale weights
            seen = held.look(ctx, writer, self.sampling, None, None) if self.gold and state.looks is None else Seen({}, state.looks)
            drawn = self._draw(ctx, writer, prompts, state.rows_consumed)
            memory.trim()
            log.append(step, drawn.kept, dropped=drawn.dropped)
            with loop.trial():
                metrics = self._learn(drawn, team, state, ctx.seed("minibatch", step), template if step == 0 else None)
                memory.trim()
                score = None
                if held.prompts and due(step, self.eval_every, self.steps):
                    writer.engine.load(policy.weights())
                    seen = held.look(ctx, writer, self.sampling, seen.looks, metrics.get("kl"))
                    score = -seen.metrics["validation_reward"]
                loop.state = asdict(RLState(state.rows_consumed + drawn.rows, self._next_coef(state, metrics), seen.looks))
                loop.done(metrics, validation=seen.metrics, score=score)
        writer.engine.close()
        ctx.finish(policy, loop, "final", ctx.template_name(self.init))

    def _held_out(self, ctx: Context) -> HeldOut:
        prompts = ctx.conversations(self.validation) if self.validation else ()
        return HeldOut(prompts, ctx.scorer(self.gold, self.init, ctx.template(self.init)) if self.gold else None)

    def _reference(self, ctx: Context, policy: AnyLearner) -> Reader | None:
        if "ref_logp" not in self._needs():
            return None
        return ctx.reference(self.init, policy) if self.reference in {None, self.init} else ctx.reader(self.reference or self.init, self.init)

    def _passed(self, ctx: Context, prompts: Sequence[Conversation], state: RLState) -> tuple[list[str], dict[str, Any]]:
        """The prompts that a round may draw, by name, and the state after it when it is passed over: none of them is asked again."""
        most = self.prompts_per_step * (self.refill.draws if self.refill else 1)
        asked = placed(window(prompts, ctx.seed("prompts"), state.rows_consumed, most), state.rows_consumed)
        return [prompt.id for prompt in asked], asdict(replace(state, rows_consumed=state.rows_consumed + most))

    def _watched(self) -> Rl:
        """These settings, with the guards that come with them, each unless the recipe has one of its own on that metric.

        Where the credit corrects for what the engine does otherwise, the guard on the engine only warns; where there is gold, one watches it.
        """
        more = [Guard(metric=ENGINE_GAP, above=LARGEST_ENGINE_GAP, do="warn")] if getattr(self.credit, "correction", None) else []
        more += [Guard(metric="hacking", above=SURE, do="warn")] if self.gold else []
        own = {guard.metric for guard in self.guards}
        return self.model_copy(update={"guards": (*self.guards, *(guard for guard in more if guard.metric not in own))})

    def _critic(self, ctx: Context, total: int) -> AnyLearner | None:
        if self.critic is None:
            return None
        c = self.critic
        require_same_tokens(ctx.path(self.init), ctx.path(c.init))
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
        found = usable([group], self.cut)
        return bool(found) and varied(found[0], self.refill.part)

    def _next_coef(self, state: RLState, metrics: Mapping[str, Any]) -> float:
        return self.kl.following(state.kl_coef, float(metrics["kl"])) if self.kl else 0.0

    def _learn(self, drawn: Drawn, team: Team, state: RLState, seed: int, check: Template | None) -> dict[str, Any]:
        """Credit and updates of one round; returns its metrics. With a template it is the first one, and what must hold there is checked.

        Raises:
            TrainingStopped: it does not hold.
            ScorerError: no answer of the round could be scored.
            TrainingStopped: none that could be scored is to be learned from.
        """
        groups = usable(drawn.kept, self.cut)
        if not groups:
            raise nothing_left(drawn.kept)
        packing = Packing(self.tokens_per_batch, self.sampling.temperature)
        passes = [minibatches(len(groups), self.minibatches, derive(seed, number)) for number in range(self.passes)]
        columns = in_order(team.columns(self._needs(), [[groups[i] for i in part] for part in passes[0]], packing), groups)
        credited = self.credit.assign(groups, columns, state.kl_coef, self.kl.estimator if self.kl else "k1")
        rows = iter(carried(credited.samples, {name: columns[name] for name in self.objective.needs - self.credit.gives}))
        samples = [list(islice(rows, len(g.rollouts))) for g in groups]
        if check is not None:
            require_sound_round(list(team.learners().values()), [(groups[i], samples[i]) for i in passes[0][0]], packing.batches, check)
        metrics = {name: Mean(*pair) for name, pair in credited.stats.items()} | update(team, samples, passes, packing)
        if check is not None:
            require_ratio(metrics, team.policy.about.dtype)
        shown = describe(drawn.everything) | divergence(groups, columns) | variance_explained(credited.samples)
        if self.kl is not None:
            shown["kl_coef"] = state.kl_coef
        if self.refill is not None:
            shown["drawn"] = float(drawn.rows)
        return metrics | shown
