"""What models answered, read from the files people have: one output per instruction and model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from xwin.data.conversation import conversation_from_json
from xwin.errors import DataError
from xwin.scorers._pairwise import instruction_of
from xwin.spec import nearest
from xwin.suites._records import Record, records

EXAMPLES = 3
"""Of a difference that are shown, and their characters."""
CHARS = 60


@dataclass(frozen=True, slots=True)
class Outputs:
    """The outputs of one model, in the order of the file."""

    model: str
    source: str
    """The file."""
    texts: Mapping[str, str]
    """Instruction -> output, which may be empty."""


def read_outputs(path: Path, instructions: Mapping[int, str], column: str = "output") -> list[Outputs]:
    """The outputs of every model of a file.

    Reads alpaca_eval's `model_outputs.json` (instruction, output, generator), tables by number (idx, model, output), the `samples.jsonl` of an
    evaluate stage (prompt, answers) and conversations (messages that end with the assistant's).

    Args:
        path: .json or .jsonl, perhaps .gz.
        instructions: number -> text, for files that name instructions by number.
        column: which field holds the output.

    Raises:
        DataError: a row without instruction or output, or an instruction twice; names file and row.
    """
    found: dict[str, dict[str, str]] = {}
    for record in records(path):
        for model, instruction, output in _answers(record, instructions, column):
            texts = found.setdefault(model or path.name.split(".")[0], {})
            if instruction in texts:
                raise DataError(f"this instruction is there twice: {_short(instruction)}", record.where, "keep one of them")
            texts[instruction] = output
    return [Outputs(model, str(path), texts) for model, texts in found.items()]


def pick_outputs(sets: Sequence[Outputs], model: str, where: str) -> Outputs:
    """The outputs of one model; "" for the only one.

    Raises:
        DataError: there is no such model, or several and none is named.
    """
    by_name = {outputs.model: outputs for outputs in sets}
    if not model and len(sets) == 1:
        return sets[0]
    if model in by_name:
        return by_name[model]
    if model:
        raise DataError(f"holds no model '{model}'", where, nearest(model, list(by_name)))
    raise DataError(f"holds {len(sets)} models", where, f"name one as {where}:MODEL, where MODEL is one of: {', '.join(list(by_name)[:10])}")


def same_questions(mine: Outputs, theirs: Outputs) -> None:
    """Refuses two sets of outputs to different instructions.

    Raises:
        DataError: how many only one of the two has, and which.
    """
    pairs = ((mine, theirs), (theirs, mine))
    only = [(own, [text for text in own.texts if text not in other.texts]) for own, other in pairs]
    said = [f"{len(texts)} only in {own.model} ({', '.join(map(_short, texts[:EXAMPLES]))})" for own, texts in only if texts]
    if said:
        where = f"{mine.source} and {theirs.source}"
        raise DataError(f"different instructions: {'; '.join(said)}", where, "answer the same ones, or --common judges those that both have")


def _answers(record: Record, instructions: Mapping[int, str], column: str) -> Iterator[tuple[str, str, str]]:
    """(model, instruction, output) of each model in a row."""
    fields = record.fields
    if isinstance(fields.get("answers"), dict):
        for model, answer in fields["answers"].items():
            yield model, record.text("prompt") or "", _needed(Record(answer if isinstance(answer, dict) else {}, record.where), "text")
        return
    if "messages" in fields:
        chat = conversation_from_json(fields, record.where)
        if chat.messages[-1].role != "assistant":
            raise DataError("the conversation has no answer", record.where, "its last message must be the assistant's")
        yield "", instruction_of(chat.prompt), chat.messages[-1].text
        return
    text, number = record.text("instruction"), record.whole("idx")
    if not text and number is None:
        raise DataError("has neither an instruction nor an idx", record.where, "every row must say what was asked")
    if not text and number not in instructions:
        raise DataError(f"names instruction {number} by its number alone", record.where, "--tables FOLDER says which number is which")
    model = record.text("model") or record.text("generator") or ""
    yield model, text or instructions[number or 0], _needed(record, column)


def _needed(record: Record, name: str) -> str:
    text = record.text(name)
    if text is None:
        raise DataError(f"has no {name}", record.where, 'an output may be empty, "", and must be there')
    return text


def _short(text: str) -> str:
    return repr(text if len(text) <= CHARS else f"{text[:CHARS]}...")
