"""Formats whose rows are chats, or instructions with an answer: native, sharegpt, messages, KTO, alpaca, prompt and completion."""

from __future__ import annotations

from dataclasses import replace

from xwin.data._converted import Fields, Findings, Item, kind, rest, row_id, shown
from xwin.data._texts import as_text, note_answer, note_texts, task_text
from xwin.data._turns import End, first_of, holds_turns, parsed, read_turns, settle
from xwin.data.conversation import Conversation, Json, Message, content_id, conversation_from_json
from xwin.data.defects import Defect
from xwin.errors import DataError

CHATS = ("messages", "conversations", "conversation")
INPUTS, OUTPUTS = ("input", "context"), ("output", "response")
NATIVE_TURN = frozenset({"role", "content", "weight", "tool_calls"})


def looks_native(row: Fields) -> str | None:
    """The row of a file that Xwin-LM wrote."""
    native = {"id", "messages"} <= row.keys() <= {"id", "messages", "label", "meta"}
    return "has id and messages, and nothing that the native format does not know" if native and isinstance(row["id"], str) else None


def read_native(row: Fields, found: Findings) -> list[Item]:
    """Exactly what was written; a row that was edited into something else is read like any chat, so that its flaws get their names.

    A prompt of several turns is told from a chat that was cut off by its reference answer.
    """
    try:
        conversation = conversation_from_json(row, "")
    except DataError as error:
        items = read_chat(row, found)
        if not found.first:
            found.add(Defect.WRONG_COLUMNS, error.what)
        return items
    for number, message in enumerate(conversation.messages, 1):
        note_texts(message.text, f"turn {number} ({message.role})", found)
    _note_fields(row, found)
    *before, last = conversation.messages
    if last.role != "assistant" and "answer" not in conversation.meta and any(m.role == "assistant" for m in before):
        found.add(Defect.NO_ANSWER, f"the last is turn {len(conversation.messages)} ({last.role})")
    return [conversation]


def _note_fields(row: Fields, found: Findings) -> None:
    """Fields of a turn that the native format does not know."""
    turns: Json = row.get("messages")
    for number, turn in enumerate(turns, 1) if isinstance(turns, list) else ():
        if unused := [str(key) for key, held in turn.items() if key not in NATIVE_TURN and held is not None]:
            found.add(Defect.EXTRA_FIELDS, f"turn {number} ({turn['role']}): {', '.join(map(shown, unused))}")


def looks_kto(row: Fields) -> str | None:
    """A chat, or a prompt with a completion, that somebody labelled."""
    chat = next((key for key in CHATS if holds_turns(row, key)), "prompt and completion" if {"prompt", "completion"} <= row.keys() else None)
    return f"has {chat} and a label" if chat and "label" in row else None


def read_kto(row: Fields, found: Findings) -> list[Item]:
    """A labelled conversation."""
    label = row.get("label")
    if not isinstance(label, bool):
        found.add(Defect.WRONG_COLUMNS, f"the label is {kind(label)}, not true or false")
        label = None
    unlabelled = {key: value for key, value in row.items() if key != "label"}
    items = read_completion(unlabelled, found) if "completion" in row else read_chat(unlabelled, found)
    return [replace(item, label=label) for item in items if isinstance(item, Conversation)]


def looks_sharegpt(row: Fields) -> str | None:
    """A list of turns with from and value."""
    key = next((key for key in CHATS[1:] if holds_turns(row, key)), None)
    return f"has {key}" if key else None


def looks_messages(row: Fields) -> str | None:
    """A list of turns with role and content."""
    if not holds_turns(row, "messages"):
        return None
    typed = any(isinstance(turn, dict) and isinstance(turn.get("content"), list) for turn in row["messages"] or [])
    return "has messages whose content is a list of typed parts" if typed else "has messages"


def read_chat(row: Fields, found: Findings) -> list[Item]:
    """A chat that must end with the assistant's answer."""
    turns = with_system(row, read_turns(first_of(row, CHATS), found), found)
    messages = settle(turns, found, End.ANSWER)
    return [_conversation(row, messages, with_tools(row, rest(row, *CHATS, "system"), found))]


def with_system(row: Fields, turns: list[Message], found: Findings) -> list[Message]:
    """The turns after the text of a field `system`, if the row has one that is not empty."""
    return [Message("system", as_text(row["system"], "system", found)), *turns] if row.get("system") else turns


def with_tools(row: Fields, meta: dict[str, Json], found: Findings) -> dict[str, Json]:
    """The meta with its tools as a list of descriptions (files often hold them as JSON text), and without an empty list."""
    tools = row.get("tools")
    if not tools:
        return {key: value for key, value in meta.items() if key != "tools"}
    tools = parsed(tools)
    if not isinstance(tools, list):
        found.add(Defect.WRONG_COLUMNS, "tools is not a list of tools, nor JSON text of one")
        return meta
    return ({**meta, "tools": tools}) if tools else {key: value for key, value in meta.items() if key != "tools"}


def looks_alpaca(row: Fields) -> str | None:
    """An instruction and its output."""
    output = next((key for key in OUTPUTS if key in row), None)
    return f"has instruction and {output}" if output and "instruction" in row else None


def read_alpaca(row: Fields, found: Findings) -> list[Item]:
    """One exchange, after the pairs of a history."""
    key = next((key for key in OUTPUTS if key in row), OUTPUTS[0])
    answer = as_text(row.get(key), key, found)
    note_answer(answer, found)
    messages = settle([*instruction_turns(row, found), Message("assistant", answer)], found, End.ANSWER)
    return [_conversation(row, messages, with_tools(row, rest(row, "instruction", *INPUTS, key, "history", "system"), found))]


def instruction_turns(row: Fields, found: Findings) -> list[Message]:
    """[system,] the pairs of `history`, and the instruction with its input as the user's turn."""
    turns = with_system(row, [], found)
    history = row.get("history") or []
    if not isinstance(history, list) or not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in history):
        found.add(Defect.WRONG_COLUMNS, "history is not a list of pairs")
        history = []
    for number, (asked, answered) in enumerate(history, 1):
        turns.append(Message("user", as_text(asked, f"history {number}", found)))
        turns.append(Message("assistant", as_text(answered, f"history {number}", found)))
    return [*turns, Message("user", task_text(row.get("instruction"), first_of(row, INPUTS), found))]


def looks_completion(row: Fields) -> str | None:
    """A prompt and its completion."""
    return "has prompt and completion" if {"prompt", "completion"} <= row.keys() else None


def read_completion(row: Fields, found: Findings) -> list[Item]:
    """Prompt and completion, each a text or a list of messages."""
    completion = row.get("completion")
    completion = [{"role": "assistant", "content": completion}] if isinstance(completion, str) else completion
    turns = [*read_turns(row.get("prompt"), found, "prompt turn"), *read_turns(completion, found, "completion turn")]
    messages = settle(with_system(row, turns, found), found, End.ANSWER)
    return [_conversation(row, messages, with_tools(row, rest(row, "prompt", "completion", "system"), found))]


def _conversation(row: Fields, messages: tuple[Message, ...], meta: dict[str, Json]) -> Conversation:
    return Conversation(row_id(row) or content_id(messages), messages, meta=meta)
