"""Formats on rows written by hand: what each becomes, what is repaired, what is refused, and that nothing else ever happens."""

import functools
import json
import re
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
)
from xwin.data.defects import VERDICTS, Defect, Verdict
from xwin.data.formats import FORMATS, Converted, Makes, detect, format_named
from xwin.errors import DataError

D = Defect
U, A, S, T = (functools.partial(Message, role) for role in ("user", "assistant", "system", "tool"))


def turns(*said: str, keys: tuple[str, str] = ("role", "content")) -> list[dict[str, Any]]:
    """turns("user: Hi", "assistant: Hello") as a list of objects."""
    return [dict(zip(keys, turn.split(": ", 1), strict=True)) for turn in said]


def gpt(*said: str) -> list[dict[str, Any]]:
    return turns(*said, keys=("from", "value"))


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def convert(name: str, row: Any) -> Converted:
    return format_named(name).convert(row)


def defects(got: Converted) -> set[Defect]:
    return {flaw.defect for flaw in got.flaws}


def said(got: Converted) -> tuple[Message, ...]:
    """The messages of the one conversation."""
    (item,) = got.items
    assert isinstance(item, Conversation)
    return item.messages


def pair(got: Converted) -> Preference:
    (item,) = got.items
    assert isinstance(item, Preference)
    return item


TREE = {
    "message_tree_id": "t1",
    "tree_state": "ready",
    "prompt": {
        "message_id": "m1",
        "role": "prompter",
        "text": "Name a tree.",
        "lang": "en",
        "replies": [
            {"message_id": "m2", "role": "assistant", "text": "A stone.", "rank": 1, "replies": []},
            {
                "message_id": "m3",
                "role": "assistant",
                "text": "An oak.",
                "rank": 0,
                "replies": [
                    {"message_id": "m4", "role": "prompter", "text": "Sure?", "replies": []},
                    {
                        "message_id": "m5",
                        "role": "prompter",
                        "text": "Another.",
                        "replies": [{"message_id": "m6", "role": "assistant", "text": "An elm.", "synthetic": True, "replies": []}],
                    },
                ],
            },
        ],
    },
}
ONE = Conversation("c1", (U("Hi"), A("Hello")), meta={"tag": "x"})
TWO = Preference("p1", (U("Hi"),), A("Hello"), A("Go away"), 1.5, {"tag": "x"})
EXAMPLES: dict[str, tuple[Any, tuple[Any, ...]]] = {  # a row of each format, and what it becomes but for the id
    "xwin": (conversation_to_json(ONE), (ONE,)),
    "xwin_preferences": (preference_to_json(TWO), (TWO,)),
    "kto": (
        {"messages": turns("user: Hi", "assistant: What?"), "label": False, "by": "me"},
        (Conversation("", (U("Hi"), A("What?")), False, {"by": "me"}),),
    ),
    "sharegpt_preferences": (
        {"conversations": gpt("system: Be kind.", "human: Hi"), "chosen": gpt("gpt: Hello")[0], "rejected": "Go away"},
        (Preference("", (S("Be kind."), U("Hi")), A("Hello"), A("Go away")),),
    ),
    "sharegpt": (
        {"id": 7, "conversations": gpt("human: Hi", "gpt: Hello", "human: Bye", "gpt: See you")},
        (Conversation("7", (U("Hi"), A("Hello"), U("Bye"), A("See you"))),),
    ),
    "hh_rlhf": (
        {
            "chosen": "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Bye\n\nAssistant: Bye!",
            "rejected": "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Bye\n\nAssistant: No",
        },
        (Preference("", (U("Hi"), A("Yes?"), U("Bye")), A("Bye!"), A("No")),),
    ),
    "preferences": (
        {"prompt": "Hi", "chosen": "Hello", "rejected": "Go", "metadata": {"score_chosen": 8.0, "score_rejected": 6.5}},
        (Preference("", (U("Hi"),), A("Hello"), A("Go"), 1.5, {"metadata": {"score_chosen": 8.0, "score_rejected": 6.5}}),),
    ),
    "alpaca_ranked": (
        {"instruction": "And in red?", "input": "", "output": ["Rot.", "Ruddy.", "Blue."], "history": [["Say blue in German.", "Blau."]]},
        (Preference("", (U("Say blue in German."), A("Blau."), U("And in red?")), A("Rot."), A("Blue."), None, {"n_ranked": 3}),),
    ),
    "ultrafeedback": (
        {
            "source": "here",
            "instruction": "Add 2 and 2.",
            "models": ["x", "y"],
            "completions": [
                {"model": "x", "response": "5", "annotations": {"honesty": {"Rating": "1"}, "helpfulness": {"Rating": "2", "Type": ["1"]}}},
                {"model": "y", "response": "4", "annotations": {"honesty": {"Rating": "5"}, "helpfulness": {"Rating": "N/A"}}},
            ],
        },
        (
            Preference(
                "",
                (U("Add 2 and 2."),),
                A("4"),
                A("5"),
                3.5,
                {"source": "here", "n_ranked": 2, "score_chosen": 5.0, "score_rejected": 1.5, "chosen_model": "y", "rejected_model": "x"},
            ),
        ),
    ),
    "alpaca_eval": (
        {"instruction": "Hi", "output_1": "Go", "generator_1": "m1", "output_2": "Hello", "generator_2": "m2", "preference": 1.75},
        (Preference("", (U("Hi"),), A("Hello"), A("Go"), 0.5, {"preference": 1.75, "chosen_model": "m2", "rejected_model": "m1"}),),
    ),
    "pandalm": (
        {
            "idx": 3,
            "instruction": "Shorten.",
            "input": "A b c",
            "response1": "A b",
            "response2": "A b c",
            "annotator1": 1,
            "annotator2": 2,
            "annotator3": 1,
        },
        (Preference("", (U("Shorten.\n\nA b c"),), A("A b"), A("A b c"), 1.0, {"idx": 3, "votes": [1, 2, 1]}),),
    ),
    "alpaca": (
        {"instruction": "Shorten.", "input": "A b c", "output": "A", "system": "Be brief."},
        (Conversation("", (S("Be brief."), U("Shorten.\n\nA b c"), A("A"))),),
    ),
    "ranked_transcripts": (
        {"text": ["\n\nHuman: Hi\n\nAssistant: Go", "\n\nHuman: Hi\n\nAssistant: Hello"], "score": [0.5, 3.0]},
        (Preference("", (U("Hi"),), A("Hello"), A("Go"), 2.5, {"n_ranked": 2}),),
    ),
    "oasst": (
        TREE,
        (Conversation("t1", (U("Name a tree."), A("An oak."), U("Another."), A("An elm.")), meta={"tree_state": "ready", "lang": "en"}),),
    ),
    "oasst_preferences": (
        TREE,
        (Preference("m1", (U("Name a tree."),), A("An oak."), A("A stone."), None, {"tree_state": "ready", "lang": "en", "n_ranked": 2}),),
    ),
    "openai_evals": (
        {"input": turns("system: Answer yes or no.", "user: Is it?"), "ideal": ["yes", "Yes"]},
        (Conversation("", (S("Answer yes or no."), U("Is it?")), meta={"answer": ["yes", "Yes"]}),),
    ),
    "choices": (
        {"question": "What flies?", "choices": {"label": ["A", "B"], "text": ["a stone", "a bird"]}, "answerKey": "B"},
        (Conversation("", (U("What flies?\nA. a stone\nB. a bird"),), meta={"answer": "B", "answer_text": "a bird"}),),
    ),
    "gsm8k": (
        {"question": "How many are 500 and 700?", "answer": "500 + 700 = <<500+700=1200>>1200\n#### 1,200"},
        (Conversation("", (U("How many are 500 and 700?"), A("500 + 700 = <<500+700=1200>>1200\n#### 1,200")), meta={"answer": "1200"}),),
    ),
    "prompt_completion": ({"prompt": "Hi", "completion": "Hello"}, (Conversation("", (U("Hi"), A("Hello"))),)),
    "prompts": (
        {"prompt": turns("user: 2 + 2?"), "answer": 4, "n_steps": 1},
        (Conversation("", (U("2 + 2?"),), meta={"answer": "4", "n_steps": 1}),),
    ),
    "messages": (
        {"messages": turns("system: Be kind.", "user: Hi", "assistant: Hello"), "source": "s"},
        (Conversation("", (S("Be kind."), U("Hi"), A("Hello")), meta={"source": "s"}),),
    ),
}


def test_there_is_an_example_of_every_format() -> None:
    assert list(EXAMPLES) == [form.name for form in FORMATS]


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_row_of_each_format_becomes_what_it_says(name: str) -> None:
    row, expected = EXAMPLES[name]
    before = json.dumps(row)
    got = convert(name, row)
    for item, wanted in zip(got.items, expected, strict=True):
        own = (*item.prompt, item.chosen, item.rejected) if isinstance(item, Preference) else item.messages
        assert item.id == (wanted.id or content_id(own))
        assert type(item)(**{**fields(wanted), "id": item.id}) == item
        assert isinstance(item, Preference) == (format_named(name).makes is Makes.PREFERENCES)
    assert json.dumps(row) == before, "the row itself is left alone"
    assert not [d for d in defects(got) if VERDICTS[d] is Verdict.REJECT]


def fields(item: Any) -> dict[str, Any]:
    return {name: getattr(item, name) for name in item.__dataclass_fields__}


@pytest.mark.parametrize("name", EXAMPLES)
def test_each_format_is_detected_from_its_own_rows_with_a_reason(name: str) -> None:
    row, _ = EXAMPLES[name]
    assert format_named(name).fits(row)
    found = detect([row] * 3, "f.jsonl")
    assert found.format.name == ("oasst" if name == "oasst_preferences" else name)
    assert re.fullmatch(r"has .* \(all of the first 3 rows\)", found.reason)


def test_the_format_of_most_of_the_first_rows_is_taken_and_a_more_general_one_that_fits_all_is_not() -> None:
    kto, chat = EXAMPLES["kto"][0], EXAMPLES["messages"][0]
    assert detect([kto, chat, kto, kto], "f").format.name == "kto"
    assert detect([kto, chat, chat], "f").format.name == "messages"
    assert detect(["broken", {}, chat], "f").format.name == "messages"
    assert detect([kto, chat, kto, kto], "f").reason == "has messages and a label (3 of the first 4 rows)"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "holds no rows"),
        ([{"colour": 1, "size\x1b": 2}], r"its fields are 'colour', 'size\\x1b'"),
        ([{}], "its fields are none"),
        ([1, "a", None], "its rows are not objects"),
    ],
)
def test_rows_of_no_known_format_are_refused_with_what_they_hold(rows: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        detect(rows, "f.jsonl")
    assert caught.value.where == "f.jsonl"


def test_an_unknown_name_is_answered_with_the_nearest_and_all_others() -> None:
    with pytest.raises(DataError, match="did you mean 'sharegpt'") as caught:
        format_named("share_gpt")
    assert all(form.name in caught.value.fix for form in FORMATS)


# --- chats ---------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("conversation", "found", "kept"),
    [
        ([], {D.EMPTY_CONVERSATION}, None),
        (gpt("gpt: there", "human: Hi", "gpt: Hello"), {D.ASSISTANT_FIRST}, "ua"),
        (gpt("system: S", "gpt: there", "gpt: again", "human: Hi", "gpt: Hello"), {D.ASSISTANT_FIRST}, "sua"),
        (gpt("gpt: there"), {D.ASSISTANT_FIRST, D.ONE_TURN, D.NOTHING_TRAINED}, None),
        (gpt("human: Hi"), {D.ONE_TURN, D.NO_ANSWER, D.NOTHING_TRAINED}, None),
        (gpt("human: Hi", "gpt: Hello", "human: Bye"), {D.NO_ANSWER}, None),
        (gpt("human: Hi", "human: You?", "gpt: Hello"), {D.ROLE_BREAK}, None),
        (gpt("human: Hi", "gpt: Hello", "gpt: Hello?"), {D.ROLE_BREAK}, None),
        (gpt("human: Hi", "system: S", "gpt: Hello"), {D.ROLE_BREAK}, None),
        (gpt("human: Hi", "observation: 3", "gpt: Hello"), {D.ROLE_BREAK}, None),
        (gpt("human:  ", "gpt: Hello"), {D.EMPTY_TURN}, None),
        (gpt("human: Hi", "gpt: \u200b", "human: Well?", "gpt: Yes"), {D.EMPTY_TURN, D.ZERO_WIDTH}, None),
        (gpt("human: Hi", "gpt: \n"), {D.EMPTY_ANSWER}, None),
        (gpt("system:  ", "human: Hi", "gpt: Hello"), {D.EMPTY_SYSTEM}, "ua"),
        (gpt("human: Hi", "bing: Hello"), {D.RENAMED_ROLE}, "ua"),
        (gpt("Human: Hi", "Bard: Hello"), {D.RENAMED_ROLE}, "ua"),
        (gpt("human: Hi", "narrator: Hello"), {D.UNKNOWN_ROLE, D.ONE_TURN, D.NO_ANSWER, D.NOTHING_TRAINED}, None),
        (gpt("user: Hi", "assistant: Hello"), set(), "ua"),
        ([{"from": "human", "value": "Hi"}, {"from": "gpt", "value": 3}], {D.NOT_TEXT}, None),
        ([{"from": "human", "value": "Hi"}, {"from": "gpt"}], {D.NOT_TEXT}, None),
        ([{"from": "human", "value": "Hi"}, {"value": "Hello"}], {D.WRONG_COLUMNS, D.ONE_TURN, D.NO_ANSWER, D.NOTHING_TRAINED}, None),
        (["Hi", "Hello"], {D.WRONG_COLUMNS, D.EMPTY_CONVERSATION}, None),
        (None, {D.WRONG_COLUMNS, D.EMPTY_CONVERSATION}, None),
        ([*gpt("human: Hi"), {"from": "gpt", "value": "Hello", "likes": 3, "text": None}], {D.EXTRA_FIELDS}, "ua"),
    ],
)
def test_a_chat_is_repaired_or_refused_knowingly(conversation: Any, found: set[Defect], kept: str | None) -> None:
    row = {"conversations": conversation}
    assert format_named("sharegpt").fits(row)
    got = convert("sharegpt", row)
    assert defects(got) == found
    assert ("".join(m.role[0] for m in said(got)) if got.items else None) == kept


def test_a_flaw_says_where() -> None:
    got = convert("sharegpt", {"conversations": gpt("system: S", "gpt: a", "human: b", "gpt: c", "gpt: d\x07", "human: ")})
    details = {str(flaw.defect.name): flaw.detail for flaw in got.flaws}
    assert details == {
        "CONTROL": "turn 5 (assistant): U+0007 at character 2",
        "ASSISTANT_FIRST": "1 left out",
        "ROLE_BREAK": "turn 5 (assistant) after assistant",
        "NO_ANSWER": "the last is turn 6 (user)",
        "EMPTY_TURN": "turn 6 (user)",
    }


def test_function_calls_and_observations_become_tool_calls_and_tool_turns() -> None:
    tools = [{"name": "add", "parameters": {}}]
    conversation = gpt("human: 1 + 2?", "gpt: Let me see.", 'function_call: {"name": "add", "arguments": {"a": 1}}', "observation: 3", "gpt: 3")
    got = convert("sharegpt", {"conversations": conversation, "tools": json.dumps(tools), "system": "Add."})
    assert said(got) == (S("Add."), U("1 + 2?"), A("Let me see.", tool_calls=(call("add", a=1),)), T("3"), A("3"))
    assert got.items[0].meta == {"tools": tools}
    assert conversation_from_json(json.loads(json.dumps(conversation_to_json(got.items[0]))), "f:1") == got.items[0]  # type: ignore[arg-type]
    assert convert("sharegpt", {"conversations": gpt("human: a", "gpt: b"), "tools": "[]"}).items[0].meta == {}


@pytest.mark.parametrize(
    "value", ["add(1, 2)", '{"name": "add", "arguments": "one"}', '{"arguments": {}}', "[]", "3", '{"name": "add", "arguments": {"a": "\\ud800"}}']
)
def test_a_tool_call_that_cannot_be_read_is_refused(value: str) -> None:
    got = convert("sharegpt", {"conversations": [*gpt("human: Hi"), {"from": "function_call", "value": value}]})
    assert D.TOOL_CALL in defects(got)
    assert not got.items


def test_tools_that_are_no_list_are_refused() -> None:
    assert defects(convert("sharegpt", {"conversations": gpt("human: a", "gpt: b"), "tools": "none"})) == {D.WRONG_COLUMNS}


def test_typed_parts_weights_and_reasoning_are_read() -> None:
    row = {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "2 + 2"}, {"type": "text", "value": "?"}], "loss_weight": 0.0},
            {
                "role": "assistant",
                "content": [
                    {"type": "reasoning", "value": "Easy."},
                    {"type": "tool_call", "value": '{"name": "add", "arguments": {"a": 2, "b": 2}}'},
                    {"type": "tool_call", "value": '{"name": "add", "arguments": {}}'},
                ],
                "loss_weight": 0.0,
            },
            {"role": "tool", "content": [{"type": "text", "value": "4"}]},
            {"role": "assistant", "content": "4", "reasoning_content": "So.", "weight": 0.5},
        ]
    }
    got = convert("messages", row)
    assert got.flaws == ()
    calls = (call("add", a=2, b=2), call("add"))
    assert said(got) == (
        U("2 + 2?"),
        A("<think>\nEasy.\n</think>\n\n", 0.0, calls),
        T("4"),
        A("<think>\nSo.\n</think>\n\n4", 0.5),
    )


def test_openai_tool_calls_with_null_content_are_read_and_what_is_not_kept_is_said() -> None:
    given_call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    row = {
        "messages": [
            *turns("user: Hi"),
            {"role": "assistant", "content": None, "tool_calls": [given_call]},
            {"role": "tool", "content": "3", "tool_call_id": "c1"},
            *turns("assistant: 3"),
        ]
    }
    got = convert("messages", row)
    assert defects(got) == {D.EXTRA_FIELDS}
    assert said(got)[1] == Message("assistant", "", 1.0, ({**call("add", a=1), "id": "c1"},))


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"content": [{"type": "image_url", "image_url": {}}]}, {D.NOT_TEXT, D.EMPTY_ANSWER}),
        ({"loss_weight": 0}, {D.NOTHING_TRAINED}),
        ({"loss_weight": "heavy"}, {D.WRONG_COLUMNS}),
        ({"weight": -1}, {D.WRONG_COLUMNS}),
        ({"weight": True}, {D.WRONG_COLUMNS}),
        ({"weight": 10**400}, {D.WRONG_COLUMNS}),
        ({"tool_calls": "add"}, {D.TOOL_CALL}),
        ({"role": ["assistant"]}, {D.WRONG_COLUMNS, D.ONE_TURN, D.NO_ANSWER, D.NOTHING_TRAINED}),
    ],
)
def test_an_answer_that_cannot_be_trained_is_refused(change: dict[str, Any], found: set[Defect]) -> None:
    got = convert("messages", {"messages": [*turns("user: Hi"), {"role": "assistant", "content": "Hello", **change}]})
    assert defects(got) == found
    assert not got.items


def test_a_weight_on_a_user_turn_is_said_to_be_ignored() -> None:
    got = convert("messages", {"messages": [{"role": "user", "content": "Hi", "loss_weight": 1.0}, *turns("assistant: Hello")]})
    assert defects(got) == {D.USER_WEIGHT}
    assert said(got) == (U("Hi"), A("Hello"))


@pytest.mark.parametrize(
    ("text", "defect"),
    [
        ("bell\x07", D.CONTROL),
        ("a\x85b", D.CONTROL),
        ("\ufeffstart", D.ZERO_WIDTH),
        ("lost \ufffd", D.REPLACEMENT),
        ("a &lt; b", D.HTML_ENTITY),
        ("&#39;", D.HTML_ENTITY),
        ("the end.</s>", D.TEMPLATE_TOKEN),
        ("<|im_end|>", D.TEMPLATE_TOKEN),
        ("[INST] go", D.TEMPLATE_TOKEN),
        ("tab\tand\r\nline", None),
        ("👩\u200d💻 and می\u200cخواهم", None),
        ("AT&T; a<b; list[int]; a || b; <s3>", None),
    ],
)
def test_what_is_invisible_or_left_over_in_a_text_is_noted_and_kept(text: str, defect: Defect | None) -> None:
    got = convert("messages", {"messages": [{"role": "user", "content": text}, *turns("assistant: Hello")]})
    assert defects(got) == ({defect} if defect else set())
    assert said(got)[0].text == text


@pytest.mark.parametrize("name", EXAMPLES)
def test_half_a_surrogate_pair_anywhere_is_refused_because_no_file_can_hold_it(name: str) -> None:
    got = convert(name, {**EXAMPLES[name][0], "note": ["fine", {"k": "half \ud83d"}]})
    assert defects(got) == {D.ENCODING}
    assert "\\ud83d" in got.flaws[0].detail


@pytest.mark.parametrize("label", [None, 1, "true"])
def test_a_label_that_is_not_a_boolean_is_refused_and_never_read_as_a_chat_without_one(label: Any) -> None:
    row = {"messages": turns("user: Hi", "assistant: Hello"), "label": label}
    assert detect([row], "f").format.name == "kto"
    assert defects(convert("kto", row)) == {D.WRONG_COLUMNS}


def test_prompt_and_completion_may_be_labelled_and_may_be_messages() -> None:
    row = {"prompt": turns("user: Hi"), "completion": turns("assistant: Hello"), "label": True}
    assert detect([row], "f").format.name == "kto"
    (item,) = convert("kto", row).items
    assert isinstance(item, Conversation)
    assert (item.messages, item.label) == ((U("Hi"), A("Hello")), True)


# --- instructions --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "found", "asked"),
    [
        ({"input": "<noinput>"}, {D.PLACEHOLDER_INPUT}, "Do."),
        ({"input": "N/A"}, {D.PLACEHOLDER_INPUT}, "Do."),
        ({"input": None}, set(), "Do."),
        ({"input": "www.example.org/cat"}, {D.LINK_INPUT}, "Do.\n\nwww.example.org/cat"),
        ({"input": "[image of a cat]"}, {D.LINK_INPUT}, "Do.\n\n[image of a cat]"),
        ({"input": "see www.example.org"}, set(), "Do.\n\nsee www.example.org"),
        ({"output": "<nooutput>"}, {D.PLACEHOLDER_ANSWER}, None),
        ({"output": "none."}, {D.PLACEHOLDER_ANSWER}, None),
        ({"output": "none of them"}, set(), "Do."),
        ({"output": ""}, {D.EMPTY_ANSWER}, None),
        ({"output": True}, {D.NOT_TEXT}, None),
        ({"output": "Input: 3"}, {D.SCAFFOLDING}, "Do."),
        ({"instruction": " "}, {D.EMPTY_TURN}, None),
        ({"history": [["a"]]}, {D.WRONG_COLUMNS}, None),
        ({"history": [["a", ""]]}, {D.EMPTY_TURN}, None),
    ],
)
def test_an_instruction_is_repaired_or_refused_knowingly(change: dict[str, Any], found: set[Defect], asked: str | None) -> None:
    got = convert("alpaca", {"instruction": "Do.", "input": "", "output": "Done.", **change})
    assert defects(got) == found
    assert (said(got)[0].text if got.items else None) == asked


def test_dolly_names_are_read() -> None:
    row = {"instruction": "Who?", "context": "Ann came.", "response": "Ann.", "category": "qa"}
    assert detect([row], "f").format.name == "alpaca"
    assert said(convert("alpaca", row)) == (U("Who?\n\nAnn came."), A("Ann."))


# --- preferences ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chosen", "rejected", "found"),
    [
        ("\n\nHuman: Hi\n\nAssistant: Yes", "\n\nHuman: Hi\n\nAssistant: Yes", {D.IDENTICAL}),
        ("\n\nHuman: Hi\n\nAssistant: Yes.", "\n\nHuman: Hi\n\nAssistant: yes!", {D.NEARLY_IDENTICAL}),
        ("\n\nHuman: Hi\n\nAssistant: Yes", "\n\nHuman: Ho\n\nAssistant: No", {D.DIFFERENT_PROMPTS}),
        ("\n\nHuman: Hi\n\nAssistant: A\n\nHuman: b\n\nAssistant: c", "\n\nHuman: Hi\n\nAssistant: B", {D.DIFFERENT_PROMPTS}),
        ("\n\nHuman: Hi\n\nAssistant: ", "\n\nHuman: Hi\n\nAssistant: No", {D.EMPTY_ANSWER}),
        ("\n\nHuman: Hi\n\nAssistant: A\n\nHuman: b", "\n\nHuman: Hi\n\nAssistant: A\n\nHuman: c", {D.NO_ANSWER}),
        ("\n\nHuman: Hi\n\nHuman: Ho\n\nAssistant: A", "\n\nHuman: Hi\n\nHuman: Ho\n\nAssistant: B", {D.ROLE_BREAK}),
        ("\n\nHuman: Hi\n\nAssistant: Human: A", "\n\nHuman: Hi\n\nAssistant: B", {D.ROLE_MARKER}),
        ("Hi", "\n\nHuman: Hi\n\nAssistant: B", {D.WRONG_COLUMNS, D.EMPTY_CONVERSATION, D.DIFFERENT_PROMPTS, D.EMPTY_ANSWER}),
        (3, "\n\nHuman: Hi\n\nAssistant: B", {D.NOT_TEXT, D.WRONG_COLUMNS, D.EMPTY_CONVERSATION, D.DIFFERENT_PROMPTS, D.EMPTY_ANSWER}),
    ],
)
def test_transcripts_are_compared_or_refused_knowingly(chosen: Any, rejected: Any, found: set[Defect]) -> None:
    got = convert("hh_rlhf", {"chosen": chosen, "rejected": rejected})
    assert defects(got) == found
    assert bool(got.items) == (found <= {D.NEARLY_IDENTICAL, D.ROLE_MARKER})


@pytest.mark.parametrize(
    ("one", "other", "nearly"),
    [
        ("You're welcome!", "you\u2019re welcome.", True),
        ("好的，再见。", "好的 再见", True),
        ("कि", "का", False),
        ("3 cats", "4 cats", False),
        ("a_b", "ab", True),
    ],
)
def test_answers_that_differ_only_in_punctuation_or_case_are_noted(one: str, other: str, nearly: bool) -> None:
    got = convert("preferences", {"prompt": "Hi", "chosen": one, "rejected": other})
    assert defects(got) == ({D.NEARLY_IDENTICAL} if nearly else set())
    assert len(got.items) == 1


def test_a_transcript_is_split_only_after_a_blank_line_and_loses_one_space_a_turn() -> None:
    side = "\n\nHuman: Play\nAssistant: me\n\nAssistant:  Hm.\nHuman: eh \n\nHuman:go\n\nAssistant: "
    got = pair(convert("hh_rlhf", {"chosen": side + "a", "rejected": side + "b"}))
    assert [m.text for m in got.prompt] == ["Play\nAssistant: me", " Hm.\nHuman: eh ", "go"]


def test_transcripts_with_headed_markers_are_read() -> None:
    texts = [f"## Human:\nWhy?\n\nHuman: no marker here\n\n## Assistant:\n{answer}" for answer in ("So.", "No.", "Well.")]
    got = convert("ranked_transcripts", {"text": texts, "score": [1, -1, 0]})
    assert pair(got).prompt == (U("Why?\n\nHuman: no marker here"),)
    assert (pair(got).chosen, pair(got).rejected, pair(got).margin) == (A("So."), A("No."), 2.0)
    assert D.UNUSED in defects(got)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi", "chosen": turns("user: Hi", "assistant: Yes"), "rejected": turns("user: Hi", "assistant: No")},
        {"prompt": turns("user: Hi"), "chosen": turns("user: Hi", "assistant: Yes"), "rejected": turns("user: Hi", "assistant: No")},
        {"prompt": turns("user: Hi"), "chosen": turns("assistant: Yes"), "rejected": turns("assistant: No")},
        {"chosen": turns("user: Hi", "assistant: Yes"), "rejected": turns("user: Hi", "assistant: No")},
        {"question": "Hi", "chosen": "Yes", "rejected": "No"},
        {"instruction": "Hi", "input": "", "chosen": "Yes", "rejected": "No"},
        {"prompt": "Hi", "chosen": {"role": "assistant", "content": "Yes"}, "rejected": "No"},
        {
            "prompt": "Hi",
            "chosen": turns("user: Hi", "assistant: Yes"),
            "rejected": turns("user: Hi", "assistant: No"),
            "messages": turns("user: Hi", "assistant: Yes"),
        },
    ],
)
def test_a_pair_may_be_texts_messages_or_conversations_that_repeat_the_prompt(row: dict[str, Any]) -> None:
    assert detect([row], "f").format.name == "preferences"
    got = convert("preferences", row)
    assert got.flaws == ()
    assert fields(pair(got)) | {"id": ""} == fields(Preference("", (U("Hi"),), A("Yes"), A("No")))


@pytest.mark.parametrize("stated", [{"system": "Be kind."}, {"system": "Be kind.", "prompt": turns("user: Hi")}])
def test_a_stated_system_message_is_kept_when_both_sides_repeat_the_prompt(stated: dict[str, Any]) -> None:
    sides = {"chosen": turns("user: Hi", "assistant: Yes"), "rejected": turns("user: Hi", "assistant: No")}
    assert pair(convert("preferences", {"prompt": "Hi", **stated, **sides})).prompt == (S("Be kind."), U("Hi"))
    for repeated, found in (("system: Be kind.", set()), ("system: Be harsh.", {D.DIFFERENT_PROMPTS})):
        row = {**stated, **{side: [*turns(repeated), *said] for side, said in sides.items()}}
        assert defects(convert("preferences", row)) == found


def test_tools_as_json_text_are_read_beside_instructions_and_completions() -> None:
    tools = {"tools": json.dumps([{"name": "add"}])}
    for name, row in (("alpaca", {"instruction": "Hi", "output": "Ho"}), ("prompt_completion", {"prompt": "Hi", "completion": "Ho"})):
        assert convert(name, {**row, **tools}).items[0].meta == {"tools": [{"name": "add"}]}
        assert defects(convert(name, {**row, "tools": "none"})) == {D.WRONG_COLUMNS}


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"prompt": "Ho", "chosen": turns("user: Hi", "assistant: Yes"), "rejected": turns("user: Hi", "assistant: No")}, {D.DIFFERENT_PROMPTS}),
        ({"chosen": turns("user: Hi", "assistant: Yes")}, {D.DIFFERENT_PROMPTS}),
        ({"chosen": turns("user: Yes")}, {D.NO_ANSWER}),
        ({"chosen": []}, {D.EMPTY_ANSWER}),
        ({"chosen": None}, {D.NOT_TEXT}),
        ({"chosen": "No"}, {D.IDENTICAL}),
        ({"score_chosen": 2, "score_rejected": 2.0}, {D.EQUAL_SCORES}),
        ({"score_chosen": 1, "score_rejected": 2}, {D.REVERSED}),
        ({"margin": "much"}, {D.WRONG_COLUMNS}),
        ({"margin": float("nan")}, {D.WRONG_COLUMNS}),
        ({"prompt": ""}, {D.EMPTY_TURN}),
        ({"prompt": None}, {D.EMPTY_CONVERSATION}),
        ({"prompt": turns("user: Hi", "assistant: Ho")}, {D.ROLE_BREAK}),
    ],
)
def test_a_pair_that_proves_nothing_is_refused_or_said_to(change: dict[str, Any], found: set[Defect]) -> None:
    got = convert("preferences", {"prompt": "Hi", "chosen": "Yes", "rejected": "No", **change})
    assert found <= defects(got)
    assert bool(got.items) == (found == {D.EQUAL_SCORES})


def test_a_row_of_a_stated_margin_keeps_it_before_the_difference_of_scores() -> None:
    got = convert("preferences", {"prompt": "Hi", "chosen": "Yes", "rejected": "No", "margin": 0.25, "score_chosen": 9, "score_rejected": 1})
    assert pair(got).margin == 0.25
    assert pair(got).meta == {"score_chosen": 9, "score_rejected": 1}


@pytest.mark.parametrize(
    ("preference", "winner", "found"),
    [
        (1, "output_1", set()),
        (2.0, "output_2", set()),
        (1.5, None, {D.TIE}),
        (None, None, {D.TIE}),
        (0, None, {D.TIE}),
        (3, None, {D.WRONG_COLUMNS}),
        ("x", None, {D.WRONG_COLUMNS, D.TIE}),
    ],
)
def test_the_preferred_output_is_chosen_by_a_margin_of_certainty(preference: Any, winner: str | None, found: set[Defect]) -> None:
    row = {"instruction": "Hi", "output_1": "One", "output_2": "Two", "preference": preference}
    got = convert("alpaca_eval", row)
    assert defects(got) == found
    if winner:
        assert (pair(got).chosen.text, pair(got).margin) == (row[winner], 1.0)


@pytest.mark.parametrize(
    ("votes", "winner", "margin", "found"),
    [
        ((1, 1, 1), "One", 3.0, set()),
        ((2, 0, 2), "Two", 2.0, set()),
        ((2, 1, 2), "Two", 1.0, set()),
        ((0, 1, 0), None, None, {D.TIE}),
        ((0, 1, 2), None, None, {D.TIE}),
        ((1, 1, True), None, None, {D.WRONG_COLUMNS}),
        ((1, 1, None), None, None, {D.WRONG_COLUMNS}),
    ],
)
def test_the_majority_of_three_votes_chooses(votes: tuple[Any, ...], winner: str | None, margin: float | None, found: set[Defect]) -> None:
    row = {"instruction": "Hi", "response1": "One", "response2": "Two"} | {f"annotator{i}": vote for i, vote in enumerate(votes, 1)}
    got = convert("pandalm", row)
    assert defects(got) == found
    assert ((pair(got).chosen.text, pair(got).margin) if got.items else (None, None)) == (winner, margin)


def test_a_response_that_is_a_boolean_is_refused_as_such() -> None:
    row = {"instruction": "Hi", "response1": True, "response2": "True.", "annotator1": 1, "annotator2": 1, "annotator3": 1}
    assert defects(convert("pandalm", row)) == {D.NOT_TEXT}


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ({"text": ["a"], "score": [1, 2]}, {D.WRONG_COLUMNS}),
        ({"text": ["a", "b"], "score": [1, "2"]}, {D.WRONG_COLUMNS}),
        ({"text": ["a", "b"], "score": [1, 1.0]}, {D.TIE}),
        ({"text": ["a"], "score": [1]}, {D.ONE_ANSWER}),
        ({"text": None, "score": None}, {D.WRONG_COLUMNS}),
    ],
)
def test_scores_that_make_no_pair_are_refused(row: dict[str, Any], found: set[Defect]) -> None:
    assert format_named("ranked_transcripts").fits(row)
    assert defects(convert("ranked_transcripts", row)) == found


def test_outputs_that_make_no_pair_are_refused() -> None:
    assert defects(convert("alpaca_ranked", {"instruction": "Hi", "output": ["one"]})) == {D.ONE_ANSWER}
    assert defects(convert("alpaca_ranked", {"instruction": "Hi", "output": ["one", "two", "one"]})) == {D.UNUSED, D.IDENTICAL}


def test_completions_without_aspects_are_compared_by_their_overall_score() -> None:
    completions = [{"response": text, "overall_score": score} for text, score in (("a", 3), ("b", 8.5), ("c", None), ("d", 1))]
    got = convert("ultrafeedback", {"instruction": "Hi", "completions": completions})
    assert (pair(got).chosen, pair(got).rejected, pair(got).margin) == (A("b"), A("d"), 7.5)
    assert defects(got) == {D.UNUSED}
    assert defects(convert("ultrafeedback", {"instruction": "Hi", "completions": completions[:1]})) == {D.ONE_ANSWER}
    assert defects(convert("ultrafeedback", {"instruction": "Hi", "completions": [1]})) == {D.WRONG_COLUMNS}


# --- trees ---------------------------------------------------------------------------------------------------------------------------------


def grown(**change: Any) -> dict[str, Any]:
    tree = json.loads(json.dumps(TREE))
    tree["prompt"]["replies"][1].update(change)
    return tree


def test_a_tree_says_what_its_one_path_leaves_out() -> None:
    got = convert("oasst", TREE)
    details = {flaw.defect: flaw.detail for flaw in got.flaws}
    assert details == {D.UNUSED: "2 of 6 messages are not on the path of the best replies", D.SYNTHETIC: "turn 4"}


def test_a_deleted_reply_is_left_out_with_all_below_it() -> None:
    for change in ({"deleted": True}, {"review_result": False}):
        got = convert("oasst", grown(**change))
        assert [m.text for m in said(got)] == ["Name a tree.", "A stone."]
        assert defects(got) == {D.PART_LEFT_OUT}
        assert defects(convert("oasst_preferences", grown(**change))) == {D.PART_LEFT_OUT, D.ONE_ANSWER}


def test_a_pair_that_cannot_be_used_is_left_out_and_the_others_stay() -> None:
    tree = grown()
    answers = [{"message_id": f"n{i}", "role": "assistant", "text": text, "rank": i, "replies": []} for i, text in enumerate(("Ash.", "Ash."))]
    tree["prompt"]["replies"][1]["replies"][0]["replies"] = answers
    got = convert("oasst_preferences", tree)
    assert [item.id for item in got.items] == ["m1"]
    assert [flaw.detail for flaw in got.flaws] == ["the replies to m4: chosen and rejected are identical ('Ash.')"]


@pytest.mark.parametrize(
    "root",
    [None, {"role": "prompter", "text": "Hi", "replies": []}, {"role": "prompter", "text": "Hi", "replies": 3}, {**TREE["prompt"], "deleted": True}],
)
def test_a_tree_without_an_answer_is_refused(root: Any) -> None:
    for name in ("oasst", "oasst_preferences"):
        got = convert(name, {"message_tree_id": "t", "prompt": root})
        assert not got.items
        assert [d for d in defects(got) if VERDICTS[d] is Verdict.REJECT]


def chain(depth: int) -> dict[str, Any]:
    """A tree of `depth` messages, each with one reply."""
    node: dict[str, Any] = {"role": "assistant", "text": "end", "replies": []}
    for i in range(depth - 1):
        node = {"role": "assistant" if i % 2 else "prompter", "text": "x", "replies": [node]}
    return {"message_tree_id": "t", "prompt": node}


def test_a_deep_tree_is_read_to_its_end_and_one_that_no_file_can_hold_is_refused() -> None:
    assert len(said(convert("oasst", chain(150)))) == 150
    got = convert("oasst", chain(3000))
    assert [str(flaw.detail) for flaw in got.flaws] == ["nested deeper than 400 levels"]


# --- prompts and answers -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("final", "answer", "found"),
    [
        ("1,080", "1080", {D.THOUSANDS_COMMA}),
        ("-7", "-7", {D.NEGATIVE_ANSWER}),
        ("3.5", "3.5", set()),
        ("Mrs. Hill", "Mrs. Hill", {D.NOT_A_NUMBER}),
        ("", "", {D.NOT_A_NUMBER}),
        ("1,08", "1,08", {D.NOT_A_NUMBER}),
    ],
)
def test_the_final_answer_is_one_number_without_commas(final: str, answer: str, found: set[Defect]) -> None:
    got = convert("gsm8k", {"question": "How many?", "answer": f"Because.\n#### {final}"})
    assert defects(got) == found
    assert got.items[0].meta["answer"] == answer


@pytest.mark.parametrize(
    ("row", "meta"),
    [
        ({"prompt": "Hi"}, {}),
        ({"prompt": "Hi", "ground_truth": "x"}, {"answer": "x"}),
        ({"problem": "Hi", "answer": [1, 2.5, "x"]}, {"answer": ["1", "2.5", "x"]}),
        ({"question": "Hi", "answer": 12}, {"answer": "12"}),
        ({"messages": turns("user: Hi"), "ground_truth": "x"}, {"answer": "x"}),
        ({"prompt": "Hi", "reference": "long", "meta": {"answer": "y", "tag": 1}}, {"reference": "long", "answer": "y", "tag": 1}),
    ],
)
def test_a_prompt_keeps_its_reference_answer_aside(row: dict[str, Any], meta: dict[str, Any]) -> None:
    assert detect([row], "f").format.name == "prompts"
    got = convert("prompts", row)
    assert (said(got), got.items[0].meta, got.flaws) == ((U("Hi"),), meta, ())


@pytest.mark.parametrize("prompt", [None, 3, [], turns("user: Hi", "assistant: Ho"), turns("system: Hi")])
def test_a_prompt_that_does_not_end_with_the_user_is_refused(prompt: Any) -> None:
    assert format_named("prompts").fits({"prompt": prompt})
    assert not convert("prompts", {"prompt": prompt}).items


@pytest.mark.parametrize("ideal", [None, 3, [], ["a", 3], {"a": 1}])
def test_an_ideal_answer_that_is_no_text_is_refused(ideal: Any) -> None:
    assert defects(convert("openai_evals", {"input": "Hi", "ideal": ideal})) == {D.NOT_TEXT}


@pytest.mark.parametrize(
    ("row", "answer", "found"),
    [
        ({"question": "Q", "choices": ["x", "y"], "answer": 1}, "B", set()),
        ({"question": {"stem": "Q", "choices": [{"label": "A", "text": "x"}, {"label": "B", "text": "y"}]}, "answerKey": "A"}, "A", set()),
        ({"stem": "Q", "choices": {"A": "x", "B": "y"}, "answer": "B"}, "B", set()),
        ({"stem": "Q", "choices": {"A": "x", "B": "X "}, "answer": "B"}, None, {D.DUPLICATE_CHOICES}),
        ({"stem": "Q", "choices": {"A": "x", "B": "y"}, "answer": "C"}, None, {D.WRONG_COLUMNS}),
        ({"stem": "Q", "choices": "x or y", "answer": "x"}, None, {D.WRONG_COLUMNS}),
        ({"stem": "Q", "choices": ["x", 2], "answer": 0}, None, {D.NOT_TEXT}),
    ],
)
def test_choices_are_lettered_in_each_of_their_shapes(row: dict[str, Any], answer: str | None, found: set[Defect]) -> None:
    assert detect([row], "f").format.name == "choices"
    got = convert("choices", row)
    assert defects(got) == found
    if answer:
        assert said(got) == (U("Q\nA. x\nB. y"),)
        assert got.items[0].meta["answer"] == answer


# --- laws ----------------------------------------------------------------------------------------------------------------------------------


def test_a_native_row_that_was_edited_into_a_flaw_gets_the_flaws_name() -> None:
    row = conversation_to_json(ONE)
    assert defects(convert("xwin", {**row, "messages": turns("user: Hi", "user: Hi", "assistant: Ho")})) == {D.ROLE_BREAK}
    assert defects(convert("xwin", {**row, "label": "yes"})) == {D.WRONG_COLUMNS}
    two = preference_to_json(TWO)
    assert defects(convert("xwin_preferences", {**two, "rejected": two["chosen"]})) == {D.IDENTICAL}
    assert defects(convert("xwin_preferences", {**two, "meta": 3})) == {D.WRONG_COLUMNS}


def test_a_native_prompt_is_a_prompt() -> None:
    row = conversation_to_json(Conversation("c", (U("Hi"),), meta={"answer": "4"}))
    assert detect([row], "f").format.name == "xwin"
    assert said(convert("xwin", row)) == (U("Hi"),)


def test_a_native_chat_that_was_cut_off_is_refused_and_a_prompt_of_several_turns_with_a_reference_is_not() -> None:
    row = conversation_to_json(Conversation("c", (U("Hi"), A("Ho"), U("And?"))))
    assert defects(convert("xwin", row)) == {D.NO_ANSWER}
    assert len(said(convert("xwin", {**row, "meta": {"answer": "4"}}))) == 3


def test_fields_of_a_native_turn_that_are_not_used_are_noted() -> None:
    got = convert("xwin", {"id": "c", "messages": [{"role": "user", "content": "Hi", "name": "Ann"}, {"role": "assistant", "content": "Ho"}]})
    assert said(got) == (U("Hi"), A("Ho"))
    assert [(flaw.defect, flaw.detail) for flaw in got.flaws] == [(D.EXTRA_FIELDS, "turn 1 (user): 'name'")]


WORDS = sorted(
    {key for row, _ in EXAMPLES.values() for key in re.findall(r'"(\w+)":', json.dumps(row))} | {"value", "weight", "tool_calls", "tools", "stem"}
)
TEXTS = st.one_of(
    st.text(max_size=6),
    st.sampled_from(
        [
            "user",
            "assistant",
            "system",
            "tool",
            "function_call",
            "\n\nHuman: a\n\nAssistant: b",
            '{"name": "f", "arguments": {}}',
            "#### 1,0",
            "\ud800",
        ]
    ),
)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.just(10**400), st.floats(), TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.one_of(st.sampled_from(WORDS), st.text(max_size=3)), inner, max_size=5)),
    max_leaves=12,
)


def check_law(row: Any) -> None:
    """Every format gives items that can be written and read again, or a flaw that says why not; and never both."""
    for form in FORMATS:
        reason = form.fits(row)
        assert reason is None or reason
        got = form.convert(row)
        refused = [d for d in defects(got) if VERDICTS[d] is Verdict.REJECT]
        assert bool(got.items) != bool(refused), (form.name, got)
        assert len(got.flaws) == len(defects(got))
        for flaw in got.flaws:
            assert "\n" not in flaw.detail
            flaw.detail.encode()
        for item in got.items:
            made = conversation_to_json(item) if isinstance(item, Conversation) else preference_to_json(item)
            again = json.loads(json.dumps(made, ensure_ascii=False).encode())
            read = conversation_from_json(again, form.name) if isinstance(item, Conversation) else preference_from_json(again, form.name)
            assert read.id == item.id
            assert isinstance(item, Preference) == (form.makes is Makes.PREFERENCES)
    try:
        detect([row], "fuzz")
    except DataError:
        assert not any(form.fits(row) for form in FORMATS)


@given(JSON)
def test_any_json_value_gives_items_or_flaws_and_never_an_exception(row: Any) -> None:
    check_law(row)


@given(st.sampled_from(sorted(EXAMPLES)), st.data())
def test_a_good_row_with_one_value_replaced_gives_items_or_flaws_and_never_an_exception(name: str, data: st.DataObject) -> None:
    row = json.loads(json.dumps(EXAMPLES[name][0]))
    holder = row
    for _ in range(data.draw(st.integers(0, 4))):
        inner = [v for v in (holder.values() if isinstance(holder, dict) else holder) if isinstance(v, dict | list) and v]
        if inner:
            holder = data.draw(st.sampled_from(inner))
    key = data.draw(st.sampled_from(sorted(holder) if isinstance(holder, dict) else range(len(holder))))
    holder[key] = data.draw(JSON)
    check_law(row)
