"""Iterated rejection sampling: sample, keep the best, train on them, and again with the better policy.

RAFT, Dong et al. 2023, arXiv:2304.06767, algorithm 1: each round draws prompts and K answers to each, keeps the answer of the highest reward,
and fine-tunes on what was kept. With a bar instead (`above`), and a verifier, it is expert iteration. Deviations: no price of KL in the
reward; the learning rate follows one schedule over all rounds. Training anew from the base model on what all rounds kept (as in expert
iteration on theorems) is an `sft` stage over the output `kept`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from annotated_types import Ge

from xwin.credit.base import to_sample
from xwin.data.batch import Sample, pack
from xwin.data.conversation import Conversation, conversation_to_json
from xwin.data.rollout import Group
from xwin.data.sources import window
from xwin.data.template import Template
from xwin.engines.base import EngineKind, Sampling
from xwin.engines.local import Local
from xwin.errors import DataError
from xwin.learning.learner import AnyLearner
from xwin.objectives.sft import Sft as CrossEntropy
from xwin.run import memory
from xwin.run.artifacts import Artifact, Conversations, ConversationsRef, Model, ModelRef
from xwin.run.events import Measure, merged
from xwin.run.storage import write_atomic
from xwin.scorers._outcome import ScorerError, has_failed
from xwin.scorers.base import ScorerKind
from xwin.stages._rl import RolloutLog, describe, minibatches, require_room
from xwin.stages._sampling import Writer, judged, placed, room, sample, unended
from xwin.stages._selection import Kept, accounted, chosen
from xwin.stages._start import require_sound
from xwin.stages._training import Training, require_able
from xwin.stages._work import Amount, Answers, Phase, Use
from xwin.stages.sft import due

if TYPE_CHECKING:
    from xwin.stages._context import Context


@dataclass(frozen=True, slots=True)
class RaftState:
    """What the loop carries from round to round beside weights; saved in every checkpoint."""

    rows_consumed: int = 0
    kept: int = 0


class Raft(Training):
    """Trains a policy on the best of its own answers, round after round."""

    init: ModelRef
    """The policy to start from."""

    prompts: ConversationsRef
    """What is asked: conversations without their last answer."""

    scorer: ScorerKind
    """Who judges."""

    steps: Annotated[int, Ge(1)] = 8
    """Rounds of sampling, choosing and learning."""

    prompts_per_step: Annotated[int, Ge(1)] = 64
    """Prompts of a round."""

    n: Annotated[int, Ge(1)] = 8
    """Answers per prompt."""

    above: float | None = None
    """Only answers that score more than this are kept, reward units of the scorer; null = no bar. A round that keeps none learns nothing."""

    most: Annotated[int, Ge(1)] = 1
    """Kept answers per prompt, at most; different texts only."""

    minibatches: Annotated[int, Ge(1)] = 4
    """Optimizer steps per pass over what a round kept."""

    passes: Annotated[int, Ge(1)] = 1
    """Passes over it."""

    objective: CrossEntropy = CrossEntropy()
    """The loss."""

    sampling: Sampling = Sampling()
    """How answers are drawn."""

    validation: ConversationsRef | None = None
    """Prompts on which the policy is scored as it learns; the best by mean score is kept. null = keep the last."""

    eval_every: Annotated[int, Ge(1)] = 1
    """Rounds between those."""

    engine: EngineKind = Local()
    """What writes the answers."""

    makes: ClassVar[Mapping[str, type[Artifact]]] = {"final": Model, "kept": Conversations}

    def summary(self) -> str:
        return f"{self.steps} rounds of {self.prompts_per_step} prompts x {self.n} answers, at most {self.most} kept"

    def require(self) -> None:
        require_able(self.optim, self.tune)
        self.engine.require()

    def work(self) -> Sequence[Phase]:
        rows, cache = room(self.engine)
        asked, steps = self.prompts_per_step * self.steps, self.steps * self.passes * self.minibatches
        answers = Answers(self.prompts, self.n, self.sampling.max_tokens, rows, self.prompts_per_step, asked=asked, steps=steps, cache=cache)
        uses = (self.trains("policy", self.init, trained=self.passes), Use("engine", self.init))
        return (Phase(uses, answers, self.tokens_per_batch, (self.scorer,)),)

    def gives(self, output: str, amount: Callable[[str], Amount | None]) -> Amount | None:
        asked = amount(self.prompts) if output == "kept" else None
        if asked is None:
            return None
        rows = self.steps * self.prompts_per_step * min(self.most, self.n)
        return replace(asked, rows=rows, answer=self.sampling.max_tokens, known=False)

    def check(self) -> Sequence[tuple[str, str, str]]:
        if self.n == 1 and self.above is None:
            return [("n", "the best of one answer is any answer, so the scores would teach nothing", "set n above 1, or a bar: above")]
        if self.n > 1 and self.sampling.temperature == 0:
            return [("sampling.temperature", "greedy answers to one prompt are all the same", "set it above 0, or n: 1")]
        if self.minibatches > (kept := self.prompts_per_step * min(self.most, self.n)):
            what = f"a round keeps at most {kept} answers, so it has no more optimizer steps: the learning rate would wait for others"
            return [("minibatches", what, f"set it to {kept} at most, or raise prompts_per_step")]
        return unended(self.sampling)

    def run(self, ctx: Context) -> None:
        total = self.steps * self.passes * self.minibatches
        policy = ctx.learner(self.init, head="language", objective=self.objective, tune=self.tune, optim=self.optim, total=total)
        template = ctx.template(self.init)
        writer = Writer(ctx.engine(self.engine, self.init, template), template, ctx.scorer(self.scorer, self.init, template))
        prompts = ctx.conversations(self.prompts)
        held = ctx.conversations(self.validation) if self.validation else []
        context = {"the model's context": policy.about.context}
        require_room(prompts, template, self.sampling.max_tokens, {"tokens_per_batch": self.tokens_per_batch, **context})
        require_room(held, template, self.sampling.max_tokens, context)
        log = RolloutLog(ctx.directory.rollouts)
        loop = ctx.loop(self, self.steps, {"policy": policy}, state=asdict(RaftState()), rewind=log.rewind)
        for step in loop:
            state = RaftState(**loop.state)
            asked = placed(window(prompts, ctx.seed("prompts"), state.rows_consumed, self.prompts_per_step), state.rows_consumed)
            if loop.skips([prompt.id for prompt in asked], asdict(replace(state, rows_consumed=state.rows_consumed + len(asked)))):
                write_atomic(_kept(ctx, step), "")
                continue
            found = self._sample(ctx, writer, policy, asked, step)
            log.append(step, found.groups)
            write_atomic(_kept(ctx, step), found.conversations())
            with loop.trial():
                metrics = found.metrics(self.above) | self._learn(ctx, policy, template, found)
                loop.state = asdict(RaftState(state.rows_consumed + len(asked), state.kept + found.count))
                validation = self._validate(ctx, writer, policy, held) if held and due(step, self.eval_every, self.steps) else None
                loop.done(metrics, validation=validation, score=-validation["validation_reward"] if validation else None)
        writer.engine.close()
        if not RaftState(**loop.state).kept:
            raise DataError(f"no answer passed the bar in any of {self.steps} rounds", f"{ctx.name}.above", "lower `above` or raise `n`")
        ctx.out("kept").write_text("".join(_kept(ctx, step).read_text(encoding="utf-8") for step in range(self.steps)), encoding="utf-8")
        ctx.finish(policy, loop, "final", ctx.template_name(self.init))

    def _sample(self, ctx: Context, writer: Writer, policy: AnyLearner, asked: Sequence[Conversation], number: int) -> Round:
        """What a round samples and keeps; finished blocks of answers survive a kill.

        Raises:
            ScorerError: no answer could be scored.
        """
        writer.engine.load(policy.weights())
        groups = sample(ctx, writer.engine, writer.template, asked, self.sampling, self.n, part=f"{CHECKPOINTS}/round-{number:03d}")
        assert writer.scorer is not None
        groups = judged(groups, writer.scorer)
        _require_scored(groups, f"{ctx.name}, round {number}")
        memory.trim()
        return Round(number, groups, [chosen(group, above=self.above, most=self.most) for group in groups])

    def _learn(self, ctx: Context, policy: AnyLearner, template: Template, found: Round) -> dict[str, Measure]:
        """Steps over what a round kept; no step where that is nothing."""
        rows = found.samples()
        metrics: dict[str, Measure] = {}
        if not rows:
            ctx.console.message(f"{ctx.name}: round {found.number} kept no answer and taught nothing")
        for number in range(self.passes):
            for part in minibatches(len(rows), self.minibatches, ctx.seed("minibatch", found.number, number)):
                chunk = [rows[i] for i in part]
                batches = pack(chunk, tokens=self.tokens_per_batch, share=True)
                if policy.steps_done == 0:
                    require_sound(policy, chunk, batches, template, cut=False)
                metrics = merged(metrics, policy.step(batches))
        memory.trim()
        return metrics

    def _validate(self, ctx: Context, writer: Writer, policy: AnyLearner, held: Sequence[Conversation]) -> dict[str, float]:
        """Mean score on prompts the policy is not trained on; answers that could not be scored are left out.

        Raises:
            ScorerError: none could be scored.
        """
        writer.engine.load(policy.weights())
        groups = writer.write(held, self.sampling, seed=ctx.seed("validation"), n=1)
        _require_scored(groups, f"{ctx.name}, validation")
        said = describe(groups)
        return {"validation_reward": said["reward"], "validation_length": said["length"]}


@dataclass(frozen=True)
class Round:
    """What one round sampled and kept."""

    number: int
    groups: Sequence[Group]
    kept: Sequence[Sequence[Kept]]
    """Of each group."""

    @property
    def count(self) -> int:
        """Answers kept."""
        return sum(map(len, self.kept))

    def samples(self) -> list[Sample]:
        """What is learned from: the kept answers as the token ids that were sampled."""
        return [to_sample(group.rollouts[one.place], {}) for group, some in zip(self.groups, self.kept, strict=True) for one in some]

    def conversations(self) -> str:
        """The kept answers as lines of JSON; meta says which round and score."""
        pairs = ((group, one) for group, some in zip(self.groups, self.kept, strict=True) for one in some)
        rows = (group.prompt.answered(group.texts[one.place], score=one.score, round=self.number) for group, one in pairs)
        return "".join(json.dumps(conversation_to_json(row), ensure_ascii=False) + "\n" for row in rows)

    def metrics(self, above: float | None) -> dict[str, float]:
        """What the answers were like, and what was kept of them."""
        return describe(self.groups) | accounted(self.groups, self.kept, above=above)


CHECKPOINTS = "checkpoints"
"""Folder of the stage that is removed when it is published: what a round leaves for the end, or for an attempt after a kill, lies there."""


def _kept(ctx: Context, number: int) -> Path:
    """Where the answers that a round kept wait for the end."""
    return ctx.folder / CHECKPOINTS / f"kept-{number:03d}.jsonl"


def _require_scored(groups: Sequence[Group], where: str) -> None:
    if all(has_failed(r.score) for group in groups for r in group.rollouts):
        raise ScorerError("no answer could be scored", where, "look at the notes of the scores, and mend the scorer")
