"""Recipe: what a person asks for. Reading one finds every mistake before anything is loaded, and lists them all at once."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from annotated_types import Ge, Gt, MinLen
from pydantic import AfterValidator, field_validator
from pydantic_core import PydanticCustomError

from xwin.errors import RecipeError
from xwin.models.hub import ModelSource
from xwin.recipe.mistakes import mistakes
from xwin.recipe.overrides import overridden
from xwin.recipe.references import reference_mistakes
from xwin.recipe.source import Source, read_source
from xwin.run.trackers import Tracker
from xwin.spec import Spec
from xwin.stages.base import Stage


def _identifier(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise PydanticCustomError("name", "'{name}' is not a name: use letters, digits, - and _, a letter or digit first", {"name": name})
    return name


Name = Annotated[str, AfterValidator(_identifier)]


class Ray(Spec):
    """The cluster that workers live in; read where there is more than one."""

    address: Annotated[str, MinLen(1)] = "local"
    """local = Ray is started on this machine, for this run; auto = the cluster that this machine belongs to; else host:port of a cluster."""

    retries: Annotated[int, Ge(0)] = 3
    """Times that a stage goes on from its last checkpoint after it lost a worker; it stops at once where the same step loses one twice."""

    seconds: Annotated[float, Gt(0)] = 1800.0
    """The longest that one step may take; a worker that says nothing for so long counts as lost."""


class Recipe(Spec):
    """A whole run: models to start from, and stages that build on each other."""

    name: Name
    """Names the run directory: runs/<name>-s<seed>."""

    seed: Annotated[int, Ge(0)] = 0
    """Root of every random draw."""

    data: str | None = None
    """Folder that the paths of data (`./x`) start from; itself as seen from the recipe, or with `--set data=...` from the working directory.
    null = the recipe's own folder."""

    models: dict[Name, ModelSource] = {}
    """Models given once, referred to by name."""

    stages: Annotated[dict[Name, Stage], MinLen(1)]
    """Stages by name. Their order is for people; what needs what decides."""

    workers: Annotated[int, Ge(1)] = 1
    """Processes that share every model and write the answers, a GPU each where there are any; 1 = this process alone, without Ray. A run may go
    on with another number."""

    ray: Ray = Ray()
    """Where they live."""

    trackers: tuple[Tracker, ...] = ()
    """Where else the numbers of every step go. One that fails is dropped; none of them changes a result."""

    @field_validator("trackers")
    @classmethod
    def _each_once(cls, trackers: tuple[Tracker, ...]) -> tuple[Tracker, ...]:
        kinds = [tracker.kind for tracker in trackers]
        twice = next((kind for kind in kinds if kinds.count(kind) > 1), None)
        if twice is not None:
            raise PydanticCustomError("tracker_twice", "the tracker '{kind}' is named twice", {"kind": twice})
        return trackers


@dataclass(frozen=True)
class Read:
    """A recipe without a mistake, and how it was written."""

    recipe: Recipe
    source: Source


def read_recipe(path: Path, sets: Sequence[str] = ()) -> Read:
    """Reads and checks a recipe: syntax, names, types, ranges, references, artefact types, circles, columns, files.

    Args:
        path: the YAML file; `./x` in it is relative to its folder.
        sets: overrides, "ppo.objective.clip=0.1" each.

    Raises:
        UserError: the file cannot be read.
        RecipeError: every mistake, with the line it is on and what to do.
    """
    source = overridden(Recipe, read_source(path), sets)
    found = mistakes(Recipe, source)
    for place, problem in reference_mistakes(source).items():
        if not any(place[: len(known)] == known for known in found):
            found[place] = problem
    if found:
        order = {place: index for index, place in enumerate(source.marks)}
        raise RecipeError([found[place] for place in sorted(found, key=lambda place: _rank(order, place))])
    return Read(Recipe.model_validate(source.data), source)


def _rank(order: dict[tuple[str | int, ...], int], place: tuple[str | int, ...]) -> int:
    """Position in the file; of a key that is missing, its parent's."""
    return next(order[place[:length]] for length in range(len(place), -1, -1) if place[:length] in order)
