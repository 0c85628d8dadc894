"""Turns as people write them (role and content, from and value, parts, tool calls) -> Messages in an order that makes sense."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from enum import StrEnum

from xwin.data._converted import Fields, Findings, kind, shown, unholdable
from xwin.data._texts import as_number, as_text, blank
from xwin.data.conversation import FOLLOWS, Json, Message, Role
from xwin.data.defects import Defect

SPEAKERS: Mapping[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function": "tool",
    "function_response": "tool",
}
UNUSUAL: Mapping[str, Role] = {
    "bing": "assistant",
    "bard": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "developer": "system",
}
ROLE_KEYS, TEXT_KEYS, WEIGHT_KEYS = ("role", "from"), ("content", "value"), ("loss_weight", "weight")
USED = {*ROLE_KEYS, *TEXT_KEYS, *WEIGHT_KEYS, "tool_calls", "reasoning_content"}


class End(StrEnum):
    """Whose turn must be the last."""

    ANSWER = "the assistant's"
    PROMPT = "the user's or a tool's"


def first_of(fields: Fields, keys: Sequence[str]) -> Json:
    """The value of the first of these keys that is there; None when none is."""
    return next((fields[key] for key in keys if key in fields), None)


def holds_turns(row: Fields, key: str) -> bool:
    """Whether the row has such a field, and a list, or null for one, in it."""
    return key in row and isinstance(row[key], list | None)


def read_turns(value: Json, found: Findings, label: str = "turn") -> list[Message]:
    """The turns of a list, in its order, which may make no sense yet; a text is one user turn.

    Args:
        value: a list of {"role" | "from", "content" | "value", ...}, or a text.
        found: collects unknown speakers, texts that are none, unreadable tool calls ...
        label: what a turn is called in a flaw's detail, before its number.
    """
    if isinstance(value, str):
        return [Message("user", as_text(value, label, found))]
    if not isinstance(value, list):
        found.add(Defect.WRONG_COLUMNS, f"{label}s are {kind(value)}, not a list")
        return []
    messages: list[Message] = []
    for number, turn in enumerate(value, 1):
        message = read_turn(turn, f"{label} {number}", found)
        if message and messages and _continues(turn, messages[-1]):
            messages[-1] = replace(messages[-1], tool_calls=(*messages[-1].tool_calls, *message.tool_calls))
        elif message:
            messages.append(message)
    return messages


def read_turn(turn: Json, place: str, found: Findings) -> Message | None:
    """One turn; None when its speaker is not known."""
    if not isinstance(turn, dict):
        found.add(Defect.WRONG_COLUMNS, f"{place} is {kind(turn)}, not an object")
        return None
    speaker = first_of(turn, ROLE_KEYS)
    role = _role(speaker, place, found)
    if role is None:
        return None
    place = f"{place} ({role})"
    content = first_of(turn, TEXT_KEYS)
    if speaker == "function_call":
        text, calls = "", _calls(content, place, found)
    else:
        text, calls = _content(content, place, found, called=bool(turn.get("tool_calls")))
    calls += [call for value in _listed(turn.get("tool_calls")) for call in _calls(value, place, found)]
    if reasoning := turn.get("reasoning_content"):
        text = _thought(as_text(reasoning, place, found)) + text
    if unused := [str(key) for key, held in turn.items() if key not in USED and held is not None]:
        found.add(Defect.EXTRA_FIELDS, f"{place}: {', '.join(map(shown, unused))}")
    return Message(role, text, _weight(turn, role, place, found), tuple(calls))


def settle(messages: Sequence[Message], found: Findings, end: End, label: str = "turn") -> tuple[Message, ...]:
    """The messages if they make a conversation: an empty system message and what comes before the first user turn left out, all else a flaw.

    Args:
        messages: as `read_turns` gives them.
        found: collects what is wrong.
        end: whose turn must be the last.
        label: what a turn is called in a flaw's detail.
    """
    if not messages:
        found.add(Defect.EMPTY_CONVERSATION, "" if label == "turn" else f"no {label}s")
        return ()
    numbered = [(f"{label} {number} ({m.role})", m) for number, m in enumerate(messages, 1)]
    if end is End.ANSWER and len(messages) == 1:
        found.add(Defect.ONE_TURN, numbered[0][0])
    if messages[0].role == "system" and blank(messages[0].text):
        found.add(Defect.EMPTY_SYSTEM, numbered[0][0])
        del numbered[0]
    numbered = _from_first_user(numbered, found)
    _check_order(numbered, found)
    _check_end(numbered, found, end)
    _check_texts(numbered, found, end)
    return tuple(m for _, m in numbered)


def _from_first_user(numbered: list[tuple[str, Message]], found: Findings) -> list[tuple[str, Message]]:
    head = 1 if numbered and numbered[0][1].role == "system" else 0
    if len(numbered) == head or numbered[head][1].role != "assistant":
        return numbered
    first = next((i for i, (_, m) in enumerate(numbered) if m.role == "user"), len(numbered))
    found.add(Defect.ASSISTANT_FIRST, f"{first - head} left out")
    return numbered[:head] + numbered[first:]


def _check_order(numbered: Sequence[tuple[str, Message]], found: Findings) -> None:
    before: Role | None = None
    for place, message in numbered:
        if before not in FOLLOWS[message.role]:
            found.add(Defect.ROLE_BREAK, f"{place} after {before or 'nothing'}")
        before = message.role


def _check_end(numbered: Sequence[tuple[str, Message]], found: Findings, end: End) -> None:
    last = numbered[-1] if numbered else None
    if end is End.PROMPT:
        if last is None or last[1].role not in {"user", "tool"}:
            found.add(Defect.ROLE_BREAK, f"the prompt ends with {last[0] if last else 'nothing'}")
        return
    if last is not None and last[1].role != "assistant":
        found.add(Defect.NO_ANSWER, f"the last is {last[0]}")
    answers = [m.weight for _, m in numbered if m.role == "assistant"]
    if not any(answers):
        found.add(Defect.NOTHING_TRAINED, "every answer has weight 0" if answers else "no answer follows a user turn")


def _check_texts(numbered: Sequence[tuple[str, Message]], found: Findings, end: End) -> None:
    for i, (place, message) in enumerate(numbered):
        if message.role == "tool" or message.tool_calls or not blank(message.text):
            continue
        last = i == len(numbered) - 1 and message.role == "assistant" and end is End.ANSWER
        found.add(Defect.EMPTY_ANSWER if last else Defect.EMPTY_TURN, place)


def _role(speaker: Json, place: str, found: Findings) -> Role | None:
    if not isinstance(speaker, str):
        found.add(Defect.WRONG_COLUMNS, f"{place} names no speaker" if speaker is None else f"the speaker of {place} is {kind(speaker)}")
        return None
    if speaker in SPEAKERS:
        return SPEAKERS[speaker]
    name = speaker.strip().lower()
    role = SPEAKERS.get(name) or UNUSUAL.get(name)
    found.add(Defect.RENAMED_ROLE if role else Defect.UNKNOWN_ROLE, f"{place}: {shown(speaker)}")
    return role


def _content(content: Json, place: str, found: Findings, *, called: bool) -> tuple[str, list[Json]]:
    """Text and tool calls of a content: a text, null beside tool calls, or a list of typed parts."""
    if content is None and called:
        return "", []
    if not isinstance(content, list):
        return as_text(content, place, found), []
    text, calls = "", []
    for part in content:
        sort, held = (part.get("type"), first_of(part, ("text", "value"))) if isinstance(part, dict) else ("text", part)
        if sort in ("text", "input_text", "output_text"):
            text += as_text(held, place, found)
        elif sort == "reasoning":
            text += _thought(as_text(held, place, found))
        elif sort == "tool_call":
            calls += _calls(held, place, found)
        else:
            found.add(Defect.NOT_TEXT, f"{place} has a part of type {shown(sort)}")
    return text, calls


def _thought(text: str) -> str:
    """Reasoning as models that reason write it, so that it is trained like the answer it leads to."""
    return f"<think>\n{text}\n</think>\n\n"


def _listed(value: Json) -> list[Json]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def _calls(value: Json, place: str, found: Findings) -> list[Json]:
    """Tool calls as {"type": "function", "function": {"name", "arguments"}[, "id"]}, from text, the short form, or a list of them."""
    out = []
    for call in _listed(parsed(value)):
        inner = call.get("function", call) if isinstance(call, dict) else None
        name = inner.get("name") if isinstance(inner, dict) else None
        given = parsed(inner.get("arguments", inner.get("parameters", {}))) if isinstance(inner, dict) else None
        if not isinstance(name, str) or not isinstance(given, dict):
            found.add(Defect.TOOL_CALL, f"{place}: {shown(value)}")
            continue
        named = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
        out.append({"type": "function", "function": {"name": name, "arguments": given}, **named})
    if not out:
        found.add(Defect.TOOL_CALL, f"{place}: {shown(value)}")
    return out


def parsed(value: Json) -> Json:
    """JSON written as text, read; None where it is not JSON; anything else as it is."""
    if not isinstance(value, str):
        return value
    try:
        out = json.loads(value)
    except (ValueError, RecursionError):
        return None
    return None if unholdable(out) else out


def _weight(turn: Fields, role: Role, place: str, found: Findings) -> float:
    value = first_of(turn, WEIGHT_KEYS)
    weight = 1.0 if value is None else as_number(value)
    if weight is None or weight < 0:
        found.add(Defect.WRONG_COLUMNS, f"{place} has a weight that is not a number >= 0")
        return 1.0
    if role != "assistant":
        if value is not None and weight > 0:
            found.add(Defect.USER_WEIGHT, place)
        return 1.0
    return weight


def _continues(turn: Json, before: Message) -> bool:
    """Whether a turn of its own only holds the tool call of the assistant's turn before it."""
    return before.role == "assistant" and isinstance(turn, dict) and first_of(turn, ROLE_KEYS) == "function_call"
