"""Context: what a stage may use. It knows files, seeds, workers and signals, so that a stage need not."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from xwin.data.conversation import Conversation, Preference
from xwin.data.files import data_digest
from xwin.data.formats import Makes
from xwin.data.reading import Reading, same_template
from xwin.data.sources import Rows, load, open_conversations, open_preferences
from xwin.data.template import Template, export_template, load_template, template_digest
from xwin.data.vocabulary import other_token, require_same_tokens
from xwin.distributed.workers import Workers
from xwin.distributed.world import World
from xwin.engines._replicas import Replicas
from xwin.engines._replies import KeptChat, ReplyStore
from xwin.engines.base import Chat, Engine, EngineChat, EngineKind
from xwin.engines.local import Local
from xwin.engines.vllm import Vllm
from xwin.errors import DataError
from xwin.learning.blueprint import Blueprint
from xwin.learning.group import SharedLearner
from xwin.learning.learner import AnyLearner, Reader
from xwin.learning.optim import Optim
from xwin.models import causal
from xwin.models.causal import Head, PackedModel
from xwin.models.hub import cache_folder, digest_folder
from xwin.models.tuning import Frozen, Full, LastLayers, LoRA
from xwin.objectives.base import Objective
from xwin.run.artifacts import Preferences
from xwin.run.console import Console
from xwin.run.directory import StageDirectory
from xwin.run.guards import Guard
from xwin.run.signals import StopFlag
from xwin.run.storage import write_atomic
from xwin.scorers.base import Scorer, ScorerKind
from xwin.seeds import derive
from xwin.stages._inputs import Resolved
from xwin.stages._loop import LARGEST_RATIO_GAP, Loop
from xwin.stages._training import Training
from xwin.stages.base import Stage

REPLIES = "replies.sqlite"
"""File of the cache folder that keeps what judges answered."""


@dataclass(frozen=True)
class _Shop:
    """See scorers.base.Workshop."""

    ctx: Context
    writer: str
    spoken: Template
    """The template that the answers are written in."""

    def frozen_scorer(self, model: str) -> AnyLearner:
        """See Context.frozen_scorer."""
        return self.ctx.frozen_scorer(model)

    def reading(self, model: str, scorer: AnyLearner) -> Reading:
        """By text where the reward model has other tokens than the writer, or learned another template than the answers are written in."""
        known = self.ctx.template(model)
        differing = other_token(self.ctx.path(self.writer), self.ctx.path(model))
        if differing:
            self.ctx.console.message(f"{self.ctx.name}: {model} has other tokens than {self.writer} ({differing}): it reads the answers as text")
        elif not same_template(self.spoken, known):
            what = f"{model} learned another chat template than {self.writer} writes in"
            self.ctx.console.message(f"{self.ctx.name}: {what}: it reads the answers as text")
            differing = what
        return Reading(known, bool(differing), scorer.about.context)

    def chat(self, engine: EngineKind, model: str | None) -> Chat:
        """See Context.chat."""
        return self.ctx.chat(engine, model)


class Context:
    """One stage's view of the run."""

    def __init__(  # noqa: PLR0913 - everything a stage may touch enters here and nowhere else
        self,
        stage: str,
        spec: Stage,
        seed: int,
        directory: StageDirectory,
        inputs: Mapping[str, Resolved],
        console: Console,
        stop: StopFlag,
        *,
        learned: Mapping[str, Resolved] = MappingProxyType({}),
        workers: Workers | None = None,
    ) -> None:
        self.name, self.spec, self.directory, self.inputs = stage, spec, directory, inputs
        self.console, self.stop = console, stop
        self._learned, self._workers = learned, workers
        self.world = World.alone()
        self.trained: Loop | None = None
        """The loop of the stage, once it has one."""
        self.metrics: dict[str, float] = {}
        """Numbers that sum the stage up; they go into its manifest."""
        self._root = seed

    @property
    def folder(self) -> Path:
        """The stage's directory."""
        return self.directory.folder

    def seed(self, *path: str | int) -> int:
        """The seed of a draw of this stage."""
        return derive(self._root, self.name, *path)

    def out(self, name: str) -> Path:
        """Where the output `name` goes; what a killed attempt left there is removed."""
        path = self.directory.out(name)
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        return path

    def leave(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """See suites.base.Workshop."""
        write_atomic(self.folder / re.sub(r"[^\w.-]+", "-", name), json.dumps(rows, indent=1) + "\n")

    def path(self, ref: str) -> Path:
        """The file or folder a reference points at."""
        path = self.inputs[ref].path
        if path is None:
            raise DataError("has not been made", ref)
        return path

    def template(self, ref: str, name: str | None = None) -> Template:
        """The template of a model; `name` chooses another one over the same tokenizer."""
        return load_template(self.path(ref), name or self.template_name(ref))

    def template_name(self, ref: str) -> str:
        """The name of a model's template."""
        return self.inputs[ref].template or "vicuna"

    def template_digest(self, ref: str, name: str | None = None) -> str:
        """Names what `template(ref, name)` does with text, as text that is equal for equal behaviour."""
        return template_digest(self.path(ref), name or self.template_name(ref))

    def conversations(self, ref: str) -> Rows[Conversation]:
        """The rows of a source, in order: of a file in any format that is known, or of a stage."""
        return self._rows(ref, Makes.CONVERSATIONS)

    def preferences(self, ref: str) -> Rows[Preference]:
        """The rows of a source, in order: of a file in any format that is known, or of a stage."""
        return self._rows(ref, Makes.PREFERENCES)

    def learned(self) -> dict[str, Rows[Any]]:
        """What the models that this stage is given were trained on: "stage: reference" -> its rows, preferences or conversations."""
        found = self._learned.items()
        return {name: self._open(r.ref, r, Makes.PREFERENCES if issubclass(r.artifact, Preferences) else Makes.CONVERSATIONS) for name, r in found}

    def _rows(self, ref: str, makes: Makes) -> Rows[Any]:
        return self._open(ref, self.inputs[ref], makes)

    @staticmethod
    def _open(ref: str, resolved: Resolved, makes: Makes) -> Rows[Any]:
        path, cache, digest = resolved.path, cache_folder() / "data", resolved.digest
        if path is None:
            raise DataError("has not been made", ref)
        if digest.startswith("files:") and data_digest(path) != digest:
            raise DataError("changed since the recipe was planned", ref, "run the same command again: it plans anew")
        if not digest.startswith("stage:"):
            return load(str(path), makes=makes, cache=cache, digest=digest.removeprefix("file:") if digest.startswith("file:") else None)
        return open_conversations(path, cache=cache) if makes is Makes.CONVERSATIONS else open_preferences(path, cache=cache)

    def learner(  # noqa: PLR0913 - one learner is all of these
        self, ref: str, *, head: Head, objective: Objective, tune: Full | LoRA | LastLayers, optim: Optim, total: int, heads: int = 1
    ) -> AnyLearner:
        """A model in training. Adapters and heads are drawn from seeds of this stage."""
        seeds, again = (self.seed("init", head), self.seed("head", head)), isinstance(self.spec, Training) and self.spec.recompute
        return self._built(Blueprint(self.path(ref), head, self.inputs[ref].dtype, tune, objective, optim, total, heads, *seeds, again))

    def frozen(self, ref: str, head: Head = "language") -> AnyLearner:
        """A model that only reads: a reference or a scorer."""
        return self._built(Blueprint(self.path(ref), head, self.inputs[ref].dtype))

    def _built(self, blueprint: Blueprint) -> AnyLearner:
        """In this process, or shared by the workers."""
        return blueprint.build(self.world) if self._workers is None else SharedLearner.build(self._workers, blueprint)

    def network(self, ref: str) -> PackedModel:
        """A model that only reads, in this process whatever the number of workers."""
        return causal.load(self.path(ref), head="language", tuning=Frozen(), dtype=self.inputs[ref].dtype).to(self.world.device)

    def reference(self, ref: str, policy: AnyLearner) -> Reader:
        """The model that `policy` started from, which is `ref`: a second copy, or the policy itself where its adapters can be switched off."""
        return policy.origin() if policy.about.adapted else self.frozen(ref)

    def frozen_scorer(self, model: str) -> AnyLearner:
        """See scorers.base.Workshop: a reward model for texts of no model's own."""
        return self.frozen(model, "score")

    def reader(self, ref: str, writer: str) -> AnyLearner:
        """A frozen model that reads what the model `writer` writes: a reference or a teacher.

        Raises:
            ModelError: a token id means something else to it.
        """
        require_same_tokens(self.path(writer), self.path(ref))
        return self.frozen(ref)

    def engine(self, kind: EngineKind, ref: str, template: Template) -> Engine:
        """An engine over a model: in this process, or one on each worker."""
        if self._workers is None or not isinstance(kind, Local | Vllm):
            return kind.build(self.path(ref), template.stop, self.inputs[ref].dtype)
        return Replicas.build(self._workers, kind, self.path(ref), template.stop, self.inputs[ref].dtype)

    def chat(self, engine: EngineKind, model: str | None, name: str | None = None) -> Chat:
        """Somebody to ask: an endpoint, or an engine over a model, in its own template or the one of that name. Answers are kept in the cache
        folder, so that no recipe asks twice."""
        replies = cache_folder() / REPLIES
        if model is None:
            return engine.chat(replies)
        template = self.template(model, name)
        who = " ".join([digest_folder(self.path(model)), self.template_digest(model, name), self.inputs[model].dtype, str(engine.settings())])
        return KeptChat(EngineChat(self.engine(engine, model, template), template), ReplyStore(replies), who)

    @contextmanager
    def asking(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        """Shows how many of `total` questions were answered; between two of them the run can be stopped."""
        with self.console.progress(f"{self.name} {what}", total, "questions") as progress:

            def told(answered: int) -> None:
                progress.advance(answered)
                self.stop.obey()

            yield told

    def scorer(self, kind: ScorerKind, writer: str, template: Template) -> Scorer:
        """A scorer of what the model `writer` writes in a template."""
        return kind.build(_Shop(self, writer, template))

    def loop(
        self,
        spec: Training,
        total: int,
        learners: Mapping[str, AnyLearner],
        *,
        state: Mapping[str, Any],
        patience: int | None = None,
        rewind: Callable[[int], None] | None = None,
    ) -> Loop:
        """The loop of a training stage, put back to its last checkpoint. The first learner is the one kept at its best."""
        guards: Sequence[Guard] = (*spec.guards, Guard(metric="ratio_gap", above=LARGEST_RATIO_GAP))
        self.trained = Loop(
            self.name,
            total,
            learners,
            self.directory,
            self.console,
            self.stop,
            guards,
            spec.checkpoint_every,
            dict(state),
            patience,
            kept=spec.checkpoints_kept,
            max_rollbacks=spec.max_rollbacks,
            rewind=rewind,
        )
        return self.trained

    def finish(self, learner: AnyLearner, loop: Loop, output: str, template: str) -> None:
        """Publishes the best of what was trained, with its chat template inside its tokenizer."""
        loop.restore_best()
        folder = self.out(output)
        part = folder.with_name(f".{output}.tmp")
        shutil.rmtree(part, ignore_errors=True)
        learner.publish(part)
        export_template(part, template)
        part.rename(folder)
        self.metrics |= loop.last
        if loop.best.step >= 0:
            self.metrics["best_step"] = float(loop.best.step)
