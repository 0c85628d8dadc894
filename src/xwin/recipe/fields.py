"""Walking settings and their types side by side: what a key means, which references there are, what a type is in plain words.

Values may be parsed Specs or still raw (dicts, lists); where a raw value does not fit its type, the walk passes it by.
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from xwin.recipe.source import Place
from xwin.run.artifacts import Artifact, Conversations, Model, Network, Preferences, Report, RewardModel, Wants
from xwin.spec import Kind, Spec, lookup, names

WORDS: Mapping[type[Artifact], str] = {
    Model: "a Model",
    RewardModel: "a RewardModel",
    Network: "a Model or a RewardModel",
    Conversations: "Conversations",
    Preferences: "Preferences",
    Report: "a Report",
    Artifact: "an artefact",
}
"""What a reference may point at, with its article."""


@dataclass(frozen=True, slots=True)
class Reference:
    """A value that names a stage, a model or a file."""

    place: Place
    """Relative to the settings that were walked."""
    text: str
    wants: Wants


def references(annotation: Any, value: Any, place: Place = ()) -> Iterator[Reference]:
    """Every reference in `value`, in the order of the fields; nested settings, kinds, lists and mappings too."""
    wants, annotation = _unwrap(annotation)
    if wants is not None and isinstance(value, str):
        yield Reference(place, value, wants)
        return
    for key, inner, item in _parts(annotation, value):
        yield from references(inner, item, (*place, *key))


def _parts(annotation: Any, value: Any) -> Iterator[tuple[Place, Any, Any]]:
    """(key, type, value) of what is directly inside; the arms of a union have no key."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if _is_union(annotation):
        yield from (((), arm, value) for arm in inner)
    elif origin in {list, tuple} and isinstance(value, list | tuple):
        yield from (((index,), inner[0], item) for index, item in enumerate(value))
    elif origin is dict and isinstance(value, Mapping):
        yield from (((key,), inner[1], item) for key, item in value.items())
    elif (spec := spec_of(annotation, value)) is not None:
        yield from (((name,), field_type(field), _member(value, name, field)) for name, field in spec.model_fields.items())


def specs(value: Any, place: Place = ()) -> Iterator[tuple[Place, Spec]]:
    """Every Spec inside parsed settings, the outer before the inner."""
    if isinstance(value, Spec):
        yield place, value
        items: Any = [(name, getattr(value, name)) for name in type(value).model_fields]
    elif isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    else:
        return
    for key, item in items:
        yield from specs(item, (*place, key))


def spec_of(annotation: Any, value: Any) -> type[Spec] | None:
    """The settings class that `value` stands for under this type: for a family of kinds the class of the kind it names.

    Returns:
        None when the type is no settings class, or the kind is not known.
    """
    if isinstance(value, Spec):
        return type(value)
    for arm in arms(annotation):
        if not (isinstance(arm, type) and issubclass(arm, Spec)):
            continue
        if not is_family(arm):
            if isinstance(value, Mapping) and (tag(arm) is None or value.get("kind", tag(arm)) == tag(arm)):
                return arm
            continue
        name = value.get("kind") if isinstance(value, Mapping) else value
        assert issubclass(arm, Kind)
        if isinstance(name, str) and name in names(arm.package):
            return lookup(arm, name)
    return None


def is_family(annotation: Any) -> bool:
    """Whether this is the root class of kinds."""
    return isinstance(annotation, type) and issubclass(annotation, Kind) and "package" in annotation.__dict__


def tag(spec: type[Spec]) -> str | None:
    """The `kind` of a settings class that is one of a closed choice (`kind: Literal["lora"] = "lora"`); None for any other."""
    field = spec.model_fields.get("kind")
    return field.default if field is not None and isinstance(field.default, str) else None


def tagged(annotation: Any) -> dict[str, type[Spec]]:
    """The closed choice of settings that a type offers, by kind."""
    found = [arm for arm in arms(annotation) if isinstance(arm, type) and issubclass(arm, Spec) and not is_family(arm)]
    return {kind: spec for spec in found if (kind := tag(spec)) is not None}


def arms(annotation: Any) -> list[Any]:
    """The alternatives of a union, or the type itself; annotations taken off."""
    _, annotation = _unwrap(annotation)
    if not _is_union(annotation):
        return [annotation]
    return [found for arm in get_args(annotation) for found in arms(arm)]


def field_type(field: FieldInfo) -> Any:
    """The type of a field with its metadata put back."""
    return Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation


def inner_type(annotation: Any, value: Any, key: Any) -> Any | None:
    """The type of `value[key]` under this type, or None when there can be no such key. `value` is raw."""
    for arm in arms(annotation):
        origin, found = get_origin(arm), get_args(arm)
        if origin is dict and isinstance(value, Mapping) and key in value:
            return found[1]
        if origin in {list, tuple} and isinstance(value, list | tuple) and isinstance(key, int) and key < len(value):
            return found[0]
    spec = spec_of(annotation, value)
    return field_type(spec.model_fields[key]) if spec and key in spec.model_fields else None


def known_keys(annotation: Any, value: Any) -> list[str]:
    """The keys that `value` may have under this type."""
    if isinstance(value, Mapping) and any(get_origin(arm) is dict for arm in arms(annotation)):
        return list(value)
    spec = spec_of(annotation, value)
    return list(spec.model_fields) if spec else []


def plain(annotation: Any) -> str:
    """A type in plain words.  Example: `float | None` is "a number or null"."""
    wants, inner = _unwrap(annotation)
    if wants is not None:
        return f"a reference to {WORDS[wants.artifact]}"
    if _is_union(inner):
        return " or ".join(dict.fromkeys(plain(arm) for arm in get_args(inner)))
    return _plain_arm(inner)


SIMPLE: Mapping[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    type(None): "null",
}


def _plain_arm(arm: Any) -> str:
    if arm in SIMPLE:
        return SIMPLE[arm]
    origin, inner = get_origin(arm), get_args(arm)
    if origin is Literal:
        return "one of " + ", ".join(str(value) for value in inner)
    if origin in {list, tuple}:
        return f"a list ({plain(inner[0])} each)"
    if origin is dict:
        return f"a mapping of names ({plain(inner[1])} each)"
    if is_family(arm):
        return f"{_article(arm.__name__)}: a kind, one of {', '.join(names(arm.package))}"
    if isinstance(arm, type) and issubclass(arm, Spec):
        return f"settings of kind {tag(arm)}" if tag(arm) else "settings"
    return getattr(arm, "__name__", str(arm))


def _article(name: str) -> str:
    name = name.removesuffix("Kind").lower()
    return ("an " if name[0] in "aeiou" else "a ") + name


def _is_union(annotation: Any) -> bool:
    return get_origin(annotation) in {Union, types.UnionType}


def _unwrap(annotation: Any) -> tuple[Wants | None, Any]:
    """The `Wants` of an annotated type, if any, and the type without annotations."""
    wants = None
    while get_origin(annotation) is Annotated:
        annotation, *metadata = get_args(annotation)
        wants = next((found for found in metadata if isinstance(found, Wants)), wants)
    return wants, annotation


def _member(value: Any, name: str, field: FieldInfo) -> Any:
    """The value of a field; what is not given has its default."""
    if isinstance(value, Spec):
        return getattr(value, name)
    default = None if field.is_required() else field.get_default(call_default_factory=True, validated_data={})
    return value.get(name, default) if isinstance(value, Mapping) else default
