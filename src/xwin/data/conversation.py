"""What people say to each other: Message, Conversation, Preference, and their rows of JSON."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args

from xwin.errors import DataError

Json = Any
Role = Literal["system", "user", "assistant", "tool"]
FOLLOWS: Mapping[Role, frozenset[Role | None]] = MappingProxyType(
    {
        "system": frozenset({None}),
        "user": frozenset({None, "system", "assistant"}),
        "assistant": frozenset({"user", "tool"}),
        "tool": frozenset({"assistant", "tool"}),
    }
)
"""Whose turn may come before whose; None is the beginning."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn.  Example: Message("user", "What is 2 + 2?")"""

    role: Role
    text: str
    weight: float = 1.0
    """Of an assistant message in the loss; 0 = context only."""
    tool_calls: tuple[Json, ...] = ()


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages in order, and what is known about them.

    Example: Conversation("q7", (Message("user", "What is 2 + 2?"), Message("assistant", "4")), meta={"answer": "4"})
    """

    id: str
    """Digest of the content unless the source names one; seeds hang on it."""
    messages: tuple[Message, ...]
    label: bool | None = None
    """Desirable or not, for unpaired preferences (KTO)."""
    meta: Mapping[str, Json] = field(default_factory=dict, hash=False)
    """Source, reference answer, constraint, tags. Scorers and suites may read it, learners never."""

    @property
    def prompt(self) -> tuple[Message, ...]:
        """The messages before the final answer; all of them when the last one is not the assistant's."""
        return self.messages[:-1] if self.messages[-1].role == "assistant" else self.messages

    def answered(self, text: str, **meta: Json) -> Conversation:
        """This prompt with `text` as the assistant's answer; `meta` is added to what is known."""
        return Conversation(self.id, (*self.prompt, Message("assistant", text)), meta={**self.meta, **meta})


@dataclass(frozen=True, slots=True)
class Preference:
    """Two answers to one prompt.

    Example: Preference("q7", (Message("user", "2 + 2?"),), Message("assistant", "4"), Message("assistant", "5"), margin=1.0)
    """

    id: str
    prompt: tuple[Message, ...]
    chosen: Message
    rejected: Message
    margin: float | None = None
    """How much better, in the units of whoever labelled it; None = not known."""
    meta: Mapping[str, Json] = field(default_factory=dict, hash=False)


def content_id(messages: Iterable[Message]) -> str:
    """Twelve hex digits that name this content."""
    text = json.dumps([[m.role, m.text] for m in messages], ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def conversation_to_json(conversation: Conversation) -> dict[str, Json]:
    """{"id", "messages": [{"role", "content"[, "weight"][, "tool_calls"]}], "label"?, "meta"?}"""
    row: dict[str, Json] = {"id": conversation.id, "messages": [_message_to_json(m) for m in conversation.messages]}
    if conversation.label is not None:
        row["label"] = conversation.label
    if conversation.meta:
        row["meta"] = dict(conversation.meta)
    return row


def preference_to_json(preference: Preference) -> dict[str, Json]:
    """{"id", "prompt": [messages], "chosen": [message], "rejected": [message], "margin"?, "meta"?}"""
    row: dict[str, Json] = {
        "id": preference.id,
        "prompt": [_message_to_json(m) for m in preference.prompt],
        "chosen": [_message_to_json(preference.chosen)],
        "rejected": [_message_to_json(preference.rejected)],
    }
    if preference.margin is not None:
        row["margin"] = preference.margin
    if preference.meta:
        row["meta"] = dict(preference.meta)
    return row


def conversation_from_json(row: Json, where: str) -> Conversation:
    """The inverse of `conversation_to_json`; a row with "prompt" (and "answer") instead of "messages" is a prompt.

    Raises:
        DataError: `where` (file:row) and what is wrong with the row.
    """
    if not isinstance(row, dict):
        raise DataError(f"a row must be an object, not {type(row).__name__}", where)
    meta = _meta(row, where)
    if "messages" not in row and "prompt" in row:
        meta |= {key: row[key] for key in ("answer",) if key in row}
    messages = _messages(row.get("messages", row.get("prompt")), where)
    name = row.get("id") or content_id(messages)
    label = row.get("label")
    if label is not None and not isinstance(label, bool):
        raise DataError(f"the label must be true or false, not {label!r}", where)
    return Conversation(str(name), messages, label, meta)


def preference_from_json(row: Json, where: str) -> Preference:
    """The inverse of `preference_to_json`.

    Raises:
        DataError: `where` (file:row) and what is wrong with the row.
    """
    if not isinstance(row, dict) or not {"prompt", "chosen", "rejected"} <= row.keys():
        raise DataError("a preference needs the keys prompt, chosen and rejected", where)
    prompt = _messages(row["prompt"], where)
    if prompt[-1].role == "assistant":
        raise DataError("the prompt must end with the user's turn", where, "move the last answer out of it")
    chosen, rejected = (_answer(row[key], key, where) for key in ("chosen", "rejected"))
    if (chosen.text, chosen.tool_calls) == (rejected.text, rejected.tool_calls):
        raise DataError("chosen and rejected are the same text, so there is nothing to learn", where, "remove the row")
    margin = None if row.get("margin") is None else _number(row["margin"], "margin", where)
    name = row.get("id") or content_id((*prompt, chosen, rejected))
    return Preference(str(name), prompt, chosen, rejected, margin, _meta(row, where))


def write_jsonl(path: Path, rows: Iterable[Json]) -> None:
    """One JSON object a line, UTF-8, keys in the order given."""
    with path.open("w", encoding="utf-8") as out:
        out.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _meta(row: Mapping[str, Json], where: str) -> dict[str, Json]:
    meta = row.get("meta") or {}
    if not isinstance(meta, dict):
        raise DataError(f"meta must be an object, not {type(meta).__name__}", where)
    return dict(meta)


def _number(value: Json, key: str, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
        raise DataError(f"the {key} must be a number, not {value!r}", where)
    return float(value)


def _message_to_json(message: Message) -> dict[str, Json]:
    row: dict[str, Json] = {"role": message.role, "content": message.text}
    if message.weight != 1.0:
        row["weight"] = message.weight
    if message.tool_calls:
        row["tool_calls"] = list(message.tool_calls)
    return row


def _message(value: Json, where: str) -> Message:
    if not isinstance(value, dict) or value.get("role") not in get_args(Role) or not isinstance(value.get("content"), str):
        raise DataError("a message needs a role (system, user, assistant or tool) and a content that is text", where)
    calls = value.get("tool_calls") or ()
    if not isinstance(calls, list | tuple):
        raise DataError("tool_calls must be a list", where)
    return Message(value["role"], value["content"], _number(value.get("weight", 1.0), "weight", where), tuple(calls))


def _messages(value: Json, where: str) -> tuple[Message, ...]:
    """Checked turns: at most one system message, first; then user and assistant in turn, or the assistant, its tools and the assistant again."""
    if isinstance(value, str):
        value = [{"role": "user", "content": value}]
    if not isinstance(value, list) or not value:
        raise DataError("has no messages", where, 'each row needs "messages": [{"role": "user", "content": "..."}, ...]')
    messages = tuple(_message(item, where) for item in value)
    roles: list[Role] = [m.role for m in messages]
    preceding: list[Role | None] = [None, *roles[:-1]]
    if "user" not in roles or any(before not in FOLLOWS[role] for before, role in zip(preceding, roles, strict=True)):
        raise DataError(f"the roles do not alternate: {', '.join(roles)}", where, "a chat is [system,] user, assistant, user, ...")
    if any(not m.text.strip() for m in messages if m.role in {"user", "assistant"} and not m.tool_calls):
        raise DataError("a turn is empty", where, "remove the row or fill the turn")
    return messages


def _answer(value: Json, key: str, where: str) -> Message:
    """An answer given as text, as a message, or as a list of one message."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, str):
        value = {"role": "assistant", "content": value}
    message = _message(value, f"{where} {key}")
    if message.role != "assistant":
        raise DataError(f"{key} must be the assistant's, not the {message.role}'s", where)
    return message
