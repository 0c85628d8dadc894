"""`--set a.b=c`: changes a setting that exists, before anything is checked."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from xwin.errors import Problem, RecipeError
from xwin.recipe.fields import inner_type, known_keys, spec_of
from xwin.recipe.mistakes import unknown_key
from xwin.recipe.source import Place, Source, dotted, read_value
from xwin.spec import Kind, Spec, nearest


def overridden(schema: type[Spec], source: Source, sets: Sequence[str]) -> Source:
    """The source with every `--set` applied, in order.

    Args:
        schema: the class that a recipe is.
        source: the recipe as written.
        sets: "ppo.objective.clip=0.1" each; the first name may be a stage. Values are read as YAML.

    Raises:
        RecipeError: names every `--set` that is not `key=value`, whose key does not exist, or whose value is not YAML.
    """
    data, marks = copy.deepcopy(source.data), dict(source.marks)
    problems: list[Problem] = []
    for text in sets:
        mark = f"--set {text}"
        key, equals, value = text.partition("=")
        try:
            if not equals or not key.strip():
                raise RecipeError([Problem("needs the form key=value", mark, "for example --set seed=3")])
            place = _apply(schema, data, key.strip(), value, mark)
            for old in [p for p in marks if p[: len(place)] == place]:
                del marks[old]
            marks[place] = mark
        except RecipeError as error:
            problems += error.problems
    if problems:
        raise RecipeError(problems)
    return replace(source, data=data, marks=marks)


def _apply(schema: type[Spec], data: dict[str, Any], key: str, text: str, mark: str) -> Place:
    """Sets one key in `data`.

    Returns:
        The place that was set.
    """
    place = _place(schema, data, key, mark)
    value = read_value(text, mark)
    annotation: Any = schema
    here: Any = data
    for done, part in enumerate(place):
        inside = inner_type(annotation, here, part)
        if inside is None and part != "kind":
            parent = dotted(place[:done]) or "the recipe"
            raise RecipeError([Problem(f"there is no '{part}' in {parent}", mark, unknown_key(annotation, here, part))])
        if done == len(place) - 1:
            here[part] = value
            break
        here[part] = _opened(annotation, here, part)
        annotation, here = inside, here[part]
    return place


def _place(schema: type[Spec], data: dict[str, Any], key: str, mark: str) -> Place:
    """The place a dotted key means: a key of a stage when the first name is a stage, else of the recipe."""
    parts: list[Any] = [int(part) if part.isdecimal() else part for part in key.split(".")]
    stages = data.get("stages")
    stages = list(stages) if isinstance(stages, dict) else []
    if parts[0] in stages and (len(parts) > 1 or parts[0] not in schema.model_fields):
        return ("stages", *parts)
    if parts[0] in schema.model_fields:
        return tuple(parts)
    known = [*stages, *schema.model_fields]
    raise RecipeError([Problem(f"there is no stage or setting '{parts[0]}'", mark, nearest(str(parts[0]), known))])


def _opened(annotation: Any, here: Any, part: Any) -> Any:
    """The raw value `here[part]` in a form that keys can be set in: a kind given by its name as a mapping, a default written out."""
    value = here.get(part) if isinstance(here, dict) else here[part]
    spec = spec_of(annotation, here)
    if value is None and spec is not None and part in spec.model_fields:
        field = spec.model_fields[part]
        value = None if field.is_required() else field.get_default(call_default_factory=True, validated_data={})
        value = _written(value)
    inside = inner_type(annotation, {**here, part: value} if isinstance(here, dict) else here, part)
    if isinstance(value, str) and known_keys(inside, value):
        return {"kind": value}
    return {} if value is None else value


def _written(value: Any) -> Any:
    """A default as it would be written in a recipe."""
    if isinstance(value, Kind):
        return {"kind": value.kind} | value.settings()
    return value.settings() if isinstance(value, Spec) else value
