"""Judged pairs as AlpacaEval keeps them: what a judge said of a model's output (output_2) against a reference's (output_1), per instruction."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from xwin.errors import DataError
from xwin.suites._records import Record, records

TIE = 1.5
SHOWN = 3
"""Of a difference, as examples."""


@dataclass(frozen=True, slots=True)
class Reference:
    """Which text a model was judged against; the length alone where a file holds no texts."""

    chars: int
    """Code points."""
    digest: str | None = None
    """Of the text."""

    def differs(self, other: Reference) -> bool:
        """Whether these are surely two texts."""
        return self.chars != other.chars or (self.digest is not None and other.digest is not None and self.digest != other.digest)

    @classmethod
    def of(cls, text: str) -> Reference:
        """The identity of a text."""
        return cls(len(text), hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16])


@dataclass(frozen=True, slots=True)
class Label:
    """What a judge said about one instruction.  Example: Label(17, 2.0, 1040, Reference(264), "labels.jsonl:18")"""

    key: str | int
    """The instruction: its number where that is known, else its text."""
    preference: float | None
    """In [1, 2]: 1 = the reference is better, 2 = the model is, 1.5 = equal; None = the judge's answer could not be had."""
    chars: int | None
    """Length of the model's output, code points."""
    reference: Reference | None
    where: str
    """`file:row`"""

    @property
    def credit(self) -> float | None:
        """The model's share of this pair: 0 lost, 0.5 equal, 1 won; None as in `preference`."""
        return None if self.preference is None else self.preference - 1


@dataclass(frozen=True, slots=True)
class Labels:
    """All labels of one model by one judge, in the order of the file; no instruction twice."""

    model: str
    source: str
    """The file."""
    rows: tuple[Label, ...]

    def by_key(self) -> dict[str | int, Label]:
        """Instruction -> label."""
        return {row.key: row for row in self.rows}


def read_labels(path: Path, numbers: Mapping[str, int] | None = None) -> list[Labels]:
    """The labels of every model of a file.

    Reads alpaca_eval's `annotations.json` (instruction, output_1, output_2, generator_2, preference) and label files (.jsonl, .jsonl.gz: model,
    idx or instruction, preference, len_1 and len_2 in code points, or output_1 and output_2). A preference of 0 is how old files write equal.
    Where a file holds several judges, the judge's name follows the model's in brackets. The `samples.jsonl` of an evaluate stage is read too: an
    answer that the gold scorer accepts has the preference 2, another 1.

    Args:
        path: the file.
        numbers: instruction text -> its number, so that files that name instructions by text and by number can be compared.

    Raises:
        DataError: a preference outside [1, 2] or NaN, a row without an instruction, an instruction twice; names file and row.
    """
    found: dict[tuple[str, str], list[Label]] = {}
    for record in records(path):
        if "answers" in record.fields:
            for model, label in _passed(record):
                found.setdefault((model, ""), []).append(label)
            continue
        model = record.text("model") or record.text("generator_2") or path.name.split(".")[0]
        judge = record.text("annotator") or ""
        found.setdefault((model, judge), []).append(_label(record, numbers or {}))
    judges = {judge for _, judge in found}
    several = len(judges) > 1
    sets = [Labels(f"{model} [{judge}]" if several else model, str(path), tuple(rows)) for (model, judge), rows in found.items()]
    for labels in sets:
        _refuse_duplicates(labels)
    return sets


def same_instructions(first: Labels, second: Labels) -> None:
    """Refuses two sets of labels of different instructions.

    Raises:
        DataError: how many instructions only one of the two has, and which.
    """
    ours, theirs = first.by_key(), second.by_key()
    only = {name: [key for key in mine if key not in other] for name, mine, other in ((_name(first), ours, theirs), (_name(second), theirs, ours))}
    if any(only.values()):
        said = "; ".join(f"{len(keys)} only in {name} ({_examples(keys)})" for name, keys in only.items() if keys)
        mixed = {type(key) for key in (*ours, *theirs)} == {int, str}
        fix = "one file names instructions by number, the other by text: --tables says which is which" if mixed else "judge both on the same ones"
        raise DataError(f"different instructions: {said}", f"{_name(first)} and {_name(second)}", fix)


def same_reference(first: Labels, second: Labels) -> None:
    """Refuses two sets of labels that were judged against different references: their win rates do not compare.

    Raises:
        DataError: on how many shared instructions they differ, and the first of them.
    """
    differing = reference_differences(first, second)
    if differing:
        shared = sum(row.key in second.by_key() for row in first.rows)
        what = f"judged against different references: {len(differing)} of {shared} reference outputs differ, first at {differing[0].where}"
        raise DataError(what, f"{_name(first)} and {_name(second)}", "judge both against the same reference outputs")


def reference_differences(first: Labels, second: Labels) -> list[Label]:
    """The rows of `first` whose reference output is surely another than in `second`."""
    theirs = {row.key: row.reference for row in second.rows}
    return [row for row in first.rows if row.reference and (other := theirs.get(row.key)) and row.reference.differs(other)]


def reference_set(labels: Labels, known: Mapping[str, Mapping[str | int, Reference]]) -> str | None:
    """Which of the known sets of reference outputs a model was judged against; None where it is none of them, or nothing is known.

    Args:
        labels: of one model.
        known: name of a set -> instruction -> its output.
    """
    judged = [row for row in labels.rows if row.reference]
    matches = (name for name, outputs in known.items() if all(row.key in outputs and not _differs(row, outputs) for row in judged))
    return next(matches, None) if judged else None


def require_reference(labels: Labels, name: str, known: Mapping[str, Mapping[str | int, Reference]]) -> None:
    """Refuses labels that were judged against other reference outputs than those of the set `name`.

    Raises:
        DataError: on how many rows they differ, the first of them, and which set it is instead; or `name` is no known set.
    """
    if name not in known:
        raise DataError(f"'{name}' is no known set of reference outputs", "--reference", f"one of: {', '.join(known)}")
    foreign = [row for row in labels.rows if row.reference is None or row.key not in known[name] or _differs(row, known[name])]
    if foreign:
        found = reference_set(labels, known)
        what = f"{labels.model} was not judged against {name}: {len(foreign)} of {len(labels.rows)} reference outputs are others or not given"
        raise DataError(what, foreign[0].where, f"they are those of {found}" if found else "judge against those outputs, or leave --reference out")


def common(first: Labels, second: Labels) -> tuple[Labels, Labels]:
    """Both sets cut to the instructions that both have, each in its own order."""
    shared = first.by_key().keys() & second.by_key().keys()
    left, right = (replace(labels, rows=tuple(row for row in labels.rows if row.key in shared)) for labels in (first, second))
    return left, right


def credits_of_both(first: Labels, second: Labels) -> tuple[list[float], list[float]]:
    """The credits of the instructions on which both have one, in the same order.

    Raises:
        DataError: there are none.
    """
    theirs = {row.key: row.credit for row in second.rows}
    pairs = [(row.credit, other) for row in first.rows if row.credit is not None and (other := theirs.get(row.key)) is not None]
    if not pairs:
        raise DataError("no instruction has a label of both", f"{_name(first)} and {_name(second)}")
    return [mine for mine, _ in pairs], [other for _, other in pairs]


def pick(sets: Sequence[Labels], model: str, where: str) -> Labels:
    """The labels of one model.

    Args:
        sets: what a file holds.
        model: its name; "" for the only one.
        where: the file, for the message.

    Raises:
        DataError: there is no such model, or no name is given and there are several.
    """
    if not model and len(sets) == 1:
        return sets[0]
    for labels in sets:
        if labels.model == model:
            return labels
    known = _examples([labels.model for labels in sets])
    if model:
        raise DataError(f"holds no model '{model}'", where, f"one of its {len(sets)}: {known}")
    raise DataError(f"holds {len(sets)} models", where, f"name one as {where}:MODEL, where MODEL is one of: {known}")


def _label(record: Record, numbers: Mapping[str, int]) -> Label:
    text = record.text("instruction")
    index = record.whole("idx")
    if not text and index is None:
        raise DataError("has neither an instruction nor an idx", record.where, "every row must say which instruction was judged")
    key = numbers.get(text) if text else index
    return Label(text or "" if key is None else key, _preference(record), _chars(record, "output_2", "len_2"), _reference(record), record.where)


def _passed(record: Record) -> list[tuple[str, Label]]:
    """The models of a row of samples, and whether each passed."""
    prompt, answers = record.text("prompt"), record.fields["answers"]
    if not prompt or not isinstance(answers, dict) or not all(isinstance(a, dict) and isinstance(a.get("passed"), bool) for a in answers.values()):
        raise DataError("a row of samples needs a prompt and, per model, whether its answer passed", record.where)
    return [(str(model), Label(prompt, 1.0 + answer["passed"], None, None, record.where)) for model, answer in answers.items()]


def _preference(record: Record) -> float | None:
    if "preference" not in record.fields:
        raise DataError("has no preference", record.where, "write null where the judge's answer could not be had")
    value = record.number("preference")
    if value == 0:
        return TIE
    if value is not None and not 1 <= value <= 2:
        what = f"the preference must lie in [1, 2] (1 = the reference is better, 2 = the model is), not {value!r}"
        raise DataError(what, record.where, "write null where the judge's answer could not be had")
    return value


def _chars(record: Record, output: str, length: str) -> int | None:
    text = record.text(output)
    return record.whole(length) if text is None else len(text)


def _reference(record: Record) -> Reference | None:
    text = record.text("output_1")
    if text is not None:
        return Reference.of(text)
    chars = record.whole("len_1")
    return None if chars is None else Reference(chars)


def _refuse_duplicates(labels: Labels) -> None:
    seen: dict[str | int, Label] = {}
    for row in labels.rows:
        if row.key in seen:
            what = f"{labels.model} has the instruction {_examples([row.key])} twice, first at {seen[row.key].where}"
            raise DataError(what, row.where, "keep one of the two rows")
        seen[row.key] = row


def _differs(row: Label, outputs: Mapping[str | int, Reference]) -> bool:
    return row.reference is not None and row.reference.differs(outputs[row.key])


def _name(labels: Labels) -> str:
    return f"{labels.model} ({labels.source})"


def _examples(keys: Iterable[str | int]) -> str:
    listed = list(keys)
    shown = [key if isinstance(key, str) and len(key) <= 60 else f"idx {key}" if isinstance(key, int) else f"{key[:57]}..." for key in listed[:SHOWN]]
    return ", ".join(shown) + (", ..." if len(listed) > SHOWN else "")
