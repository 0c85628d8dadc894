"""What is wrong with the settings of a recipe, in plain words, at the place where it was written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from xwin.errors import Problem
from xwin.recipe.fields import arms, field_type, inner_type, known_keys, plain, spec_of, tagged
from xwin.recipe.source import Key, Place, Source
from xwin.spec import Spec, nearest

Found: TypeAlias = dict[Place, Problem]

RANGES: Mapping[str, str] = {
    "greater_than": "must be above {gt:g}, not {value}",
    "greater_than_equal": "must be at least {ge:g}, not {value}",
    "less_than": "must be below {lt:g}, not {value}",
    "less_than_equal": "must be at most {le:g}, not {value}",
    "multiple_of": "must be a multiple of {multiple_of}, not {value}",
    "finite_number": "must be a finite number, not {value}",
    "too_short": "needs at least {min_length} of them, not {actual_length}",
    "too_long": "takes at most {max_length} of them, not {actual_length}",
    "string_too_short": "must have at least {min_length} characters",
    "string_too_long": "must have at most {max_length} characters",
    "string_pattern_mismatch": "must look like {pattern}, not {value}",
}
WRONG_TYPES = ("_type", "_parsing", "_from_float", "literal_error", "_parsing_size")


def mistakes(schema: type[Spec], source: Source) -> Found:
    """Every setting of the source that does not fit the schema, by place; in the order of the file."""
    found: Found = dict(_lenient(schema, source))
    try:
        schema.model_validate(source.data)
    except ValidationError as error:
        details = [(place_of(detail, source.data), detail) for detail in error.errors(include_url=False)]
        for place, detail in details:
            if _is_type(detail) and any(other[: len(place)] == place != other for other, _ in details):
                continue  # one arm of a union; the arm that fits better says more
            found.setdefault(place, _problem(schema, source, place, detail))
    return found


def place_of(detail: ErrorDetails, data: Any) -> Place:
    """Where an error of pydantic is: its location without the names of union arms, which are no part of the recipe."""
    place: list[Key] = []
    value: Any = data
    for index, key in enumerate(detail["loc"]):
        if key in _inside(value):
            value = _inside(value)[key]
        elif detail["type"] != "missing" or index < len(detail["loc"]) - 1:
            continue  # the name of a union arm
        place.append(key)
    return tuple(place)


def type_at(schema: type[Spec], data: Any, place: Place) -> tuple[Any, Any]:
    """The type that the schema has for a place, and the raw value there; (None, None) where there can be nothing."""
    annotation: Any = schema
    for key in place:
        annotation = inner_type(annotation, data, key)
        if annotation is None:
            return None, None
        data = _inside(data).get(key)
    return annotation, data


def unknown_key(annotation: Any, value: Any, key: Key) -> str:
    """The fix for a key that the settings `value` of this type do not have."""
    known = known_keys(annotation, value)
    if not known:
        return "remove it: there are no settings here"
    spec = spec_of(annotation, value)
    nested = [name for name, field in spec.model_fields.items() if key in known_keys(field.annotation, {})] if spec else []
    return f"write it inside '{nested[0]}': {nested[0]}.{key}" if nested else nearest(str(key), known)


def _problem(schema: type[Spec], source: Source, place: Place, detail: ErrorDetails) -> Problem:
    annotation, value = type_at(schema, source.data, place)
    what, fix = detail["msg"].removeprefix("Value error, "), ""
    if detail["type"] in SPECIAL:
        what, fix = SPECIAL[detail["type"]](schema, source, place, detail)
    elif detail["type"] in RANGES:
        what = RANGES[detail["type"]].format(value=detail["input"], **detail.get("ctx", {}))
    elif _is_type(detail) and annotation is not None:
        what, fix = wrong_type(annotation, value)
    return Problem(what, source.where(place), fix)


def _extra(schema: type[Spec], source: Source, place: Place, detail: ErrorDetails) -> tuple[str, str]:
    annotation, value = type_at(schema, source.data, place[:-1])
    return "unknown setting", unknown_key(annotation, value, place[-1])


def _missing(schema: type[Spec], source: Source, place: Place, detail: ErrorDetails) -> tuple[str, str]:
    annotation, value = type_at(schema, source.data, place[:-1])
    spec = spec_of(annotation, value)
    field = spec.model_fields.get(str(place[-1])) if spec else None
    if field is None:
        return "is missing", f"add `{place[-1]}:`"
    meaning = (field.description or "").partition("\n")[0]
    return "is missing", f"add `{place[-1]}:` ({plain(field_type(field))})" + (f": {meaning}" if meaning else "")


def _with_fix(schema: type[Spec], source: Source, place: Place, detail: ErrorDetails) -> tuple[str, str]:
    return detail["msg"], str(detail.get("ctx", {}).get("near", ""))


def _tag_unknown(schema: type[Spec], source: Source, place: Place, detail: ErrorDetails) -> tuple[str, str]:
    annotation, value = type_at(schema, source.data, place)
    kinds = list(tagged(annotation))
    kind = value.get("kind") if isinstance(value, dict) else None
    return (f"unknown kind '{kind}'", nearest(str(kind), kinds)) if kind is not None else (f"needs a kind: one of {', '.join(kinds)}", "")


SPECIAL: Mapping[str, Callable[[type[Spec], Source, Place, ErrorDetails], tuple[str, str]]] = {
    "extra_forbidden": _extra,
    "missing": _missing,
    "kind_unknown": _with_fix,
    "missing_extra": _with_fix,
    "union_tag_invalid": _tag_unknown,
    "union_tag_not_found": _tag_unknown,
}


def wrong_type(annotation: Any, value: Any) -> tuple[str, str]:
    """What is wrong and the fix for a value that does not fit its type."""
    choices = [str(choice) for arm in arms(annotation) for choice in getattr(arm, "__args__", ()) if isinstance(choice, str)]
    if isinstance(value, str) and choices:
        return f"unknown choice '{value}'", nearest(value, choices)
    what = f"needs {plain(annotation)}, not {shown(value)}"
    if isinstance(value, int | float) and any(arm is str for arm in arms(annotation)):
        return what, f'put it in quotes: "{value}"'
    return what, "write it without quotes" if isinstance(value, str) and _is_number(value) else ""


def shown(value: Any) -> str:
    """A value in plain words, short.  Example: the text 'abc'; the number 1.5; a list"""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return f"the number {value}"
    if isinstance(value, str):
        return f"the text '{value if len(value) <= 40 else value[:37] + '...'}'"
    names = {type(None): "null", list: "a list", dict: "a mapping"}
    return names.get(type(value), type(value).__name__)


def _is_type(detail: ErrorDetails) -> bool:
    return detail["type"].endswith(WRONG_TYPES)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _lenient(schema: type[Spec], source: Source) -> Iterator[tuple[Place, Problem]]:
    """What pydantic would let pass: true as 1, and "2" in quotes as 2."""
    for place, annotation, value in _raw_leaves(schema, source.data, ()):
        found = set(arms(annotation))
        wrong_truth = isinstance(value, bool) and found & {int, float} and bool not in found
        wrong_text = isinstance(value, str) and found <= {int, float, bool, type(None)}
        if wrong_truth or wrong_text:
            yield place, Problem(wrong_type(annotation, value)[0], source.where(place), wrong_type(annotation, value)[1])


def _raw_leaves(annotation: Any, value: Any, place: Place) -> Iterator[tuple[Place, Any, Any]]:
    """(place, type, value) of every raw scalar whose type is known."""
    if not isinstance(value, dict | list):
        yield place, annotation, value
    for key, item in _inside(value).items():
        inner = inner_type(annotation, value, key)
        if inner is not None:
            yield from _raw_leaves(inner, item, (*place, key))


def _inside(value: Any) -> Mapping[Key, Any]:
    """What is inside a raw mapping or list, by key or index."""
    if isinstance(value, dict):
        return value
    return dict(enumerate(value)) if isinstance(value, list) else {}
