"""How much data the references of a recipe hold: counted on a sample of the rows that exist, bounded where a stage will make them."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xwin.errors import ModelError, XwinError
from xwin.models.hub import cache_folder, kept
from xwin.recipe._data_files import HUB
from xwin.recipe.plan import Plan, PlannedStage, root_of
from xwin.run.artifacts import Preferences
from xwin.stages._inputs import Resolved
from xwin.stages._work import Amount

if TYPE_CHECKING:
    from xwin.data.template import Template

SAMPLED = 256
"""Rows that are read of a source, spread over it evenly."""

CHARS = 4.0
"""Characters of a token, about, where the tokenizer is not on this machine."""

MARKUP = 48.0
"""Tokens of a template and its system message, about, in the same case."""


@dataclass(frozen=True, slots=True)
class _Reader:
    """How rows become tokens."""

    folder: Path | None
    """Of the tokenizer; None = tokens are guessed from characters."""
    template: str
    longest: float


@dataclass
class Amounts:
    """Answers for one plan; each source is read once."""

    plan: Plan
    _found: dict[tuple[str, _Reader], Amount | None] = field(default_factory=dict)

    def of(self, stage: PlannedStage, ref: str, network: str, longest: float = inf) -> Amount | None:
        """How much a stage finds under a reference, in tokens of a network's tokenizer; None when it cannot be said.

        Args:
            stage: who reads it.
            ref: data, as the stage names them.
            network: a reference of the same stage.
            longest: tokens of a row; longer ones are not counted.
        """
        root = root_of(self.plan, stage, network)
        folder = kept(root, self.plan.read.source.folder) if root else None
        taught = getattr(stage.spec, "template", "model")
        template = stage.inputs[network].template if taught == "model" else taught
        return self._of(stage.inputs[ref], _Reader(folder, template, longest))

    def _of(self, resolved: Resolved, reader: _Reader) -> Amount | None:
        key = (resolved.ref, reader)
        if key not in self._found:
            self._found[key] = self._count(resolved, reader)
        return self._found[key]

    def _count(self, resolved: Resolved, reader: _Reader) -> Amount | None:
        name, _, output = resolved.ref.partition("/")
        maker = next((stage for stage in self.plan.stages if stage.name == name), None)
        path = resolved.path
        if maker is not None and maker.status == "skip" and maker.directory.record() is not None:
            path = maker.directory.out(output or next(iter(maker.directory.files)))
        if path is not None and (maker is None or path.exists()):
            return sampled(path, reader, pairs=issubclass(resolved.artifact, Preferences))
        if maker is None:
            return None
        inner = partial(self._inner, maker, reader)
        return maker.spec.gives(output or next(iter(maker.spec.makes)), inner)

    def _inner(self, maker: PlannedStage, reader: _Reader, ref: str) -> Amount | None:
        return self._of(maker.inputs[ref], reader) if ref in maker.inputs else None


def sampled(path: Path, reader: _Reader, *, pairs: bool) -> Amount | None:
    """What a file holds, by a sample of its rows; None when they cannot be read.

    Args:
        path: of the data.
        reader: how rows become tokens.
        pairs: whether its rows are preferences.
    """
    try:
        count, items = _some(path)
        template = _template(reader)
        sizes = [_sizes(item, template) for item in items]
    except (XwinError, OSError):  # what is wrong with the data is said when they are read, in full
        return None
    short = [size for size in sizes if sum(size) <= reader.longest]
    if not short:
        return None
    prompt, answer = (sum(column) / len(short) for column in zip(*short, strict=True))
    return Amount(count * len(short) / len(sizes), prompt, answer, 2 if pairs else 1, max(size[0] for size in short))


def _some(path: Path) -> tuple[int, list[Any]]:
    """How many rows there are, and what some of them say."""
    from xwin.data.files import named_tables
    from xwin.data.sources import find_format

    if str(path).startswith(HUB):  # a plan fetches nothing
        return 0, []
    tables = named_tables(str(path), cache=cache_folder() / "data")
    items: list[Any] = []
    for table in tables:
        shape = find_format(table, None, None).detected.format
        for place in range(0, len(table), max(1, len(table) * len(tables) // SAMPLED)):
            row = table[place]
            items += shape.convert(row.value).items if row.flaw is None else ()
    return sum(len(table) for table in tables), items


def _template(reader: _Reader) -> Template | None:
    """None where there is no tokenizer that could write it."""
    from xwin.data.template import load_template

    try:
        return load_template(reader.folder, reader.template) if reader.folder is not None else None
    except ModelError:
        return None


def _sizes(item: Any, template: Template | None) -> tuple[float, float]:
    """Tokens of the prompt, and of the answers together."""
    if template is None:
        answers = [item.chosen, item.rejected] if hasattr(item, "chosen") else [m for m in item.messages if m.role == "assistant"]
        prompt = item.prompt if hasattr(item, "chosen") else [m for m in item.messages if m.role != "assistant"]
        return MARKUP + sum(len(m.text) for m in prompt) / CHARS, sum(len(m.text) / CHARS + 1 for m in answers)
    from xwin.data.template import as_trained

    found = list(as_trained(template, item).values())
    first = found[0]
    return len(first.tokens) - sum(first.mask), float(sum(sum(side.mask) for side in found))
