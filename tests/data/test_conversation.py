"""Conversations and preferences: JSONL in both directions, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xwin.data.conversation import (
    Conversation,
    Message,
    Preference,
    content_id,
    conversation_from_json,
    conversation_to_json,
    preference_from_json,
    preference_to_json,
    write_jsonl,
)
from xwin.errors import DataError

TEXT = st.text(min_size=1, max_size=20).filter(str.strip)
META = st.dictionaries(st.text(max_size=5), st.one_of(st.integers(), st.text(max_size=5), st.booleans()), max_size=3)
WEIGHT = st.sampled_from([0.0, 0.5, 1.0])


@st.composite
def chats(draw: st.DrawFn) -> tuple[Message, ...]:
    turns = [Message("system", draw(TEXT))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        turns += [Message("user", draw(TEXT)), Message("assistant", draw(TEXT), draw(WEIGHT))]
    return tuple(turns[: len(turns) - draw(st.integers(0, 1))])


def row(*roles: str, **keys: Any) -> dict[str, Any]:
    return {"messages": [{"role": r, "content": "x"} for r in roles], **keys}


@given(chats(), TEXT, st.sampled_from([None, True, False]), META)
def test_a_conversation_survives_json(messages: tuple[Message, ...], name: str, label: bool | None, meta: dict) -> None:
    conversation = Conversation(name, messages, label, meta)
    assert conversation_from_json(json.loads(json.dumps(conversation_to_json(conversation))), "f:1") == conversation


@given(TEXT, TEXT, TEXT, st.one_of(st.none(), st.floats(-5, 5)), META)
def test_a_preference_survives_json(ask: str, good: str, bad: str, margin: float | None, meta: dict) -> None:
    preference = Preference("p", (Message("user", ask),), Message("assistant", good), Message("assistant", bad + "!" * (good == bad)), margin, meta)
    assert preference_from_json(json.loads(json.dumps(preference_to_json(preference))), "f:1") == preference


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    said = [
        Conversation("a", (Message("user", "Hi 🐈"), Message("assistant", "l1\nl2", 0.0)), meta={"answer": "é"}),
        Conversation("b", (Message("user", "x"),)),
    ]
    write_jsonl(tmp_path / "f.jsonl", map(conversation_to_json, said))
    rows = (tmp_path / "f.jsonl").read_text(encoding="utf-8").splitlines()
    assert [conversation_from_json(json.loads(line), "f") for line in rows] == said
    assert "🐈" in (tmp_path / "f.jsonl").read_text(encoding="utf-8"), "text stays readable"


def test_the_id_is_the_digest_of_the_content_unless_the_row_names_one() -> None:
    assert conversation_from_json(row("user", id="q7"), "f:1").id == "q7"
    assert conversation_from_json(row("user"), "f:1").id == content_id([Message("user", "x")])
    assert content_id([Message("user", "x")]) != content_id([Message("user", "y")])
    assert content_id([Message("user", "x")]) != content_id([Message("system", "x")])


def test_a_prompt_row_is_a_conversation_with_its_reference_answer_aside() -> None:
    found = conversation_from_json({"prompt": "2 + 2?", "answer": "4"}, "f:1")
    assert found.messages == (Message("user", "2 + 2?"),)
    assert found.meta == {"answer": "4"}


def test_the_prompt_of_a_conversation_is_what_comes_before_the_last_answer() -> None:
    user, answer = Message("user", "a"), Message("assistant", "b")
    assert Conversation("i", (user, answer)).prompt == (user,) == Conversation("i", (user,)).prompt
    again = Conversation("i", (user, answer), meta={"tag": 1}).answered("c", reward=2.0)
    assert again == Conversation("i", (user, Message("assistant", "c")), meta={"tag": 1, "reward": 2.0})


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([], "must be an object, not list"),
        ({}, "has no messages"),
        ({"messages": []}, "has no messages"),
        (row("assistant"), "do not alternate: assistant"),
        (row("user", "user"), "do not alternate: user, user"),
        (row("system"), "do not alternate: system"),
        (row("user", "system"), "do not alternate"),
        (row("user", "tool"), "do not alternate: user, tool"),
        (row("user", "assistant", "tool", "user"), "do not alternate"),
        (row("user", "assistant", "assistant"), "do not alternate"),
        ({"messages": [{"role": "human", "content": "x"}]}, "a role"),
        ({"messages": [{"role": "user", "content": 3}]}, "a content that is text"),
        ({"messages": ["x"]}, "a message needs"),
        ({"messages": [{"role": "user", "content": " \n"}]}, "a turn is empty"),
        ({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y", "weight": "heavy"}]}, "weight"),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": 3}]}, "tool_calls"),
        (row("user", meta=3), "meta"),
        (row("user", label="yes"), "label"),
    ],
)
def test_a_bad_conversation_is_refused_by_file_and_row(bad: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        conversation_from_json(bad, "f.jsonl:3")
    assert caught.value.where == "f.jsonl:3"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chosen": "same", "rejected": "same"}, "same text"),
        ({"chosen": None}, "role"),
        ({"chosen": {"role": "user", "content": "x"}}, "must be the assistant's, not the user's"),
        ({"margin": "wide"}, "margin"),
        ({"margin": 10**400}, "margin"),
        ({"margin": float("nan")}, "margin"),
        ({"prompt": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}, "must end with the user's turn"),
        ({"meta": [1]}, "meta"),
    ],
)
def test_a_bad_preference_is_refused_by_file_and_row(change: dict, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        preference_from_json({"prompt": "2 + 2?", "chosen": "4", "rejected": "5"} | change, "f.jsonl:1")
    assert caught.value.where.startswith("f.jsonl:1")


def test_the_assistant_goes_on_after_the_tools_it_called() -> None:
    roles = ("system", "user", "assistant", "tool", "tool", "assistant", "tool", "assistant", "user", "assistant")
    assert tuple(m.role for m in conversation_from_json(row(*roles), "f:1").messages) == roles
    assert conversation_from_json(row(*roles[:4]), "f:1").messages[-1].role == "tool"


def test_answers_may_differ_in_their_tool_calls_alone() -> None:
    sides = {side: {"role": "assistant", "content": "", "tool_calls": [side]} for side in ("chosen", "rejected")}
    assert preference_from_json({"prompt": "x", **sides}, "f:1").chosen.tool_calls == ("chosen",)


def test_a_preference_needs_its_three_keys() -> None:
    with pytest.raises(DataError, match="prompt, chosen and rejected"):
        preference_from_json({"prompt": "x", "chosen": "y"}, "f:1")
