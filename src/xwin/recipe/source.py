"""Reading a recipe file: plain values, and the line each one stands on. No meaning yet.

PyYAML alone reads `1e-5` as text, `on` as true, and keeps the last of two equal keys; this loader does not.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from xwin.errors import Problem, RecipeError, UserError

Key: TypeAlias = str | int
Place: TypeAlias = tuple[Key, ...]
"""Where a value is: ("stages", "ppo", "objective", "clip"); list items by index."""

WORDS: Mapping[str, Any] = {"": None, "~": None, "null": None, "true": True, "false": False}
INTEGER = re.compile(r"[-+]?[0-9]+")
NUMBER = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
INFINITE = re.compile(r"([-+]?)\.inf|\.nan")
TAGS = frozenset("tag:yaml.org,2002:" + name for name in ("str", "int", "float", "bool", "null", "timestamp", "merge", "value", "seq", "map"))
"""What PyYAML gives to values without an explicit tag."""


@dataclass(frozen=True)
class Source:
    """A recipe as written."""

    path: Path
    text: str
    data: dict[str, Any]
    marks: Mapping[Place, str] = field(default_factory=dict)
    """Place -> where it was written: "tiny.yaml:9" or "--set ppo.objective.clip=0.1"."""

    @property
    def folder(self) -> Path:
        """What `./x` in the recipe is relative to."""
        return self.path.parent

    @property
    def data_folder(self) -> Path:
        """What `./x` is relative to where data are meant: the recipe's `data`, which `--set` gives as seen from the working directory."""
        named = self.data.get("data")
        given = self.marks.get(("data",), "").startswith("--set")
        return (Path() if given else self.folder) / (named if isinstance(named, str) else "")

    @property
    def sha256(self) -> str:
        """Digest of the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    def where(self, place: Place) -> str:
        """The line and the dotted name.  Example: "tiny.yaml:9 stages.ppo.objective.clipp"; a key that is missing gets its parent's line."""
        for length in range(len(place), -1, -1):
            mark = self.marks.get(place[:length])
            if mark is not None:
                return mark if mark.startswith("--set") else f"{mark} {dotted(place)}".rstrip()
        return f"{self.path.name} {dotted(place)}".rstrip()


def dotted(place: Place) -> str:
    """Example: ("stages", "sft", "data", 0) is "stages.sft.data.0"."""
    return ".".join(str(key) for key in place)


def read_source(path: Path) -> Source:
    """Reads a recipe file.

    Raises:
        UserError: it is missing or not text.
        RecipeError: it is not YAML, not a mapping, or holds one key twice.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError("no such recipe", str(path), "`xwin init --data FILE --model M` writes one") from None
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", str(path)) from None
    except UnicodeDecodeError:
        raise UserError("is not UTF-8 text", str(path)) from None
    reader = _Reader(path.name)
    data = reader.read(text)
    if not reader.problems and not isinstance(data, dict):
        reader.problems.append(Problem("a recipe is a mapping with the keys name, seed, models and stages", f"{path.name}:1"))
    if reader.problems:
        raise RecipeError(reader.problems)
    return Source(path, text, data, reader.marks)


def read_value(text: str, where: str) -> Any:
    """The value of `--set key=text`, read as YAML: 1e-5 is a number, [a, b] a list.

    Raises:
        RecipeError: it is not YAML; names `where`.
    """
    reader = _Reader(where, lines=False)
    value = reader.read(text)
    if reader.problems:
        raise RecipeError(reader.problems)
    return value


class _Reader:
    """Turns YAML nodes into values, noting the line of each and every mistake."""

    def __init__(self, name: str, *, lines: bool = True) -> None:
        self.name, self.lines = name, lines
        self.marks: dict[Place, str] = {}
        self.problems: list[Problem] = []
        self.open: set[int] = set()

    def read(self, text: str) -> Any:
        """The value of the only document in `text`; None when there is none."""
        try:
            node = yaml.compose(text, Loader=yaml.SafeLoader)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            what = ", ".join(part for part in (error.context, error.problem) if part)
            fix = "indent with spaces, not tabs" if "'\\t'" in what else "check the indentation, the quotes and the brackets on this line and above"
            self.problems.append(Problem(f"not YAML: {what}", self._line(mark.line if mark else 0), fix))
            return None
        except yaml.YAMLError as error:
            self.problems.append(Problem(f"not YAML: {error}", self._line(0)))
            return None
        return self._value(node, ()) if node is not None else None

    def _line(self, line: int) -> str:
        return f"{self.name}:{line + 1}" if self.lines else self.name

    def _value(self, node: yaml.Node, place: Place) -> Any:
        self.marks.setdefault(place, self._line(node.start_mark.line))
        if node.tag not in TAGS or id(node) in self.open:
            what = "a value cannot contain itself" if id(node) in self.open else f"the tag {node.tag} is not supported"
            self.problems.append(Problem(what, self._line(node.start_mark.line)))
            return None
        if isinstance(node, yaml.ScalarNode):
            return _scalar(node)
        self.open.add(id(node))
        value = self._mapping(node, place) if isinstance(node, yaml.MappingNode) else self._sequence(node, place)
        self.open.discard(id(node))
        return value

    def _sequence(self, node: yaml.Node, place: Place) -> list[Any]:
        return [self._value(item, (*place, index)) for index, item in enumerate(node.value)]

    def _mapping(self, node: yaml.MappingNode, place: Place) -> dict[str, Any]:
        found: dict[str, Any] = {}
        first: dict[str, int] = {}
        for key, item in node.value:
            where = self._line(key.start_mark.line)
            if not isinstance(key, yaml.ScalarNode):
                self.problems.append(Problem("a key must be a plain word", where))
                continue
            here = (*place, key.value)
            if key.value in found:
                what = f"is given twice, first on line {first[key.value] + 1}" if self.lines else "is given twice"
                self.problems.append(Problem(what, f"{where} {dotted(here)}", "remove one of them"))
                continue
            self.marks[here] = where
            first[key.value] = key.start_mark.line
            found[key.value] = self._value(item, here)
        return found


def _scalar(node: yaml.ScalarNode) -> Any:
    """Plain words as in YAML 1.2: null, true, false and numbers; everything else, and everything quoted, is text."""
    text: str = node.value
    if node.style is not None:
        return text
    if text.lower() in WORDS:
        return WORDS[text.lower()]
    if INTEGER.fullmatch(text):
        return int(text)
    if NUMBER.fullmatch(text):
        return float(text)
    if INFINITE.fullmatch(text):
        return float(text.replace(".", ""))
    return text
