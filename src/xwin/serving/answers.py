"""Answers in bulk: each prompt is asked n times, an answer is a line of JSON. Lines come in order, so a file that was cut off is the beginning of
the whole one, and the same command goes on where it ends."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from xwin.data.conversation import Conversation, conversation_to_json
from xwin.data.rollout import Prompt, Rollout
from xwin.data.template import Template
from xwin.engines.base import Engine, Sampling
from xwin.errors import DataError, RunBusy, UserError
from xwin.run.storage import storage_errors, sync, write_atomic
from xwin.scorers._pairwise import instruction_of


@dataclass(frozen=True)
class Asking:
    """What is asked of a model."""

    prompts: Sequence[Conversation]
    """With unique ids."""
    sampling: Sampling
    n: int
    """Answers to each prompt."""
    seed: int
    generator: str
    """What the answers call the model."""

    def keys(self) -> list[tuple[str, int]]:
        """(prompt id, sample) of each line, in order."""
        return [(prompt.id, k) for prompt in self.prompts for k in range(self.n)]


def write_answers(asking: Asking, engine: Engine, words: Template, out: AnswerFile, told: Callable[[Rollout], None]) -> None:
    """Writes the lines that `out` lacks, each as soon as those before it are there.

    Args:
        asking: what is asked.
        engine: who writes.
        words: how prompts are rendered and answers read.
        out: where to; open.
        told: hears of every answer that was written.

    Raises:
        DataError: the template has no place for a prompt.
        ModelError: a prompt and max_tokens do not fit into the model's context; nothing was asked.
        StorageError: the disk is full, read-only, or permission is missing.
    """
    waiting = asking.keys()[out.lines :]
    missing = {name for name, _ in waiting}
    asked = {p.id: p for p in asking.prompts if p.id in missing}
    prompts = [Prompt(name, _tokens(words, p)) for name, p in asked.items()]
    held: dict[tuple[str, int], Rollout] = {}
    wanted, at = set(waiting), 0
    for rollout in engine.generate(prompts, asking.sampling, seed=asking.seed, n=asking.n):
        if (rollout.prompt_id, rollout.sample) in wanted:
            held[rollout.prompt_id, rollout.sample] = rollout
        while at < len(waiting) and waiting[at] in held:
            found = held.pop(waiting[at])
            out.add(_line(asking, asked[found.prompt_id], found, words))
            told(found)
            at += 1


def _tokens(words: Template, prompt: Conversation) -> tuple[int, ...]:
    try:
        return words.prompt(prompt.prompt, prompt.meta.get("tools") or ())
    except DataError as error:
        raise DataError(error.what, f"prompt {prompt.id}", error.fix) from error


def _line(asking: Asking, prompt: Conversation, rollout: Rollout, words: Template) -> dict[str, Any]:
    """What evaluation reads (`xwin eval judge`, alpaca_eval), and what else is known. A prompt of several messages is kept in `messages_asked`."""
    several = len(prompt.prompt) > 1
    generator = asking.generator + (f"#{rollout.sample}" if asking.n > 1 else "")
    row: dict[str, Any] = {
        "id": prompt.id,
        "sample": rollout.sample,
        "instruction": instruction_of(prompt.prompt),
        "output": asking.sampling.cut(words.parse(rollout.completion).text),
        "generator": generator,
        "finish": rollout.finish,
        "prompt_tokens": len(rollout.prompt),
        "tokens": len(rollout.completion),
    }
    if several:
        row["messages_asked"] = conversation_to_json(Conversation(prompt.id, prompt.prompt))["messages"]
    return row | ({"meta": dict(prompt.meta)} if prompt.meta else {})


class AnswerFile:
    """A file of answers, open to be added to. Beside it, NAME.about.json says what the answers depend on."""

    def __init__(self, path: Path, lines: int) -> None:
        self.path, self.lines = path, lines
        """`lines`: how many there are."""
        self._out = path.open("a", encoding="utf-8")

    def add(self, row: Mapping[str, Any]) -> None:
        """A line more; handed to the system when this returns, so that a kill does not lose it."""
        with storage_errors(self.path):
            self._out.write(json.dumps(row, ensure_ascii=False) + "\n")
            self._out.flush()
        self.lines += 1

    def close(self) -> None:
        """Flushed to the disk."""
        self._out.close()
        sync(self.path)


@contextmanager
def open_answers(path: Path, about: Mapping[str, Any], keys: Sequence[tuple[str, int]]) -> Iterator[AnswerFile]:
    """The file, new or with the lines that are there already; half a line, left by a kill, is taken off. One process at a time.

    Args:
        path: .jsonl
        about: everything that the answers depend on, as JSON values.
        keys: (prompt id, sample) of the lines it is to hold.

    Raises:
        UserError: the file is of another model, other prompts or settings, or was not made by this.
        DataError: it was changed.
        RunBusy: another process writes it.
    """
    note, lock = path.with_name(f"{path.name}.about.json"), FileLock(path.with_name(f".{path.name}.lock"))
    with storage_errors(path):
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise RunBusy("is being written by another process", str(path), "wait for it, or name another file") from None
    try:
        with storage_errors(path):
            _require_same(path, note, about)
            done = _lines_there(path, keys)
            if not note.exists():
                write_atomic(note, json.dumps(about, indent=2, ensure_ascii=False) + "\n")
            found = AnswerFile(path, done)
        try:
            yield found
        finally:
            found.close()
    finally:
        lock.release()


def _require_same(path: Path, note: Path, about: Mapping[str, Any]) -> None:
    if not path.exists():
        note.unlink(missing_ok=True)
        return
    if not note.is_file():
        raise UserError("exists, and nothing says how its answers were made", str(path), "name another file")
    try:
        before = json.loads(note.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"is not JSON: {error}", str(note), "name another file") from None
    other = [key for key in about if not isinstance(before, dict) or before.get(key) != about[key]]
    if other:
        was = f"{before.get(other[0])!r}, not {about[other[0]]!r}" if isinstance(before, dict) else "unknown"
        raise UserError(f"holds answers that were made otherwise: {other[0]} was {was}", str(path), "name another file, or remove this one")


def _lines_there(path: Path, keys: Sequence[tuple[str, int]]) -> int:
    """How many whole lines there are; each must be the one that belongs there."""
    if not path.exists():
        return 0
    done, end = 0, 0
    with path.open("rb") as lines:
        for line in lines:
            if not line.endswith(b"\n"):
                break
            if done == len(keys) or _key(line) != keys[done]:
                raise DataError("is not the answer that belongs there", f"{path}:{done + 1}", "the file was changed: name another one")
            done, end = done + 1, end + len(line)
    os.truncate(path, end)
    return done


def _key(line: bytes) -> object:
    try:
        row = json.loads(line)
        return row["id"], row["sample"]
    except (ValueError, KeyError, TypeError):
        return None
