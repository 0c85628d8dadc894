"""From a recipe to an ordered list of stages: what each one needs, what it is made of, and whether it has to run. No weight is loaded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from xwin.models.hub import ModelSource, digest_folder
from xwin.recipe._data_files import data_digest, data_path
from xwin.recipe.fields import Reference, references, specs
from xwin.recipe.references import Target, start, target
from xwin.recipe.schema import Read
from xwin.recipe.source import dotted
from xwin.run.artifacts import Network
from xwin.run.directory import RunDirectory, StageDirectory, StageRecord
from xwin.spec import Kind
from xwin.stages._inputs import Resolved, filenames
from xwin.stages.base import Stage

FORMAT = 1
"""Raised when the meaning of a run directory changes; part of every fingerprint."""

Status = Literal["run", "skip", "resume"]
ROOTS = ("init", "policy")
"""Fields whose network a stage starts from, the first that it has: its dtype is what the stage leaves behind."""


@dataclass(frozen=True, slots=True)
class PlannedStage:
    """One stage and what is known about it before it runs."""

    name: str
    spec: Stage
    inputs: Mapping[str, Resolved]
    """By reference as written."""
    needs: tuple[str, ...]
    """Other stages, in the order of the fields."""
    fingerprint: str
    """Digest of its kind, settings, seed and inputs; equal fingerprints, equal results."""
    status: Status
    reason: str
    """Why, in a few words."""
    directory: StageDirectory

    @property
    def summary(self) -> str:
        """How much work it is: steps, prompts, tokens; empty when the stage does not say."""
        return self.spec.summary()


@dataclass(frozen=True, slots=True)
class Plan:
    """Stages in an order in which each comes after what it needs."""

    read: Read
    run: RunDirectory
    stages: tuple[PlannedStage, ...]

    @property
    def order(self) -> list[str]:
        """Names of the stages."""
        return [stage.name for stage in self.stages]


def default_directory(read: Read) -> Path:
    """Example: runs/tiny-s0"""
    return Path("runs") / f"{read.recipe.name}-s{read.recipe.seed}"


def make_plan(read: Read, run: RunDirectory) -> Plan:
    """The plan of a recipe in a run directory, which may not exist yet.

    Raises:
        CheckpointError: a manifest in the directory cannot be read.
    """
    makes = {name: stage.makes for name, stage in read.recipe.stages.items()}
    targets: dict[str, list[tuple[Reference, Target]]] = {}
    for name, stage in read.recipe.stages.items():
        found = [(r, target(r.text, r.wants, makes, read.recipe.models, start(read.source, r))) for r in references(type(stage), stage)]
        targets[name] = [(reference, meant) for reference, meant in found if meant is not None]
    needs = {name: tuple(dict.fromkeys(meant.name for _, meant in found if meant.form == "stage")) for name, found in targets.items()}
    planned: dict[str, PlannedStage] = {}
    for name in in_order(needs):
        inputs = {reference.text: _resolve(reference, meant, planned, start(read.source, reference)) for reference, meant in targets[name]}
        spec = read.recipe.stages[name]
        print_ = fingerprint(name, spec, inputs, read.recipe.seed)
        directory = run.stage(name, filenames(spec.makes))
        status, reason = _status(spec, inputs, print_, directory)
        planned[name] = PlannedStage(name, spec, inputs, needs[name], print_, status, reason, directory)
    return Plan(read, run, tuple(planned.values()))


def in_order(needs: Mapping[str, Sequence[str]]) -> list[str]:
    """Each name after what it needs, else in the order given. There is no circle: reading the recipe refuses it."""
    done: list[str] = []
    left = list(needs)
    while left:
        name = next(name for name in left if all(other in done for other in needs[name]))
        left.remove(name)
        done.append(name)
    return done


def fingerprint(name: str, spec: Stage, inputs: Mapping[str, Resolved], seed: int) -> str:
    """sha256 of everything a stage's results depend on: its settings, the revisions of its kinds, its seed, and what its inputs hold.

    The name is part of it because every seed of a stage is derived from the recipe's seed and its name.
    """
    parts = {
        "format": FORMAT,
        "kinds": revisions(spec),
        "settings": spec.settings(),
        "seed": [seed, name],
        "inputs": {ref: resolved.digest for ref, resolved in inputs.items()},
    }
    return _digest(parts)


def revisions(spec: Stage) -> dict[str, list[str | int]]:
    """Place in the settings -> the kind there and its revision.  Example: {"": ["rl", 0], "objective": ["ppo", 1], "tune": ["lora", 1], ...}"""
    named = ((place, found) for place, found in specs(spec) if isinstance(found, Kind) or type(found).revision)
    return {dotted(place): [getattr(found, "kind", ""), type(found).revision] for place, found in named}


def ready(stage: PlannedStage, done: Mapping[str, PlannedStage]) -> dict[str, Resolved]:
    """The inputs of a stage with the paths of what the stages before it made."""
    found = dict(stage.inputs)
    for ref, resolved in found.items():
        name, _, output = ref.partition("/")
        if resolved.path is None and resolved.source is None and name in done:
            directory = done[name].directory
            found[ref] = replace(resolved, path=directory.out(output or next(iter(directory.files))))
    return found


def root_of(plan: Plan, stage: PlannedStage, network: str) -> ModelSource | None:
    """Where the weights come from that a network of a stage descends from; None when nothing says so.

    Args:
        plan: the stages.
        stage: one of them.
        network: a reference of it.
    """
    found: ModelSource | Resolved = stage.inputs[network]
    while isinstance(found, Resolved):
        if found.source is not None:
            return found.source
        name = found.ref.partition("/")[0]
        maker = next((other for other in plan.stages if other.name == name), None)
        if maker is None or not maker.inputs:
            return None
        found = _root(maker)
    return None


def plan_rows(plan: Plan) -> list[dict[str, str]]:
    """The plan as a table: {"stage", "kind", "needs", "what", "status", "why", "fingerprint"} of each stage, in order."""
    return [
        {
            "stage": stage.name,
            "kind": stage.spec.kind,
            "needs": ", ".join(stage.inputs),
            "what": stage.summary,
            "status": stage.status,
            "why": stage.reason,
            "fingerprint": stage.fingerprint[:8],
        }
        for stage in plan.stages
    ]


def plan_table(plan: Plan) -> tuple[str, list[str], list[list[str]]]:
    """Title, header and rows, as Console.table takes them."""
    recipe = plan.read.recipe
    header = ["stage", "kind", "needs", "what", "status", "why"]
    rows = [[row[column] for column in header] for row in plan_rows(plan)]
    return f"{recipe.name}, seed {recipe.seed} -> {plan.run.path}", header, rows


def plan_json(plan: Plan, more: Mapping[str, Any] = MappingProxyType({})) -> str:
    """The plan as one JSON object: {"recipe", "seed", "directory", "stages": [rows]}, and what else is to be said."""
    read = plan.read
    values = {"recipe": read.recipe.name, "seed": read.recipe.seed, "directory": str(plan.run.path), "stages": plan_rows(plan), **more}
    return json.dumps(values, indent=2, ensure_ascii=False)


def _resolve(reference: Reference, meant: Target, planned: Mapping[str, PlannedStage], folder: Path) -> Resolved:
    network = issubclass(meant.artifact, Network)
    if meant.form == "stage":
        maker = planned[meant.name]
        dtype, template = (_root(maker).dtype, getattr(maker.spec, "template", _root(maker).template)) if network else ("", "")
        return Resolved(reference.text, None, meant.artifact, template, dtype, None, f"stage:{maker.fingerprint}/{meant.output}")
    if meant.source is not None:
        digest = f"model:{_digest(_identity(meant.source, folder))}"
        return Resolved(reference.text, None, meant.artifact, meant.source.template, meant.source.dtype, meant.source, digest)
    path = data_path(reference.text, folder)
    return Resolved(reference.text, path, meant.artifact, "", "", None, data_digest(path))


def _root(stage: PlannedStage) -> ModelSource | Resolved:
    """The network a stage starts from: its `init`, its `policy`, else the first one it names."""
    networks = {text: found for text, found in stage.inputs.items() if issubclass(found.artifact, Network)}
    for field in ROOTS:
        text = getattr(stage.spec, field, None)
        if text in networks:
            return networks[text]
    return next(iter(networks.values()), ModelSource(path="."))


def _identity(source: ModelSource, folder: Path) -> dict[str, Any]:
    """What a model is: where it comes from, its pinned digest, or the content of a folder here."""
    path = folder / source.path
    local = source.path.startswith((".", "/"))
    return source.settings() | ({"path": "", "content": digest_folder(path)} if local else {})


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def _status(spec: Stage, inputs: Mapping[str, Resolved], print_: str, directory: StageDirectory) -> tuple[Status, str]:
    here, found = directory.record(), directory.find(print_)
    if found is not None and found.status == "published":
        return "skip", "done before" if here is found or here == found else "done before, comes back from .old"
    if found is not None:
        steps = sorted(directory.checkpoints.glob("step-*[0-9]"))
        return "resume", f"stopped after step {int(steps[-1].name.removeprefix('step-'))}" if steps else "stopped before its first checkpoint"
    return "run", "not done yet" if here is None else _difference(here, spec, inputs)


def _difference(before: StageRecord, spec: Stage, inputs: Mapping[str, Resolved]) -> str:
    """The first thing that is not what it was.  Example: "objective.clip was 0.2, is 0.1" """
    old, new = dict(_flat(before.settings)), dict(_flat(json.loads(json.dumps(spec.settings()))))
    for key in [*new, *old]:
        if old.get(key, "") != new.get(key, ""):
            return f"{key} was {old.get(key, 'not set')}, is {new.get(key, 'not set')}"
    changed = [ref for ref, resolved in inputs.items() if before.inputs.get(ref) != resolved.digest]
    return f"its input {changed[0]} changed" if changed else "the seed or the code of its kind changed"


def _flat(value: Any, key: str = "") -> list[tuple[str, Any]]:
    """Every leaf of nested settings with its dotted name."""
    if not isinstance(value, Mapping):
        return [(key, value)]
    return [leaf for name, inside in value.items() for leaf in _flat(inside, f"{key}.{name}" if key else name)]
