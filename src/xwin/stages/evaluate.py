"""Evaluation: the same untouched prompts to every model, judged by the gold scorer; a table with intervals and paired tests."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from annotated_types import Ge
from pydantic import Field

from xwin.credit.base import to_sample
from xwin.data.batch import pack, unpack
from xwin.data.conversation import Conversation, write_jsonl
from xwin.data.rollout import Group
from xwin.data.vocabulary import other_token
from xwin.engines.base import Chat, EngineKind, Sampling
from xwin.engines.local import Local
from xwin.learning.learner import AnyLearner
from xwin.models.hub import TemplateName
from xwin.run.artifacts import Artifact, ConversationsRef, ModelRef, Report
from xwin.run.facts import ALPACA, SHARES
from xwin.run.storage import write_atomic
from xwin.scorers._outcome import ScorerError, has_failed
from xwin.scorers._pairwise import instruction_of
from xwin.scorers.base import ScorerKind
from xwin.scorers.judge import Judge
from xwin.spec import Spec
from xwin.stages._judged import judged_answers
from xwin.stages._sampling import BLOCK, judged, room, sample
from xwin.stages._work import Answers, Phase, Use
from xwin.stages.base import Stage
from xwin.suites._contamination import overlap_rows
from xwin.suites.accuracy import Accuracy
from xwin.suites.base import Answer, Evidence, Row, Suite
from xwin.suites.drift import Drift
from xwin.suites.judged import Judged
from xwin.suites.preferences import Preferences
from xwin.suites.win_rate import WinRate

if TYPE_CHECKING:
    from xwin.stages._context import Context

TOKENS = 4096
"""Of a packed batch; bounds memory, does not change a number but for rounding."""


class Contender(Spec):
    """A model in the table."""

    name: Annotated[str, Field(pattern=r"^[^/\\\x00-\x1f]{1,100}$")]
    """Its row. No slashes: files are named after it."""

    model: ModelRef
    """Who answers."""

    template: Literal["model"] | TemplateName = "model"
    """How prompts are rendered: as the model was taught or its entry says, in a published template, or in the tokenizer's own."""

    n: Annotated[int, Ge(1)] = 1
    """Answers per prompt. Above 1, `scorer` picks one; without it the first one stands, and all of them give pass@k and maj@k."""

    scorer: ScorerKind | None = None
    """Who picks among n answers; it also gives the reward model's own accuracy."""

    before: str | None = None
    """Row that the paired test compares with; null = no test."""


class Evaluate(Stage):
    """Asks every contender the same prompts and measures the answers; suites with questions of their own need no prompts."""

    prompts: ConversationsRef | None = None
    """Test prompts: used by no other stage. null = every suite asks its own questions."""

    gold: ScorerKind | None = None
    """Who says whether an answer to a prompt is right: a score above 0.5 passes."""

    contenders: tuple[Contender, ...] = ()
    """Rows of the table, in order."""

    reference: str | None = None
    """Row that win rates and KL are measured against."""

    suites: tuple[Suite, ...] = (Accuracy(), WinRate(), Drift(), Preferences())
    """What is measured."""

    judge: Judge | None = None
    """Who compares every row's answers with the reference's, for the suite `judged`; null = nobody."""

    sampling: Sampling = Sampling()
    """How answers are drawn, the same for every row."""

    engine: EngineKind = Local()
    """What writes them."""

    makes: ClassVar[Mapping[str, type[Artifact]]] = {"table": Report}

    def summary(self) -> str:
        return f"{len(self.contenders)} rows, {len(self.suites)} suites"

    def require(self) -> None:
        self.engine.require()

    def work(self) -> Sequence[Phase]:
        """One row of the table after the other; a model is compared with the reference when its engine is closed."""
        if self.prompts is None or self.gold is None:
            return ()
        rows, cache = room(self.engine)
        phases = []
        for c in self.contenders:
            answers = Answers(self.prompts, c.n, self.sampling.max_tokens, rows, BLOCK, cache=cache)
            phases.append(Phase((Use("engine", c.model),), answers, TOKENS, (self.gold, *([c.scorer] if c.scorer else []))))
        return phases

    def check(self) -> Sequence[tuple[str, str, str]]:
        names = [c.name for c in self.contenders]
        known = f"one of: {', '.join(names)}"
        problems = self._unasked() if any(suite.reads_answers for suite in self.suites) else []
        rows = max((suite.least_rows() for suite in self.suites), default=0)
        if len(names) < rows:
            problems.append(("contenders", f"a suite asks the models of at least {rows} rows, and there are {len(names)}", "add rows"))
        if self.reference is not None and self.reference not in names:
            problems.append(("reference", f"no row is named '{self.reference}'", known))
        if (self.judge is None) == any(isinstance(suite, Judged) for suite in self.suites):
            problems.append(("judge", "a judge and the suite `judged` belong together", "give both, or neither"))
        problems += self._told_twice()
        for i, c in enumerate(self.contenders):
            if c.before is not None and c.before not in names[:i]:
                problems.append((f"contenders[{i}].before", f"no earlier row is named '{c.before}'", known))
            if c.n > 1 and c.scorer is None and self._needed() == 1:
                problems.append((f"contenders[{i}].scorer", f"somebody must pick one of {c.n} answers", "add a scorer, or set n: 1"))
            if c.name in names[:i]:
                problems.append((f"contenders[{i}].name", f"two rows are named '{c.name}'", "rename one"))
        return problems

    def _unasked(self) -> list[tuple[str, str, str]]:
        """What is missing for answers to be had."""
        fix = "set it, or take only suites that ask questions of their own, as harness does"
        named = {"prompts": self.prompts, "gold": self.gold, "reference": self.reference, "contenders": self.contenders or None}
        problems = [(name, "is needed: a suite reads answers to prompts", fix) for name, value in named.items() if value is None]
        most = max((c.n for c in self.contenders), default=0)
        if self.contenders and self._needed() > most:
            what = f"a suite needs {self._needed()} answers to a prompt, and no row gives more than {most}"
            problems.append(("suites", what, f"set n: {self._needed()} in a row of contenders"))
        return problems

    def _told_twice(self) -> list[tuple[str, str, str]]:
        """Suites whose rows would have the names of another's."""
        told = [{(suite.kind, each) for each in suite.distinct()} for suite in self.suites]
        what, fix = "another suite of this kind writes rows of the same names", "give it an evaluate stage of its own"
        return [(f"suites[{i}]", what, fix) for i, mine in enumerate(told) if any(mine & others for others in told[:i])]

    def _needed(self) -> int:
        """Answers to a prompt that the suites need of some row."""
        return max((suite.least_samples() for suite in self.suites), default=1)

    def run(self, ctx: Context) -> None:
        evidence = self._evidence(ctx)
        rows = [row for suite in self.suites for row in suite.measure(evidence)]
        questions: dict[str, Sequence[str]] = {}
        for suite in self.suites:
            for name, texts in suite.questions(evidence).items():
                questions[name if questions.get(name, texts) == texts else f"{name} of {suite.kind}"] = texts
        self._write(ctx, evidence, [*rows, *overlap_rows(questions, ctx.learned())])

    def _evidence(self, ctx: Context) -> Evidence:
        models = {c.name: c.model for c in self.contenders}
        rows = {c.name: c for c in self.contenders}
        before = {c.name: c.before for c in self.contenders if c.before}

        def talk(name: str) -> Chat:
            return ctx.chat(self.engine, rows[name].model, self._template(ctx, rows[name]))

        if self.prompts is None or self.gold is None:
            return Evidence((), {}, before, self.reference or "", {}, models, ctx, talk)
        prompts = ctx.conversations(self.prompts)
        origin = next(c for c in self.contenders if c.name == self.reference)
        answers: dict[str, Sequence[Answer]] = {}
        samples: dict[str, Sequence[Sequence[Answer]]] = {}
        for contender in self.contenders:
            groups = self._groups(ctx, contender, prompts, self.gold)
            every = [self._answers(*pair) for pair in zip(groups, self._rewards(ctx, contender, groups), strict=True)]
            if contender.n > 1:
                samples[contender.name] = every
            if contender.n > 1 and contender.scorer is not None:
                answers[contender.name] = [picked(row) for row in every]
            else:
                measured = self._kl(ctx, contender, origin, groups)
                answers[contender.name] = [replace(row[0], kl=kl) for row, kl in zip(every, measured, strict=True)]
        if self.judge is not None:
            answers = judged_answers(ctx, self.judge, prompts, answers, origin.name)
        return Evidence(prompts, answers, before, origin.name, samples, models, ctx, talk)

    def _groups(self, ctx: Context, contender: Contender, prompts: Sequence[Conversation], gold: ScorerKind) -> list[Group]:
        """Answers, judged by the gold scorer.

        Raises:
            ScorerError: it could not judge one of them: without it the rows of the table would be about different prompts.
        """
        template = ctx.template(contender.model, self._template(ctx, contender))
        engine = ctx.engine(self.engine, contender.model, template)
        groups = sample(ctx, engine, template, prompts, self.sampling, contender.n, part=f"rollouts-{contender.name}")
        engine.close()
        groups = judged(groups, ctx.scorer(gold, contender.model, template))
        for group in groups:
            for score in (r.score for r in group.rollouts if has_failed(r.score)):
                what = f"the gold scorer could not judge an answer of {contender.name}: {score.note if score else 'no score'}"
                raise ScorerError(what, f"{ctx.name}.gold, prompt {group.prompt.id}", "mend the gold scorer: every row is measured on every prompt")
        return groups

    def _rewards(self, ctx: Context, contender: Contender, groups: Sequence[Group]) -> list[list[float | None]]:
        """What the contender's own scorer gives each answer; None where it has none, or could not score it, which is counted."""
        if contender.scorer is None:
            return [[None] * len(group.rollouts) for group in groups]
        template = ctx.template(contender.model, self._template(ctx, contender))
        scores = [[r.score for r in group.rollouts] for group in judged(groups, ctx.scorer(contender.scorer, contender.model, template))]
        failed = sum(has_failed(score) for row in scores for score in row)
        if failed:
            ctx.metrics[f"failed/{contender.name}"] = float(failed)
            ctx.console.message(f"{ctx.name}: the scorer of {contender.name} could not score {failed} answers; they are picked last")
        return [[None if score is None or has_failed(score) else score.value for score in row] for row in scores]

    @staticmethod
    def _template(ctx: Context, contender: Contender) -> str:
        return ctx.inputs[contender.model].template if contender.template == "model" else contender.template

    @staticmethod
    def _answers(group: Group, rewards: Sequence[float | None]) -> list[Answer]:
        triples = zip(group.rollouts, group.texts, rewards, strict=True)
        scores = [r.score.value if r.score is not None else None for r in group.rollouts]
        return [
            Answer(text, score is not None and score > 0.5, len(r.completion), reward, gold=score)
            for (r, text, reward), score in zip(triples, scores, strict=True)
        ]

    def _kl(self, ctx: Context, contender: Contender, origin: Contender, groups: Sequence[Group]) -> list[float | None]:
        """Nats per answer, log pi - log ref, both read by the learner; None where the two models read different templates or tokens."""
        if self._template(ctx, contender) != self._template(ctx, origin) or other_token(ctx.path(contender.model), ctx.path(origin.model)):
            return [None] * len(groups)
        if contender.model == origin.model:
            return [0.0] * len(groups)
        mine, theirs = (self._sums(ctx.frozen(model), groups) for model in (contender.model, origin.model))
        return [mine[key] - theirs[key] for key in mine]

    def _sums(self, learner: AnyLearner, groups: Sequence[Group]) -> dict[str, float]:
        """Log-probability of each whole answer, nats, in order of groups."""
        samples = [to_sample(g.rollouts[0], {}) for g in groups]
        longest = max(TOKENS, *(len(s.tokens) for s in samples))
        batches = pack(samples, tokens=longest, share=True, temperature=self.sampling.temperature or 1.0)
        found: dict[str, float] = {}
        for batch, out in zip(batches, learner.forward(batches, frozenset({"logp"})), strict=True):
            found |= {name: sum(row) for name, row in unpack(batch, out.get("logp")).items()}
        return {s.id: found[s.id] for s in samples}

    def _write(self, ctx: Context, evidence: Evidence, rows: Sequence[Row]) -> None:
        shown = [
            {
                "prompt": instruction_of(p.prompt),
                "family": p.meta.get("family", ""),
                "answers": {m: _shown(a[i]) for m, a in evidence.answers.items()},
            }
            for i, p in enumerate(evidence.prompts)
        ]
        write_jsonl(ctx.folder / "samples.jsonl", shown)
        write_atomic(ctx.out("table"), json.dumps([row.to_json() for row in rows], indent=1) + "\n")
        ctx.metrics |= {f"{row.metric}/{row.model}": row.value for row in rows if row.metric in SHARES or row.metric.startswith(ALPACA)}


def picked(answers: Sequence[Answer]) -> Answer:
    """The answer of the highest reward, the earliest of equal ones; one without a reward only where none has any."""
    return max(answers, key=lambda a: -math.inf if a.reward is None else a.reward)


def _shown(answer: Answer) -> dict[str, Any]:
    """One answer in samples.jsonl; KL and the judge's verdict only where they were asked for."""
    measured = {"kl": answer.kl, "judged": answer.judged}
    shown = {"text": answer.text, "passed": answer.passed, "score": answer.reward, "gold": answer.gold, "length": answer.length}
    return shown | {name: value for name, value in measured.items() if value is not None}
