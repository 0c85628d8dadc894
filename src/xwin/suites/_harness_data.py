"""Rows of the foundation tasks from a folder here, in the shape in which lm-eval's task files expect them from the hub."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xwin.errors import DataError
from xwin.suites._records import Record, records

Row = dict[str, Any]
ENDINGS = (".jsonl.gz", ".jsonl", ".json.gz", ".json")
FRAGMENT = re.compile(r"(?:^|(?<=[.!?]))\s*([a-z][^.!?]*)$")
"""What stands behind the last sentence and begins with a small letter: the words that HellaSwag's endings continue."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What is evaluated."""

    tasks: Sequence[str]
    folder: Path | None = None
    """Where the rows lie; None = they are taken from the hub."""
    limit: int | None = None
    """Rows of each task, of MMLU of each subject, the first ones; None = all."""
    chat: bool = False
    """Whether prompts are written in the chat template of the tokenizer."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The files of one task: split -> names without ending, the first that is there. A split in `optional` may be missing."""

    splits: Mapping[str, Sequence[str]]
    row: Callable[[Record], Row]
    optional: frozenset[str] = frozenset()


def read_split(folder: Path, layout: Layout, split: str) -> list[Row] | None:
    """The rows of a split; None where it is optional and not there.

    Raises:
        DataError: no such file, or a row that lacks something; names file and row.
    """
    tried = [folder / f"{name}{ending}" for name in layout.splits[split] for ending in ENDINGS]
    path = next((path for path in tried if path.is_file()), None)
    if path is not None:
        return [layout.row(record) for record in records(path)]
    if split in layout.optional:
        return None
    raise DataError(f"there is no {layout.splits[split][0]}.jsonl or .jsonl.gz", str(folder), "see the layout in docs/evaluation.md")


def _text(record: Record, name: str) -> str:
    found = record.text(name)
    if found is None:
        raise DataError(f"has no {name}", record.where)
    return found


def _texts(value: Any, name: str, record: Record) -> list[str]:
    if not isinstance(value, list) or not value or not all(isinstance(each, str) for each in value):
        raise DataError(f"{name} must be a list of texts, not {value!r}", record.where)
    return value


def _place(value: Any, count: int, name: str, record: Record) -> int:
    """A whole number below `count`, which may be written as text."""
    found = int(value) if isinstance(value, str) and value.isdecimal() else value
    if isinstance(found, bool) or not isinstance(found, int) or not 0 <= found < count:
        raise DataError(f"{name} must be a whole number below {count}, not {value!r}", record.where)
    return found


def _mmlu(record: Record) -> Row:
    choices = _texts(record.fields.get("choices"), "choices", record)
    if len(choices) != 4:
        raise DataError(f"has {len(choices)} choices, not 4", record.where)
    answer = _place(record.fields.get("answer"), 4, "answer", record)
    return {"question": _text(record, "question"), "subject": _text(record, "subject"), "choices": choices, "answer": answer}


def _arc(record: Record) -> Row:
    choices = record.fields.get("choices")
    if not isinstance(choices, dict):
        raise DataError("choices must hold text and label", record.where)
    texts, labels = (_texts(choices.get(name), f"choices.{name}", record) for name in ("text", "label"))
    key = _text(record, "answerKey")
    if len(texts) != len(labels) or key not in labels:
        raise DataError(f"answerKey {key!r} is not one of its labels, or labels and texts differ in number", record.where)
    return {"question": _text(record, "question"), "choices": {"text": texts, "label": labels}, "answerKey": key}


def _hellaswag(record: Record) -> Row:
    """The hub's own rows, or rows whose question is one text: query, choices, gold."""
    endings = record.fields.get("endings", record.fields.get("choices"))
    label = record.fields.get("label", record.fields.get("gold"))
    place = _place(label, len(_texts(endings, "endings", record)), "label", record)
    if record.text("ctx_a") is not None:
        parts = {name: _text(record, name) for name in ("activity_label", "ctx_a", "ctx_b")}
    else:
        activity, _, context = _text(record, "query").partition(": ")
        fragment = FRAGMENT.search(context)
        parts = {"activity_label": activity, "ctx_a": context[: fragment.start()] if fragment else context, "ctx_b": fragment[1] if fragment else ""}
    return {**parts, "endings": endings, "label": str(place)}


def _truthfulqa(record: Record) -> Row:
    row: Row = {"question": _text(record, "question")}
    for name in ("mc1_targets", "mc2_targets"):
        targets = record.fields.get(name)
        if not isinstance(targets, dict):
            raise DataError(f"{name} must hold choices and labels", record.where)
        choices, labels = _texts(targets.get("choices"), f"{name}.choices", record), targets.get("labels")
        if not isinstance(labels, list) or len(labels) != len(choices) or not {0, 1} >= set(labels):
            raise DataError(f"{name}.labels must be 0 or 1 for each choice", record.where)
        row[name] = {"choices": choices, "labels": labels}
    return row


def _gsm8k(record: Record) -> Row:
    return {name: _text(record, name) for name in ("question", "answer")}


def _ifeval(record: Record) -> Row:
    names, kwargs = _texts(record.fields.get("instruction_id_list"), "instruction_id_list", record), record.fields.get("kwargs")
    if not isinstance(kwargs, list) or len(kwargs) != len(names) or not all(isinstance(each, dict) for each in kwargs):
        raise DataError("kwargs must hold an object for each instruction", record.where)
    return {"key": record.whole("key") or 0, "prompt": _text(record, "prompt"), "instruction_id_list": names, "kwargs": kwargs}


LAYOUTS: Mapping[str, Layout] = {
    "mmlu": Layout({"dev": ["mmlu/dev"], "test": ["mmlu/test"]}, _mmlu),
    "arc_challenge": Layout({"train": ["arc/challenge_train"], "test": ["arc/challenge_test"]}, _arc),
    "hellaswag": Layout(
        {"train": ["hellaswag/train"], "validation": ["hellaswag/val", "hellaswag/val_text"]}, _hellaswag, optional=frozenset({"train"})
    ),
    "truthfulqa_mc2": Layout({"validation": ["truthfulqa/mc", "truthfulqa/mc_v0"]}, _truthfulqa),
    "gsm8k": Layout({"train": ["gsm8k/train"], "test": ["gsm8k/test"]}, _gsm8k),
    "ifeval": Layout({"train": ["ifeval/input_data"]}, _ifeval),
}
"""Task -> where its rows lie in the folder."""
