"""What there is to set, from the docstrings of the classes themselves: a list of all kinds, the settings of one, one setting."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import annotated_types
from pydantic.fields import FieldInfo

from xwin.errors import UserError
from xwin.models.hub import ModelSource
from xwin.recipe.fields import arms, field_type, is_family, plain, tag, tagged
from xwin.recipe.schema import Recipe
from xwin.spec import Kind, Spec, lookup, names, nearest

FAMILIES: Mapping[str, str] = {
    "stages": "the verbs of a recipe",
    "objectives": "what a training step makes smaller",
    "scorers": "who judges an answer",
    "engines": "who writes text",
    "credit": "from scores to advantages",
    "suites": "what evaluation measures",
}
"""Open folders of `xwin`: family -> what its kinds are."""
SINGLE: Mapping[str, type[Spec]] = {"recipe": Recipe, "models": ModelSource}
"""Settings that are not kinds: the recipe itself and an entry of `models:`."""
LIMITS: Mapping[type, tuple[str, str]] = {
    annotated_types.Gt: ("gt", "above {}"),
    annotated_types.Ge: ("ge", "at least {}"),
    annotated_types.Lt: ("lt", "below {}"),
    annotated_types.Le: ("le", "at most {}"),
    annotated_types.MinLen: ("min_length", "at least {} of them"),
    annotated_types.MaxLen: ("max_length", "at most {} of them"),
}


PAGE = """# Objectives and credit

Written by `scripts/docs` from the docstrings of the code; a test compares it with them. An objective is what a training step makes smaller;
credit makes advantages of the scores of answers. `xwin explain NAME` says the same in the terminal."""
"""How docs/objectives.md begins."""


@dataclass(frozen=True, slots=True)
class KindLine:
    """One kind in the list.  Example: KindLine("stages", "sft", "Teaches a model to answer as in the data.")"""

    family: str
    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Setting:
    """One field of a Spec in plain words."""

    name: str
    type: str
    default: str
    limits: str
    text: str


@dataclass(frozen=True, slots=True)
class Page:
    """Everything about one name."""

    title: str
    text: str
    settings: tuple[Setting, ...]


def all_kinds() -> list[KindLine]:
    """Every kind of every family with the first line of its file's docstring. Reads the files, imports none of them."""
    lines = []
    for family in FAMILIES:
        for name in names(f"xwin.{family}"):
            found = importlib.util.find_spec(f"xwin.{family}.{name}")
            assert found is not None and found.origin is not None
            text = ast.get_docstring(ast.parse(Path(found.origin).read_text(encoding="utf-8"))) or ""
            lines.append(KindLine(family, name, text.partition("\n")[0]))
    return lines


def explain(name: str) -> list[Page]:
    """The pages of a name: `rl`, `sft.epochs`, `objectives/ppo`, `rl.sampling.temperature`, `recipe`, `models`.

    Returns:
        One page, or several when kinds of different families share the name.

    Raises:
        UserError: there is nothing of this name; says what is nearest.
    """
    first, *path = name.split(".")
    starts = dict(_starts(first))
    if not starts:
        known = [line.name for line in all_kinds()]
        raise UserError(f"there is no kind '{first}'", fix=nearest(first, [*dict.fromkeys(known), *SINGLE]))
    pages = [page for title, spec in starts.items() if (page := _page(title, spec, path)) is not None]
    if not pages:
        fields = list(dict.fromkeys(field for spec in starts.values() for field in spec.model_fields))
        raise UserError(f"'{first}' has no setting '{'.'.join(path)}'", fix=nearest(path[0], fields))
    return pages


def _starts(name: str) -> Iterator[tuple[str, type[Spec]]]:
    """Every class that a name may mean, by title."""
    if name in SINGLE:
        yield name, SINGLE[name]
    wanted, _, kind = name.rpartition("/")
    for family in FAMILIES:
        if wanted in {"", family} and kind in names(f"xwin.{family}"):
            yield f"{family}/{kind}", lookup(_root(family), kind)


def _root(family: str) -> type[Kind]:
    module = importlib.import_module(f"xwin.{family}.base")
    return next(found for found in vars(module).values() if is_family(found) and found.package == f"xwin.{family}")


def _page(title: str, spec: type[Spec], path: list[str]) -> Page | None:
    """The page of the setting that `path` leads to, or of the whole spec when it is empty."""
    if not path:
        return Page(title, inspect.cleandoc(spec.__doc__ or ""), tuple(_setting(key, field) for key, field in spec.model_fields.items()))
    field = spec.model_fields.get(path[0])
    if field is None:
        return None
    here, rest = f"{title}.{path[0]}", path[1:]
    named = _named(field, rest[0]) if rest else None
    inner = named or _inside(field)
    if rest:
        return _page(f"{here}.{rest[0]}" if named else here, inner, rest[1:] if named else rest) if inner else None
    setting = _setting(path[0], field)
    below = _page(here, inner, []) if inner is not None else None
    return Page(here, "", (setting, *(below.settings if below else ())))


def _named(field: FieldInfo, kind: str) -> type[Spec] | None:
    """The settings that a field holds when it is of this kind."""
    for arm in arms(field.annotation):
        if is_family(arm) and kind in names(arm.package):
            return lookup(arm, kind)
    return tagged(field.annotation).get(kind)


def _inside(field: FieldInfo) -> type[Spec] | None:
    """The settings inside a field: of its default, else of its type; None when the type leaves it open."""
    default = None if field.is_required() else field.get_default(call_default_factory=True, validated_data={})
    if isinstance(default, Spec):
        return type(default)
    return next((arm for arm in arms(field.annotation) if isinstance(arm, type) and issubclass(arm, Spec) and not is_family(arm)), None)


def _setting(name: str, field: FieldInfo) -> Setting:
    metadata = [*field.metadata, *(found for arm in get_args(field.annotation) for found in getattr(arm, "__metadata__", ()))]
    limits = [text.format(getattr(found, key)) for found in metadata for kind, (key, text) in LIMITS.items() if isinstance(found, kind)]
    text = " ".join((field.description or "").split())
    return Setting(name, plain(field_type(field)), _default(field), ", ".join(limits), text)


def _default(field: FieldInfo) -> str:
    """The default as it would be written in a recipe; "required" when there is none."""
    if field.is_required():
        return "required"
    value: Any = field.get_default(call_default_factory=True, validated_data={})
    return _written(value)


def _written(value: Any) -> str:
    """A default in YAML's flow style; settings by their kind."""
    if isinstance(value, Kind):
        return value.kind
    if isinstance(value, Spec):
        return tag(type(value)) or "as below"
    if isinstance(value, list | tuple):
        return f"[{', '.join(_written(item) for item in value)}]"
    return value if isinstance(value, str) and value else json.dumps(value, default=str, ensure_ascii=False)


def markdown() -> str:
    """The page docs/objectives.md: every objective and credit with its equations and their source, the columns it reads, its settings."""
    parts = [PAGE]
    for family in ("objectives", "credit"):
        parts.append(f"## {family.capitalize()}: {FAMILIES[family]}")
        parts += [_section(lookup(_root(family), name), name) for name in names(f"xwin.{family}")]
    return "\n\n".join(parts) + "\n"


def _section(spec: type[Kind], name: str) -> str:
    """The docstrings of the file, of its functions as far as they say what is computed, and of the class; columns; a table of settings."""
    module = sys.modules[spec.__module__]
    functions = {key: f for key, f in vars(module).items() if inspect.isfunction(f) and f.__module__ == module.__name__ and key[0] != "_"}
    math = [f"`{key}`: {_summary(f)}" for key, f in functions.items()]
    rows = [(s.name, s.type + (f", {s.limits}" if s.limits else ""), s.default, s.text) for s in _every_setting(spec)]
    table = ["| setting | type | default | meaning |", "| --- | --- | --- | --- |"]
    table += [f"| `{key}` | {type_} | `{default}` | {text.replace('|', chr(92) + '|')} |" for key, type_, default, text in rows]
    parts = [f"### {name}", inspect.cleandoc(module.__doc__ or ""), *math, inspect.cleandoc(spec.__doc__ or ""), _columns(spec)]
    return "\n\n".join([*parts, "\n".join(table)] if rows else parts)


def _summary(function: Callable[..., Any]) -> str:
    """The docstring up to its arguments."""
    return re.split(r"\n\n(?:Args|Returns|Raises):", inspect.getdoc(function) or "")[0]


def _columns(spec: type[Kind]) -> str:
    """What a kind with its default settings reads and gives; where that depends on a setting, the docstring says how."""
    kind, said = spec(), []
    for verb, attribute in (("Reads the columns", "needs"), ("Reads of the model", "reads"), ("Gives the columns", "gives")):
        found = sorted(getattr(kind, attribute, ()))
        more = getattr(inspect.getattr_static(spec, attribute, None), "__doc__", "") if isinstance(vars(spec).get(attribute), property) else ""
        if found or more:
            said.append(f"{verb} {', '.join(f'`{name}`' for name in found) or 'nothing'}." + (f" {more}" if more else ""))
    return " ".join(said)


def _every_setting(spec: type[Spec], before: str = "") -> Iterator[Setting]:
    """The settings and those inside them, by dotted name; a choice is named by its kind."""
    for key, field in spec.model_fields.items():
        if key == "kind":
            continue
        yield replace(_setting(key, field), name=f"{before}{key}")
        for arm in arms(field.annotation):
            if isinstance(arm, type) and issubclass(arm, Spec) and not is_family(arm):
                chosen = tag(arm)
                yield from _every_setting(arm, f"{before}{key}.{chosen}." if chosen else f"{before}{key}.")
