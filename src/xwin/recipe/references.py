"""What the references of a recipe point at, and every one that points at nothing, at the wrong thing, or in a circle.

Works on the raw recipe, so that a mistake in one stage does not hide the mistakes of another.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from xwin.errors import ModelError, Problem
from xwin.models.hub import ModelSource, require_pinned
from xwin.recipe._data_files import HUB, data_files, data_path, unpinned
from xwin.recipe.fields import WORDS, Reference, references, spec_of
from xwin.recipe.source import Place, Source
from xwin.run.artifacts import Artifact, Model, Network, RewardModel, Wants
from xwin.spec import nearest
from xwin.stages.base import Stage

ELSEWHERE = ("hf:", "pypi:", "random:")
PATHS = ("./", "../", "/")


@dataclass(frozen=True, slots=True)
class Target:
    """What a reference means."""

    form: Literal["stage", "model", "file"]
    name: str
    """Of the stage or the entry of `models:`; the text itself for files and models elsewhere."""
    artifact: type[Artifact]
    output: str = ""
    """Of the stage."""
    source: ModelSource | None = None
    """Of a model that no stage makes."""


def target(
    text: str, wants: Wants, makes: Mapping[str, Mapping[str, type[Artifact]]], models: Mapping[str, ModelSource], folder: Path
) -> Target | None:
    """What a reference means, whether or not it is what is wanted.

    Args:
        text: the reference as written.
        wants: decides how a file is read: nothing else says what it is.
        makes: stage -> output -> what it is, first output first.
        models: the entries of `models:`.
        folder: what `./x` is relative to.

    Returns:
        None when there is no such stage, output or model.
    """
    if text.startswith(PATHS) or text in {".", ".."}:
        path = folder / text
        source = ModelSource(path=text) if issubclass(wants.artifact, Network) else None
        return Target("file", text, _artifact_of(path, wants), source=source)
    if text.startswith(HUB) and not issubclass(wants.artifact, Network):
        return Target("file", text, wants.artifact)
    if text.startswith(ELSEWHERE):
        return Target("model", text, _artifact_elsewhere(text, wants), source=_inline(text))
    if text in models:
        path = models[text].path
        artifact = _artifact_of(folder / path, wants) if path.startswith((".", "/")) else _artifact_elsewhere(path, wants)
        return Target("model", text, artifact, source=models[text])
    stage, _, output = text.partition("/")
    if stage not in makes or (output and output not in makes[stage]):
        return None
    output = output or next(iter(makes[stage]))
    return Target("stage", stage, makes[stage][output], output)


def start(source: Source, reference: Reference) -> Path:
    """What `./x` is relative to in this reference."""
    return source.folder if issubclass(reference.wants.artifact, Network) else source.data_folder


def reference_mistakes(source: Source) -> dict[Place, Problem]:
    """Every reference that is wrong, every stage whose own check fails, every model that is not pinned or not there; by place."""
    checker = _Checker(source)
    checker.check_models()
    checker.check_references()
    checker.check_circles()
    checker.check_stages()
    return checker.found


class _Checker:
    """The recipe as far as it can be understood, and the mistakes found in it."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.found: dict[Place, Problem] = {}
        raw = source.data.get("stages")
        self.raw: dict[str, Any] = raw if isinstance(raw, dict) else {}
        kinds = {name: spec_of(Stage, value) for name, value in self.raw.items()}
        self.kinds = {name: kind for name, kind in kinds.items() if kind is not None and issubclass(kind, Stage)}
        self.makes = {name: kind.makes for name, kind in self.kinds.items()}
        self.models = dict(_models(source.data.get("models")))

    def check_models(self) -> None:
        """Names that mean two things; models without a pinned digest; folders that are not there."""
        for name, model in self.models.items():
            place = ("models", name)
            if name in self.raw:
                self._report(place, f"'{name}' is also the name of a stage", "rename one of them: a reference must mean one thing")
            self._check_source(model, (*place, "path"))

    def check_references(self) -> None:
        """References to nothing, to what is not there, and to the wrong kind of thing."""
        for reference in self._references():
            meant = target(reference.text, reference.wants, self.makes, self.models, start(self.source, reference))
            if meant is None:
                self._report(reference.place, *self._unknown(reference))
            elif not issubclass(meant.artifact, reference.wants.artifact):
                self._report(reference.place, *self._misfit(reference, meant))
            elif meant.form == "file":
                self._check_file(reference)
            elif meant.form == "model" and meant.source is None:
                fix = "a model elsewhere is hf:org/name, pypi:name==version or random:2x64"
                self._report(reference.place, f"'{reference.text}' is not a model", fix)
            elif meant.source is not None and reference.text not in self.models:
                self._check_source(meant.source, reference.place)

    def check_circles(self) -> None:
        """Stages that wait for each other."""
        needs: dict[str, dict[str, Place]] = {name: {} for name in self.kinds}
        for reference in self._references():
            needs[str(reference.place[1])].setdefault(reference.text.partition("/")[0], reference.place)
        for circle in _circles({name: [other for other in edges if other in self.kinds] for name, edges in needs.items()}):
            path = " needs ".join(f"'{name}'" for name in [*circle, circle[0]])
            self._report(needs[circle[0]][circle[1 % len(circle)]], f"the stages wait for each other: {path}", "break the circle")

    def check_stages(self) -> None:
        """What each stage knows about its own settings, such as a column that its objective needs and nothing makes."""
        for name, kind in self.kinds.items():
            try:
                stage = kind.choose(self.raw[name])
            except ValidationError:
                continue  # its settings are listed already
            for field, what, fix in stage.check():
                self._report(("stages", name, *(field.split(".") if field else ())), what, fix)

    def _references(self) -> Iterator[Reference]:
        for name, kind in self.kinds.items():
            yield from references(kind, self.raw[name], ("stages", name))

    def _report(self, place: Place, what: str, fix: str) -> None:
        self.found.setdefault(place, Problem(what, self.source.where(place), fix))

    def _unknown(self, reference: Reference) -> tuple[str, str]:
        stage, slash, output = reference.text.partition("/")
        if (start(self.source, reference) / reference.text).exists():
            return f"there is no stage or model '{reference.text}'", f"write './{reference.text}' for the file"
        if slash and stage in self.makes:
            return f"the stage '{stage}' has no output '{output}'", nearest(output, list(self.makes[stage]))
        return f"there is no stage or model '{stage}'", nearest(stage, [*self.raw, *self.models])

    def _misfit(self, reference: Reference, meant: Target) -> tuple[str, str]:
        wants = reference.wants.artifact
        subject = {"stage": f"stage '{meant.name}' makes", "model": f"'{meant.name}' is", "file": f"'{meant.name}' is"}[meant.form]
        own = str(reference.place[1])
        fitting = [
            f"{name}/{out}" if out != next(iter(m)) else name
            for name, m in self.makes.items()
            for out, a in m.items()
            if issubclass(a, wants) and name != own
        ]
        if meant.form == "stage":
            fitting.sort(key=lambda ref: ref.partition("/")[0] != meant.name)
        fix = f"point it at one of {fitting}" if fitting else f"nothing in this recipe makes {WORDS[wants]}"
        return f"needs {WORDS[wants]}, but {subject} {WORDS[meant.artifact]}", fix

    def _check_file(self, reference: Reference) -> None:
        folder = start(self.source, reference)
        path = folder / reference.text
        if _wanders(reference.text):
            self._report(reference.place, *_WANDERS)
            return
        network = issubclass(reference.wants.artifact, Network)
        if not network and reference.text.startswith(HUB):
            what, fix = unpinned(reference.text)
            if what:
                self._report(reference.place, what, fix)
            return
        if not network and data_files(data_path(reference.text, folder)):
            return
        if not path.exists():
            self._report(reference.place, f"no such {'folder' if network else 'file'}: {reference.text}", f"paths are relative to {folder or '.'}/")
        elif network != path.is_dir():
            expected = "a folder with a model" if network else "data"
            self._report(reference.place, f"needs {expected}, but {reference.text} is a {'file' if network else 'folder without files'}", "")

    def _check_source(self, model: ModelSource, place: Place) -> None:
        try:
            require_pinned(model)
        except ModelError as error:
            self._report(place, error.what, error.fix)
        if model.path.startswith((".", "/")) and _wanders(model.path):
            self._report(place, *_WANDERS)
        elif model.path.startswith((".", "/")) and not (self.source.folder / model.path).is_dir():
            self._report(place, f"no such folder: {model.path}", f"paths are relative to {self.source.folder or '.'}/")


_WANDERS = ("a path must not go back (..) after it went into a folder", "write where it leads: ./x below the recipe, ../x above it, or /x")


def _wanders(path: str) -> bool:
    """Whether a path hides where it leads.  Example: "./data/../../x"; "../x" does not hide it."""
    inside = [part for part in path.split("/") if part not in {"", "."}]
    while inside and inside[0] == "..":
        inside.pop(0)
    return ".." in inside


def _models(raw: Any) -> Iterator[tuple[str, ModelSource]]:
    """The entries of `models:` that can be understood."""
    for name, value in raw.items() if isinstance(raw, dict) else ():
        try:
            yield name, ModelSource.model_validate(value)
        except ValidationError:
            path = value.get("path") if isinstance(value, dict) else None
            yield name, _inline(path) or ModelSource(path="random:1x16")  # listed already; here it only has to have the name


def _inline(text: Any) -> ModelSource | None:
    try:
        return ModelSource(path=text)
    except ValidationError:
        return None


def _artifact_elsewhere(path: str, wants: Wants) -> type[Artifact]:
    """What a model that is not in a folder is: on the hub it may be a reward model, in a package or made at random it is not."""
    return RewardModel if wants.artifact is RewardModel and path.startswith("hf:") else Model


def _artifact_of(path: Path, wants: Wants) -> type[Artifact]:
    """What a path holds: a network says so in its config.json; anything else is taken to be what is wanted."""
    try:
        built = json.loads((path / "config.json").read_text(encoding="utf-8")).get("architectures") or [""]
    except (OSError, ValueError, AttributeError):
        return wants.artifact
    return RewardModel if str(built[0]).endswith("ForSequenceClassification") else Model


def _circles(needs: Mapping[str, Sequence[str]]) -> list[list[str]]:
    """Each circle of the graph that a depth-first walk meets, once."""
    done: set[str] = set()
    circles: list[list[str]] = []

    def visit(name: str, path: list[str]) -> None:
        if name in path:
            circles.append(path[path.index(name) :])
        elif name not in done:
            for other in needs[name]:
                visit(other, [*path, name])
            done.add(name)

    for name in needs:
        visit(name, [])
    return circles
