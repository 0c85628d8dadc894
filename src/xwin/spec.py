"""Spec: frozen, typed settings. Kind: a Spec that is chosen by the name of a file.

The folder is the registry: `objective: {kind: ppo}` is the one Kind defined in `xwin/objectives/ppo.py`. Adding a kind is adding a file;
only the file that is named is imported.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import pkgutil
from typing import Any, ClassVar, Self, TypeVar

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

K = TypeVar("K", bound="Kind")


class Spec(BaseModel):
    """Frozen settings. Unknown keys are errors; every field is documented by the string below it."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, arbitrary_types_allowed=True)

    revision: ClassVar[int] = 0
    """Raised whenever results change for the same settings; part of a stage's fingerprint."""

    def settings(self) -> dict[str, Any]:
        """The settings as plain JSON values, nulls kept."""
        return self.model_dump(mode="json")


class Kind(Spec):
    """A Spec chosen by file name inside `package`.

    A family's root class sets `package` (`class Objective(Kind): package = "xwin.objectives"`); each file of that folder defines one
    subclass. Stateless: frozen, no `__init__`; what has state is built from a Kind, and is not one.
    """

    package: ClassVar[str]

    @property
    def kind(self) -> str:
        """The name of the file that defines this kind."""
        return type(self).__module__.rpartition(".")[2]

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        if "package" not in cls.__dict__:
            return handler(source)
        dump = core_schema.plain_serializer_function_ser_schema(lambda value: {"kind": value.kind} | value.settings())
        return core_schema.no_info_plain_validator_function(cls.choose, serialization=dump)

    @classmethod
    def choose(cls, value: Any) -> Self:
        """The kind that `value` asks for.

        Args:
            value: a kind of this family, its name, or a mapping with the key "kind".

        Raises:
            PydanticCustomError: no kind is named, or there is no such kind.
            pydantic.ValidationError: its settings are wrong.
        """
        if isinstance(value, cls):
            return value
        fields: dict[str, Any] = {"kind": value} if isinstance(value, str) else dict(value) if isinstance(value, dict) else {}  # pyright: ignore[reportUnknownArgumentType]
        if not isinstance(fields.get("kind"), str):
            raise PydanticCustomError("kind_missing", "needs a kind: one of {names}", {"names": ", ".join(names(cls.package))})
        if fields["kind"] not in names(cls.package):
            context = {"kind": fields["kind"], "near": nearest(fields["kind"], names(cls.package))}
            raise PydanticCustomError("kind_unknown", "unknown kind '{kind}'", context)
        return lookup(cls, fields["kind"]).model_validate({key: item for key, item in fields.items() if key != "kind"})


def names(package: str) -> list[str]:
    """The kinds of a family: its files but `base` and those that start with an underscore. Imports none of them."""
    spec = importlib.util.find_spec(package)
    paths = spec.submodule_search_locations if spec else None
    return sorted(m.name for m in pkgutil.iter_modules(paths) if m.name != "base" and not m.name.startswith("_"))


def lookup(family: type[K], name: str) -> type[K]:
    """The class that the file `name` of the family defines.

    Raises:
        LookupError: the file does not define exactly one kind of this family; a mistake of ours, not of a recipe.
    """
    module = importlib.import_module(f"{family.package}.{name}")
    found = [v for v in vars(module).values() if isinstance(v, type) and issubclass(v, family) and v.__module__ == module.__name__]
    if len(found) != 1:
        raise LookupError(f"{module.__name__} defines {len(found)} kinds of {family.__name__}; it must define one")
    return found[0]


def nearest(name: str, known: list[str]) -> str:
    """The known name most like `name`, or every known name when none is alike; for "did you mean"."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else f"one of: {', '.join(known)}"
