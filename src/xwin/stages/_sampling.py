"""Generation that survives a kill: prompts are sampled in blocks, a finished block is on disk, a partial one is done again."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Ge

from xwin.data.conversation import Conversation
from xwin.data.rollout import Group, Prompt, Rollout, grouped, rollout_from_json, rollout_to_json, scored
from xwin.data.template import Template
from xwin.engines.base import Engine, EngineKind, Sampling
from xwin.engines.local import Local
from xwin.engines.vllm import Vllm
from xwin.errors import CheckpointError
from xwin.models.hub import TemplateName
from xwin.run.artifacts import ConversationsRef, ModelRef
from xwin.run.storage import storage_errors
from xwin.scorers._outcome import ScorerError, complete, has_failed
from xwin.scorers.base import Scorer, ScorerKind
from xwin.scorers.reward_model import TOKENS as SCORED
from xwin.stages._work import Amount, Answers, Phase, Use
from xwin.stages.base import Stage

if TYPE_CHECKING:
    from pathlib import Path

    from xwin.stages._context import Context

BLOCK = 128
"""Prompts of a block: the unit of resume. A function of nothing, so equal runs have equal blocks."""


def room(engine: EngineKind) -> tuple[int, float]:
    """Answers that an engine decodes together, at most, and bytes that it sets aside for them; 0 = what they need.

    (0, 0) of one that holds no network of ours.
    """
    match engine:
        case Local():
            return engine.rows, 0.0
        case Vllm():
            return engine.rows, engine.cache_gb * 2**30
        case _:
            return 0, 0.0


def unended(sampling: Sampling) -> list[tuple[str, str, str]]:
    """As `Stage.check` gives mistakes, of a stage that learns from the tokens that were drawn."""
    what = "an answer that a stop text ends has no end token, so the policy would never learn to stop"
    return [("sampling.stop", what, "remove it; the end token ends an answer, or sampling.max_tokens")] if sampling.stop else []


class Asking(Stage):
    """Settings of every stage that asks a policy n times and has its answers judged."""

    policy: ModelRef
    """Who answers."""

    template: Literal["model"] | TemplateName = "model"
    """How prompts are rendered: as the model was taught or its entry says, in a published template, or in the tokenizer's own."""

    prompts: ConversationsRef
    """What is asked: conversations without their last answer."""

    limit: Annotated[int, Ge(1)] | None = None
    """Prompts used, from the first on; null = all."""

    scorer: ScorerKind
    """Who judges."""

    sampling: Sampling = Sampling()
    """How answers are drawn."""

    engine: EngineKind = Local()
    """What writes them."""

    def require(self) -> None:
        self.engine.require()

    def asking(self, n: int) -> Phase:
        """What n answers to each prompt ask of a machine."""
        rows, cache = room(self.engine)
        answers = Answers(self.prompts, n, self.sampling.max_tokens, rows, BLOCK, limit=self.limit, cache=cache)
        return Phase((Use("engine", self.policy),), answers, SCORED, (self.scorer,))

    def made(self, amount: Callable[[str], Amount | None], each: int, *, sides: int = 1) -> Amount | None:
        """At most `each` rows of every prompt, with `sides` answers a row: what `gives` says."""
        asked = amount(self.prompts)
        if asked is None:
            return None
        rows = min(asked.rows, self.limit or asked.rows) * each
        return replace(asked, rows=rows, answer=sides * self.sampling.max_tokens, sides=sides, known=False)

    def ask(self, ctx: Context, n: int) -> list[Group]:
        """n judged answers to each prompt.

        Raises:
            ScorerError: no answer could be scored.
        """
        template = ctx.template(self.policy, None if self.template == "model" else self.template)
        engine = ctx.engine(self.engine, self.policy, template)
        groups = sample(ctx, engine, template, ctx.conversations(self.prompts)[: self.limit], self.sampling, n)
        engine.close()
        groups = judged(groups, ctx.scorer(self.scorer, self.policy, template))
        tell_failures(ctx, groups)
        return groups


def sample(
    ctx: Context, engine: Engine, template: Template, prompts: Sequence[Conversation], sampling: Sampling, n: int, *, part: str = "rollouts"
) -> list[Group]:
    """n answers to each prompt, kept in `<part>.jsonl` of the stage as they come.

    Args:
        ctx: whose stage it is.
        engine: who writes.
        template: how prompts are rendered and answers read.
        prompts: with unique ids.
        sampling: how answers are drawn.
        n: answers per prompt.
        part: name of the file, in a folder of the stage perhaps, when a stage samples more than once; also part of the seed.
    """
    path = ctx.folder / f"{part}.jsonl"
    blocks = [prompts[i : i + BLOCK] for i in range(0, len(prompts), BLOCK)]
    rollouts = _finished(path, blocks, n)
    done = len({r.prompt_id for r in rollouts})
    shown = ctx.name if part == "rollouts" else f"{ctx.name} {path.stem}"
    with ctx.console.progress(shown, len(prompts), "prompts", done=done) as progress:
        for block in blocks[-(-done // BLOCK) :]:
            asked = [Prompt(p.id, template.prompt(p.prompt)) for p in block]
            places = {p.id: place for place, p in enumerate(block)}
            fresh: list[Rollout] = []
            for rollout in engine.generate(asked, sampling, seed=ctx.seed(part), n=n):
                fresh.append(rollout)
                ctx.stop.obey()
            fresh.sort(key=lambda r: (places[r.prompt_id], r.sample))
            _append(path, fresh)
            rollouts += fresh
            progress.advance(len(block), tokens=sum(len(r.completion) for r in fresh))
    return group(prompts, rollouts, template, sampling)


def group(prompts: Sequence[Conversation], rollouts: Sequence[Rollout], template: Template, sampling: Sampling) -> list[Group]:
    """Groups with the answers as text, cut where a stop text begins."""
    texts = {(r.prompt_id, r.sample): sampling.cut(template.parse(r.completion).text) for r in rollouts}
    return grouped(prompts, rollouts, texts)


def judged(groups: Sequence[Group], scorer: Scorer) -> list[Group]:
    """The groups with each answer's score filled in. Where the scorer failed, the score says so: see scorers._outcome.has_failed.

    Raises:
        ScorerError: there is not one finite score for every answer.
    """
    return scored(groups, complete(groups, scorer.score(groups)))


def tell_failures(ctx: Context, groups: Sequence[Group]) -> None:
    """Counts the answers that could not be scored, when there are any: the metric `failed`, and a line that says why the first one was not.

    Raises:
        ScorerError: no answer could be scored.
    """
    scores = [r.score for g in groups for r in g.rollouts]
    notes = [score.note if score else "" for score in scores if has_failed(score)]
    if not notes:
        return
    if len(notes) == len(scores):
        raise ScorerError(f"no answer could be scored: {notes[0]}", f"{ctx.name}.scorer", "mend the scorer")
    ctx.metrics["failed"] = float(len(notes))
    ctx.console.message(f"{ctx.name}: {len(notes)} of {len(scores)} answers could not be scored and are left out; the first: {notes[0]}")


def _finished(path: Path, blocks: Sequence[Sequence[Conversation]], n: int) -> list[Rollout]:
    """The rollouts of the blocks that were written whole; what follows them is cut off the file."""
    if not path.exists():
        return []
    kept: list[Rollout] = []
    end = 0
    with path.open("rb+") as file:
        for block in blocks:
            rows = [file.readline() for _ in range(n * len(block))]
            if not all(row.endswith(b"\n") for row in rows):
                break
            kept += [_rollout(row, path) for row in rows]
            end = file.tell()
        file.truncate(end)
    return kept


def _rollout(row: bytes, path: Path) -> Rollout:
    try:
        return rollout_from_json(json.loads(row))
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"holds a line that is no answer: {row[:60]!r}", str(path), "remove the file: its answers are written again") from error


def _append(path: Path, rollouts: Sequence[Rollout]) -> None:
    text = "".join(json.dumps(rollout_to_json(r)) + "\n" for r in rollouts)
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())


@dataclass(frozen=True)
class Writer:
    """Who writes answers and who scores them."""

    engine: Engine
    template: Template
    scorer: Scorer | None
    """None = nobody: the answers have no score."""

    def write(self, prompts: Sequence[Conversation], sampling: Sampling, *, seed: int, n: int) -> list[Group]:
        """n answers to each prompt, scored where there is a scorer."""
        asked = [Prompt(p.id, self.template.prompt(p.prompt)) for p in prompts]
        groups = group(prompts, list(self.engine.generate(asked, sampling, seed=seed, n=n)), self.template, sampling)
        return judged(groups, self.scorer) if self.scorer else groups


def placed(prompts: Sequence[Conversation], start: int) -> list[Conversation]:
    """The prompts with ids that name their place in the endless stream: a prompt that comes again is answered anew."""
    return [replace(p, id=f"{p.id}@{start + i}") for i, p in enumerate(prompts)]
