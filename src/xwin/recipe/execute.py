"""Runs a plan: one stage after the other, each published before the next begins. Whatever is published is not done again."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xwin.errors import WorkerLost
from xwin.models.hub import fetch
from xwin.recipe._losses import Losses
from xwin.recipe.fields import references
from xwin.recipe.plan import ROOTS, Plan, PlannedStage, default_directory, make_plan, plan_table, ready
from xwin.recipe.schema import Read, Recipe, read_recipe
from xwin.run import _boards as boards
from xwin.run import memory
from xwin.run.artifacts import Network
from xwin.run.directory import RunDirectory, StageRecord
from xwin.run.facts import Cell, final_table, read_run
from xwin.run.following import following
from xwin.run.manifest import command, git_state, hardware, versions
from xwin.run.report import write_report
from xwin.run.secrets import hidden
from xwin.run.signals import StopFlag, stop_on_signals
from xwin.stages._inputs import Resolved

if TYPE_CHECKING:
    from xwin.distributed.workers import Workers
    from xwin.run.console import Console

LEARNED = ("data", "prompts")
"""Fields of a training stage that name what it learns from; its other data only validates."""


def run(recipe: Path, sets: Sequence[str], directory: Path | None, console: Console) -> RunDirectory:
    """Reads, plans and runs a recipe, then writes the report. What is published already is skipped; what was stopped goes on.

    Args:
        recipe: the YAML file.
        sets: overrides, "ppo.objective.clip=0.1" each.
        directory: run directory; None is runs/<name>-s<seed>.
        console: where progress is shown.

    Returns:
        The run directory, every stage published.

    Raises:
        RecipeError: the recipe has mistakes.
        RunBusy: another process works in the directory.
        Interrupted: a signal asked to stop; a checkpoint was written.
        XwinError: what a stage raises.
    """
    read = read_recipe(recipe, sets)
    run = RunDirectory(directory or default_directory(read))
    with stop_on_signals() as stop, run.locked() as before:
        if before:
            console.message(f"the run before, {before}, ended without a word: going on from what it left")
        plan = make_plan(read, run)
        run.describe(read.source.text, read.recipe.settings(), _manifest(plan, sets))
        console.table(*plan_table(plan))
        with following(read.recipe.trackers, run, plan.order, console.message), _workers(read.recipe, run, console) as workers:
            _Execution(plan, console, stop, workers).all()
        report = write_report(run.path)
    _show_results(run, console)
    console.message(f"report: {report}")
    return run


def _show_results(run: RunDirectory, console: Console) -> None:
    """What each evaluate stage found: cells are the value with its 95 % interval."""
    measured = [stage for stage in read_run(run.path).stages if stage.table]
    for stage in measured:
        for title, table in _tables(stage.table).items():
            if len(table) > 1:
                console.table(f"{stage.name}: {title}" if len(measured) > 1 else title, table[0], table[1:])


def _tables(cells: Sequence[Cell]) -> dict[str, list[list[str]]]:
    """The final table, accuracy by family, and what suites with questions of their own found."""
    rows = [asdict(cell) for cell in cells]
    families = list(dict.fromkeys(cell.metric for cell in cells if cell.metric.startswith("accuracy/")))
    return {
        "results (95 % intervals)": final_table(rows),
        "accuracy by family": final_table(rows, families) if families else [],
        "AlpacaEval, win rate, % (95 % intervals)": boards.alpaca_eval(cells),
    } | boards.by_suite(cells)


@contextmanager
def _workers(recipe: Recipe, run: RunDirectory, console: Console) -> Iterator[Workers | None]:
    """Those that the recipe asks for, which start when they are first needed; None for one, which is this process.

    Raises:
        MissingExtra: there is no Ray.
    """
    if recipe.workers == 1:
        yield None
        return
    from xwin.distributed.cluster import Cluster, require_ray
    from xwin.distributed.workers import Workers  # brings torch: only when there is work

    require_ray()
    with Workers(Cluster(recipe.workers, run.path, recipe.ray.address, recipe.ray.seconds), console.message) as workers:
        yield workers


@dataclass(frozen=True)
class _Execution:
    """A plan being carried out in its locked run directory."""

    plan: Plan
    console: Console
    stop: StopFlag
    workers: Workers | None

    def all(self) -> None:
        """Runs or skips each stage, in order. Models come first: what cannot be had is known before hours of work."""
        for stage in self.plan.stages:
            if stage.status != "skip":
                stage.spec.require()
        models = self._models()
        self._require_usable(models)
        done: dict[str, PlannedStage] = {}
        for stage in self.plan.stages:
            self.stop.obey()
            stage_inputs = ready(stage, done)
            record = stage.directory.begin(_record(stage))
            if record.status == "published":
                stage.directory.verify()
                stage.directory.tidy()
                self.console.skipped(stage.name, stage.reason)
            else:
                inputs = {ref: replace(found, path=models.get(ref, found.path)) for ref, found in stage_inputs.items()}
                self.one(stage, inputs, learned(stage, done))
                memory.release()
            done[stage.name] = stage
            self.plan.run.gather_events(self.plan.order)

    def one(self, stage: PlannedStage, inputs: Mapping[str, Resolved], learned: Mapping[str, Resolved]) -> None:
        """Runs one stage to its end and publishes it. `learned` is what the models it is given were trained on."""
        begun = time.monotonic()
        self.console.stage(stage.name, stage.spec.kind, stage.summary)
        losses = Losses(stage.name, self.plan.read.recipe.ray.retries)
        metrics = None
        while metrics is None:
            metrics = self._attempt(stage, inputs, learned, losses)
        if self.workers is not None:
            self.workers.drop()
        seconds = time.monotonic() - begun
        record = stage.directory.publish(metrics, seconds=seconds)
        self.console.finished(stage.name, seconds, record.metrics)

    def _attempt(
        self, stage: PlannedStage, inputs: Mapping[str, Resolved], learned: Mapping[str, Resolved], losses: Losses
    ) -> Mapping[str, float] | None:
        """The metrics of the stage; None when it lost a worker and is to go on from its last checkpoint, with new ones.

        Raises:
            WorkerLost: it has lost too many.
        """
        from xwin.stages._context import Context  # brings torch: only when there is work

        seed = self.plan.read.recipe.seed
        context = Context(stage.name, stage.spec, seed, stage.directory, inputs, self.console, self.stop, learned=learned, workers=self.workers)
        try:
            with memory.allocation_errors(f"stages.{stage.name}", _what_to_lower(stage)):
                stage.spec.run(context)
        except WorkerLost as lost:
            self.stop.obey()
            losses.bear(lost, context.trained.at if context.trained else None)
            self.console.message(f"{stage.name}: {lost.where}: {lost.what}; going on from the last checkpoint with new workers")
            return None
        return context.metrics

    def _models(self) -> dict[str, Path]:
        """Reference -> local folder of every model that a stage that has to run needs and no stage makes."""
        wanted = {ref: found.source for stage in self.plan.stages if stage.status != "skip" for ref, found in stage.inputs.items() if found.source}
        folders = {}
        for ref, source in wanted.items():
            self.console.message(f"model {ref}: {source.path}")
            folders[ref] = fetch(source, self.plan.read.source.folder)
        return folders

    def _require_usable(self, models: Mapping[str, Path]) -> None:
        """Looks at every model, and at the chat template of those that a stage starts from."""
        from xwin.data.template import load_template  # brings torch: only when there is work
        from xwin.models.usable import require_usable

        for folder in models.values():
            require_usable(folder)
        for stage in self.plan.stages:
            root = next((text for field in ROOTS if (text := getattr(stage.spec, field, None)) in models), None)
            if root is not None and stage.status != "skip":
                named = getattr(stage.spec, "template", "model")
                load_template(models[root], (stage.inputs[root].template or "vicuna") if named == "model" else named)


def _what_to_lower(stage: PlannedStage) -> str:
    """The settings of a stage that bound its memory, with their values.  Example: "lower tokens_per_batch (2048) ..." """
    settings: Any = stage.spec.settings()
    found = [f"{key} ({settings[key]})" for key in ("tokens_per_batch",) if key in settings]
    found += [f"engine.rows ({rows})" for rows in [(settings.get("engine") or {}).get("rows")] if rows is not None]
    smaller = "start from a smaller model; what is finished is kept"
    return f"lower {' or '.join(found)}, train adapters (tune), or {smaller}" if found else smaller


def learned(stage: PlannedStage, done: Mapping[str, PlannedStage]) -> dict[str, Resolved]:
    """The data that the stages before `stage`, near and far, train networks on: "stage: reference" -> where it lies."""
    before: dict[str, PlannedStage] = {}
    left = list(stage.needs)
    while left:
        name = left.pop()
        if name not in before:
            before[name] = done[name]
            left += done[name].needs
    found: dict[str, Resolved] = {}
    for name, maker in before.items():
        inputs = ready(maker, done)
        if any(issubclass(made, Network) for made in maker.spec.makes.values()):
            read = [r for r in references(type(maker.spec), maker.spec) if r.place[0] in LEARNED]
            found |= {f"{name}: {r.text}": inputs[r.text] for r in read}
    return dict(sorted(found.items()))


def _record(stage: PlannedStage) -> StageRecord:
    inputs = {ref: resolved.digest for ref, resolved in stage.inputs.items()}
    return StageRecord(stage.name, stage.spec.kind, stage.fingerprint, "running", inputs, stage.spec.settings(), time.time())


def _manifest(plan: Plan, sets: Sequence[str]) -> dict[str, Any]:
    """What the run was made of; see run/manifest.py."""
    read: Read = plan.read
    inputs = {ref: found.digest for stage in plan.stages for ref, found in stage.inputs.items() if not found.digest.startswith("stage:")}
    return {
        "recipe": read.recipe.name,
        "seed": read.recipe.seed,
        "command": hidden(command()),
        "set": [hidden(text) for text in sets],
        "versions": versions(),
        "git": git_state(Path(__file__).parent),
        "hardware": hardware(),
        "inputs": {str(read.source.path): read.source.sha256} | inputs,
        "stages": plan.order,
    }
