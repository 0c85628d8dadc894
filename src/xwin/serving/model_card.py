"""The card of an exported model: base, data with licences, how it was made, what was measured, and what is not known. Reads the run's files only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xwin.data.template import VICUNA_SYSTEM
from xwin.errors import UserError
from xwin.run.cards import DataCard, PromptCard, RewardCard
from xwin.run.directory import RunDirectory, StageRecord, read_object
from xwin.run.facts import Cell, RunFacts, StageFacts, cell_text, is_share, read_run
from xwin.run.secrets import hidden
from xwin.run.storage import digest_file

UNKNOWN = "not stated"
SHOWN = 16
"""Digits of a digest that are shown."""


@dataclass(frozen=True)
class Lineage:
    """A stage of a run and all that it was made of."""

    run: RunDirectory
    facts: RunFacts
    stage: str
    output: str
    records: Mapping[str, StageRecord]
    """Stage -> its manifest, of this stage and every one it needs, in the order of the run."""
    models: Mapping[str, Mapping[str, Any]]
    """Name -> the recipe's entry, of every model that one of them needs."""

    @classmethod
    def of(cls, run: Path, stage: str, output: str) -> Lineage:
        """Reads what lies on disk.

        Raises:
            UserError: the path is no run.
            CheckpointError: a manifest cannot be read.
        """
        directory, facts = RunDirectory(run), read_run(run)
        resolved = read_object(run / "recipe.resolved.json")
        found: dict[str, StageRecord] = {}
        left = [stage]
        while left:
            name = left.pop()
            record = directory.stage(name, {}).record() if name not in found else None
            if record is not None:
                found[name] = record
                left += [ref.partition("/")[0] for ref in record.inputs]
        order = [each.name for each in facts.stages]
        records = {name: found[name] for name in sorted(found, key=lambda name: order.index(name) if name in order else len(order))}
        needed = {ref for record in records.values() for ref in record.inputs}
        models = {name: entry for name, entry in resolved.get("models", {}).items() if name in needed}
        return cls(directory, facts, stage, output, records, models)

    @property
    def template(self) -> str:
        """The chat template that the model was taught; "" where the run does not say."""
        return self.run.template(self.stage)

    def start(self) -> str:
        """What the stage's training started from, for an adapter: the name of a published model, or ""."""
        init = str(self.records[self.stage].settings.get("init", ""))
        path = str(self.models.get(init, {}).get("path", ""))
        return path.removeprefix("hf:").partition("@")[0] if path.startswith("hf:") else ""

    def data(self) -> dict[str, str]:
        """What was read that no stage made and that is no model: reference as written -> digest."""
        known = self.records.keys() | self.models.keys()
        inputs = {ref: digest for record in self.records.values() for ref, digest in record.inputs.items()}
        return {ref: digest for ref, digest in sorted(inputs.items()) if ref.partition("/")[0] not in known and ref not in known}

    def measured(self) -> list[Cell]:
        """Every number about this model that an evaluate stage of the run has."""
        cells = []
        for stage in self.facts.stages:
            record = self.run.stage(stage.name, {}).record() if stage.table else None
            contenders = record.settings.get("contenders", ()) if record is not None else ()
            names = {row["name"] for row in contenders if row.get("model") in (self.stage, f"{self.stage}/{self.output}")}
            cells += [cell for cell in stage.table if cell.model in names]
        return cells


def model_card(line: Lineage, *, licence: str, licences: Mapping[str, str], adapter: bool = False) -> str:
    """The text of README.md, with the front matter that the Hugging Face hub reads.

    Args:
        line: of the model.
        licence: of the exported model; "" = not stated.
        licences: data as the run names it -> its licence.
        adapter: whether the folder holds an adapter alone.

    Raises:
        UserError: a licence is of data that the model was not made of.
    """
    strange = licences.keys() - line.data().keys()
    if strange:
        known = ", ".join(line.data()) or "no file"
        raise UserError(f"the model was not made of '{min(strange)}'", "--data-licence", f"it was made of: {known}")
    name = f"{line.facts.recipe or line.run.path.name} {line.stage}"
    kinds = [record.kind for record in line.records.values()]
    parts = [
        _front(line, licence, kinds, adapter=adapter),
        f"# {name}\n\nMade with Xwin-LM: {' -> '.join(f'{n} ({r.kind})' for n, r in line.records.items())}.",
        _use(line, adapter=adapter),
        _bases(line, licence),
        _data(line, licences),
        _making(line),
        _numbers(line.measured()),
        _limits(line),
    ]
    return hidden("\n\n".join(parts)) + "\n"


def _front(line: Lineage, licence: str, kinds: Sequence[str], *, adapter: bool) -> str:
    base = next((str(entry["path"])[3:].partition("@")[0] for entry in line.models.values() if str(entry.get("path")).startswith("hf:")), "")
    fields = [f"license: {licence or 'other'}", *([f"base_model: {base}"] if base else []), f"library_name: {'peft' if adapter else 'transformers'}"]
    tags = "".join(f"\n  - {tag}" for tag in ["xwin-lm", *dict.fromkeys(kinds)])
    return "\n".join(["---", *fields, f"pipeline_tag: text-generation\ntags:{tags}", "---"])


def _use(line: Lineage, *, adapter: bool) -> str:
    if adapter:
        return (
            f"This folder is a LoRA adapter (`peft.PeftModel.from_pretrained(base, folder)`) over the model that stage `{line.stage}` started from."
        )
    if line.template != "vicuna":
        return f"The tokenizer brings its chat template ({line.template or 'its own'}): `tokenizer.apply_chat_template`."
    return f"The prompt is Vicuna's, also as the tokenizer's chat template:\n\n```\n{VICUNA_SYSTEM} USER: Hello! ASSISTANT:\n```"


def _bases(line: Lineage, licence: str) -> str:
    rows = [f"| {name} | {entry.get('path')} | {str(entry.get('sha256') or '-')[:SHOWN]} |" for name, entry in line.models.items()]
    said = f"Licence of this model: {licence or UNKNOWN}. The licence of the base model applies too."
    return "\n".join(["## Base", "", "| name | model | sha256 |", "|---|---|---|", *rows, "", said])


def _data(line: Lineage, licences: Mapping[str, str]) -> str:
    rows = [f"| {ref} | {digest[:SHOWN]} | {licences.get(ref, UNKNOWN)} |" for ref, digest in line.data().items()]
    made = [_made(stage) for stage in line.facts.stages if stage.name in line.records and stage.card is not None]
    table = ["| data | digest | licence |", "|---|---|---|", *rows] if rows else ["No data of others was read."]
    return "\n".join(["## Data", "", *table, *(["", *made] if any(made) else [])])


def _made(stage: StageFacts) -> str:
    """A line about what a data stage read or wrote."""
    card = stage.card
    if isinstance(card, DataCard):
        read = "; ".join(f"{o.name} ({o.format}, {o.rows:,} rows, sha256 {o.sha256[:SHOWN]})" for o in card.origins)
        dropped = sum(card.dropped.values())
        return f"- `{stage.name}`: {read}; {sum(card.splits.values()):,} rows kept, {dropped:,} left out"
    if isinstance(card, PromptCard):
        return f"- `{stage.name}`: {sum(split.rows for split in card.splits):,} prompts written by a program, not by people"
    return ""


def _making(line: Lineage) -> str:
    rows = [f"| {n} | {r.kind} | {r.settings.get('init') or ''} | {r.seconds or 0:,.0f} |" for n, r in line.records.items()]
    manifest = line.facts.manifest
    recipe = line.run.path / "recipe.resolved.json"
    versions = ", ".join(f"{name} {number}" for name, number in (manifest.get("versions") or {}).items())
    git = manifest.get("git") or {}
    commit = f" at commit {str(git.get('commit'))[:12]}{' with changes' if git.get('dirty') else ''}" if git else ""
    digest = digest_file(recipe)[:SHOWN] if recipe.is_file() else UNKNOWN
    said = f"Recipe `{line.facts.recipe}`, seed {line.facts.seed}, sha256 of the resolved recipe {digest}{commit}. {versions}."
    return "\n".join(["## How it was made", "", said, "", "| stage | kind | from | seconds |", "|---|---|---|---:|", *rows])


def _numbers(cells: Sequence[Cell]) -> str:
    if not cells:
        return "## Measured\n\nNothing: no evaluate stage of the recipe asks this model."
    rows = [f"| {c.metric} | {cell_text(c)}{' %' if is_share(c.metric) else ''} | {c.n:,} | {c.note} |" for c in cells]
    return "\n".join(["## Measured", "", "95 % intervals in brackets.", "", "| metric | value | n | how |", "|---|---|---:|---|", *rows])


def _limits(line: Lineage) -> str:
    """What can be said of any model, and what this run knows against this one."""
    said = [
        "What the table above lacks was not measured: no tests of safety, bias, facts or long conversations, nor of languages that the data lacks.",
        "The limits of the base model are limits of this one.",
    ]
    for stage in line.facts.stages:
        if stage.name not in line.records:
            continue
        if stage.alarms:
            said.append(f"Guards went off {len(stage.alarms)} times in stage `{stage.name}`.")
        if isinstance(stage.card, DataCard | RewardCard | PromptCard):
            said += [f"`{stage.name}`: {note}" for note in stage.card.notes]
    small = [cell for cell in line.measured() if cell.n < 100]  # noqa: PLR2004 - few
    if small:
        said.append(f"{len(small)} of the numbers above are of fewer than 100 questions.")
    return "\n".join(["## Limits", "", *(f"- {text}" for text in said)])
