"""The published files people have: which format they are, how many rows and items they give, which defects they have.

Pinned defect counts were read off the converters and then checked twice: the flagged rows of the small counts by reading them, and all that a
simple rule can find by the second counts of this file, which look at the raw rows and share no code with the converters.
"""

import json
import re
import unicodedata
from collections.abc import Callable
from typing import Any

import pytest
from data.published import DATA, converted, rows_of, texts

from xwin.data.conversation import Conversation, conversation_from_json, conversation_to_json, preference_from_json, preference_to_json
from xwin.data.defects import VERDICTS, Defect, Flaw, Verdict
from xwin.data.formats import Makes, detect, format_named

D = Defect
ULTRAFEEDBACK = {
    D.EQUAL_SCORES: 50,
    D.EMPTY_ANSWER: 2,
    D.IDENTICAL: 1,
    D.NEARLY_IDENTICAL: 1,
    D.ZERO_WIDTH: 2,
    D.TEMPLATE_TOKEN: 2,
    D.REPLACEMENT: 1,
}
PUBLISHED: dict[str, tuple[str, int, int, dict[Defect, int]]] = {  # file: format, rows, items, rows with each defect
    "alpaca.json": ("alpaca", 500, 500, {D.PLACEHOLDER_INPUT: 11, D.LINK_INPUT: 3, D.SCAFFOLDING: 1}),
    "alpaca_eval_annotations.json": ("alpaca_eval", 300, 299, {D.TIE: 1, D.IDENTICAL: 1, D.HTML_ENTITY: 2}),
    "alpaca_ranked_history_zh.json": ("alpaca_ranked", 300, 298, {D.UNUSED: 124, D.IDENTICAL: 2, D.NEARLY_IDENTICAL: 1}),
    "gsm8k.jsonl": ("gsm8k", 500, 500, {D.THOUSANDS_COMMA: 4}),
    "gsm8k.parquet": ("gsm8k", 500, 500, {D.THOUSANDS_COMMA: 4}),
    "hh_rlhf.jsonl": ("hh_rlhf", 500, 498, {D.ROLE_MARKER: 11, D.NEARLY_IDENTICAL: 2, D.EMPTY_ANSWER: 2}),
    "kto_messages.json": ("kto", 300, 300, {D.TEMPLATE_TOKEN: 2, D.HTML_ENTITY: 1, D.CONTROL: 1}),
    "messages.parquet": ("messages", 500, 500, {D.ZERO_WIDTH: 1}),
    "oasst_trees.jsonl": ("oasst", 100, 100, {D.UNUSED: 100, D.SYNTHETIC: 5}),
    "openai_evals.jsonl": ("openai_evals", 500, 500, {}),
    "openai_messages.jsonl": ("messages", 500, 500, {D.ZERO_WIDTH: 1}),
    "openai_messages_small.jsonl": ("messages", 128, 128, {}),
    "pandalm_votes.json": ("pandalm", 300, 239, {D.TIE: 58, D.EMPTY_ANSWER: 5, D.NEARLY_IDENTICAL: 6}),
    "preference_messages.jsonl": ("preferences", 87, 87, {D.NEARLY_IDENTICAL: 1, D.ZERO_WIDTH: 1}),
    "sharegpt.json": (
        "sharegpt",
        500,
        418,
        {
            D.EMPTY_CONVERSATION: 26,
            D.ASSISTANT_FIRST: 158,
            D.ONE_TURN: 29,
            D.NOTHING_TRAINED: 31,
            D.ROLE_BREAK: 13,
            D.EMPTY_TURN: 19,
            D.EMPTY_ANSWER: 2,
            D.NO_ANSWER: 10,
            D.RENAMED_ROLE: 1,
            D.ZERO_WIDTH: 4,
            D.CONTROL: 1,
            D.REPLACEMENT: 1,
        },
    ),
    "sharegpt_preference.json": ("sharegpt_preferences", 278, 278, {D.CONTROL: 2, D.ZERO_WIDTH: 1, D.HTML_ENTITY: 2}),
    "sharegpt_preference_strings_zh.jsonl": ("sharegpt_preferences", 250, 250, {D.REPLACEMENT: 4}),
    "sharegpt_tools.json": ("sharegpt", 300, 300, {}),
    "text_score_ranked.json": (
        "ranked_transcripts",
        500,
        497,
        {D.EMPTY_TURN: 1, D.EMPTY_ANSWER: 1, D.ROLE_BREAK: 2, D.DIFFERENT_PROMPTS: 2, D.ROLE_MARKER: 4},
    ),
    "typed_content_messages.jsonl": ("messages", 500, 500, {}),
    "typed_content_tools.jsonl": ("messages", 50, 50, {}),
    "ultrafeedback_binarized.parquet": ("preferences", 500, 497, ULTRAFEEDBACK),
    "ultrafeedback_flat.jsonl": ("preferences", 500, 497, ULTRAFEEDBACK),
    "ultrafeedback_raw_one_row.json": ("ultrafeedback", 1, 0, {D.ONE_ANSWER: 1}),
    "vicuna_conversations.json": ("sharegpt", 500, 500, {}),
}


def rows(name: str) -> list[Any]:
    found = rows_of(name)
    return found if isinstance(found, list) else [found]


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_file_is_recognised_and_its_defects_are_counted(name: str) -> None:
    form, count, items, defects = PUBLISHED[name]
    found = rows(name)
    assert len(found) == count
    detected = detect(found[:100], name)
    assert detected.format.name == form
    assert "has " in detected.reason
    assert all(detected.format.fits(row) for row in found)
    got, flawed, empty = converted(detected.format, found)
    assert dict(flawed) == defects
    assert len(got) == items
    assert empty == count - items, "these formats give one item a row"


def test_row_counts_are_those_of_the_readme() -> None:
    if not (DATA / "README.md").exists():
        pytest.skip(f"needs {DATA}/README.md; set XWIN_TEST_DATA")
    stated = re.findall(r"^\| (\S+) \| (\d+) \| \d+ \|", (DATA / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    counts = {name: int(count) for name, count in stated if name != "defects.jsonl"}
    assert counts == {name: count for name, (_, count, _, _) in PUBLISHED.items()}


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_item_of_a_published_file_is_a_row_of_the_native_format(name: str) -> None:
    found = rows(name)
    items, _, _ = converted(format_named(PUBLISHED[name][0]), found)
    for item in items:
        if isinstance(item, Conversation):
            row = json.loads(json.dumps(conversation_to_json(item)))
            assert conversation_from_json(row, name) == item
            assert format_named("xwin").convert(row).items == (item,)
        else:
            row = json.loads(json.dumps(preference_to_json(item)))
            assert preference_from_json(row, name) == item
            assert format_named("xwin_preferences").convert(row).items == (item,)


def test_the_trees_give_a_pair_for_each_prompt_with_two_ranked_replies() -> None:
    """212 by a second count: prompts of which at least two replies have a rank, 92 of them with more than two."""
    trees = rows("oasst_trees.jsonl")
    items, flawed, _ = converted(format_named("oasst_preferences"), trees)
    waiting = [tree["prompt"] for tree in trees]
    ranked = []
    while waiting:
        node = waiting.pop()
        waiting += node["replies"]
        ranked.append(sum(reply.get("rank") is not None for reply in node["replies"]))
    assert len(items) == sum(n > 1 for n in ranked) == 212
    assert dict(flawed) == {D.UNUSED: 93, D.SYNTHETIC: 5, D.HTML_ENTITY: 1, D.NEARLY_IDENTICAL: 1}


# --- second counts -------------------------------------------------------------------------------------------------------------------------


def pattern(row: Any) -> str:
    """Speakers of a sharegpt row as letters, small where the turn holds nothing to see."""
    letters = {"human": "H", "gpt": "G", "bing": "G", "system": "S"}
    return "".join(letters[t["from"]] if t["value"].strip(" \n\t\r\u200b") else letters[t["from"]].lower() for t in row["conversations"])


def sharegpt(expression: str) -> Callable[[Any], bool]:
    """Whether the speakers of a row match, once a system turn and then the assistant's first turns are off."""
    return lambda row: bool(re.search(expression, re.sub("^S?G*", "", pattern(row), flags=re.IGNORECASE)))


def majority(row: Any) -> int:
    votes = sorted(row[f"annotator{i}"] for i in (1, 2, 3))
    return votes[1] if votes[1] in (votes[0], votes[2]) else 0


def unmarked(text: str) -> bool:
    return any(text.count(f"{who}:") > text.count(f"\n\n{who}:") for who in ("Human", "Assistant"))


SECOND: dict[str, dict[Defect, Callable[[Any], Any]]] = {
    "alpaca.json": {
        D.PLACEHOLDER_INPUT: lambda r: re.sub("[^a-z]", "", r["input"].lower()) in {"noinput", "none", "na"},
        D.LINK_INPUT: lambda r: r["input"].startswith(("http", "www")) and len(r["input"].split()) == 1,
        D.SCAFFOLDING: lambda r: any(word in r["output"] for word in ("Instruction:", "Input:", "Output:")),
    },
    "alpaca_eval_annotations.json": {D.TIE: lambda r: r["preference"] == 1.5, D.IDENTICAL: lambda r: r["output_1"] == r["output_2"]},
    "alpaca_ranked_history_zh.json": {D.UNUSED: lambda r: len(r["output"]) > 2, D.IDENTICAL: lambda r: r["output"][0] == r["output"][-1]},
    "gsm8k.jsonl": {D.THOUSANDS_COMMA: lambda r: "," in r["answer"].split("\n")[-1]},
    "hh_rlhf.jsonl": {
        D.ROLE_MARKER: lambda r: unmarked(r["chosen"]) or unmarked(r["rejected"]),
        D.EMPTY_ANSWER: lambda r: any(r[side].rstrip().endswith("\n\nAssistant:") for side in ("chosen", "rejected")),
    },
    "pandalm_votes.json": {D.TIE: lambda r: majority(r) == 0, D.EMPTY_ANSWER: lambda r: not r["response1"].strip() or not r["response2"].strip()},
    "sharegpt.json": {
        D.EMPTY_CONVERSATION: lambda r: not r["conversations"],
        D.ASSISTANT_FIRST: lambda r: re.match("S?G", pattern(r), re.IGNORECASE),
        D.ONE_TURN: lambda r: len(r["conversations"]) == 1,
        D.NOTHING_TRAINED: lambda r: r["conversations"] and not re.search("H.*G", pattern(r), re.IGNORECASE),
        D.ROLE_BREAK: sharegpt("(?i)hh|gg"),
        D.EMPTY_TURN: sharegpt("h|g."),
        D.EMPTY_ANSWER: sharegpt("g$"),
        D.NO_ANSWER: lambda r: r["conversations"] and pattern(r)[-1] not in "Gg",
        D.RENAMED_ROLE: lambda r: any(t["from"] not in {"human", "gpt", "system"} for t in r["conversations"]),
    },
    "text_score_ranked.json": {
        D.ROLE_MARKER: lambda r: any(map(unmarked, r["text"])),
        D.ROLE_BREAK: lambda r: any(re.search(r"\n\n(\w+):(?:(?!\n\n(?:Human|Assistant):).)*\n\n\1:", text, re.DOTALL) for text in r["text"]),
        D.DIFFERENT_PROMPTS: lambda r: len({text.rpartition("\n\nAssistant:")[0] for text in r["text"]}) > 1,
    },
    "ultrafeedback_flat.jsonl": {
        D.EQUAL_SCORES: lambda r: r["metadata"]["score_chosen"] == r["metadata"]["score_rejected"],
        D.EMPTY_ANSWER: lambda r: not r["chosen"].strip(" \n\u200b") or not r["rejected"].strip(" \n\u200b"),
        D.IDENTICAL: lambda r: r["chosen"] == r["rejected"],
    },
}


@pytest.mark.parametrize("name", SECOND)
def test_a_second_count_over_the_raw_rows_finds_the_same(name: str) -> None:
    found = rows(name)
    counts = {defect: sum(map(bool, map(has, found))) for defect, has in SECOND[name].items()}
    assert counts == {defect: PUBLISHED[name][3][defect] for defect in counts}


@pytest.mark.parametrize("name", [name for name in PUBLISHED if not name.startswith(("oasst", "ultrafeedback_raw"))])
def test_invisible_characters_are_found_wherever_a_slow_look_at_each_character_finds_them(name: str) -> None:
    characters = [set().union(*texts(row)) for row in rows(name)]
    kinds = {
        D.CONTROL: lambda c: unicodedata.category(c) == "Cc" and c not in "\t\n\r",
        D.ZERO_WIDTH: lambda c: unicodedata.name(c, "") in {"ZERO WIDTH SPACE", "ZERO WIDTH NO-BREAK SPACE"},
        D.REPLACEMENT: lambda c: unicodedata.name(c, "") == "REPLACEMENT CHARACTER",
    }
    counts = {defect: sum(any(map(sought, seen)) for seen in characters) for defect, sought in kinds.items()}
    assert counts == {defect: PUBLISHED[name][3].get(defect, 0) for defect in kinds}


# --- what the readme of the folder says is wrong -------------------------------------------------------------------------------------------

LABELS = {
    "prompt scaffolding leaked into output": D.SCAFFOLDING,
    "placeholder in input field (none / n/a / noinput)": D.PLACEHOLDER_INPUT,
    "input is only a link or image placeholder": D.LINK_INPUT,
    "placeholder output": D.PLACEHOLDER_ANSWER,
    "empty output": D.EMPTY_ANSWER,
    "empty response": D.EMPTY_ANSWER,
    "empty model output": D.EMPTY_ANSWER,
    "empty final assistant turn": D.EMPTY_ANSWER,
    "control character in text": D.CONTROL,
    "zero-width/BOM character in text": D.ZERO_WIDTH,
    "replacement character U+FFFD in text": D.REPLACEMENT,
    "replacement character U+FFFD": D.REPLACEMENT,
    "HTML entity in text": D.HTML_ENTITY,
    "chat-template or end token leaked into model output": D.TEMPLATE_TOKEN,
    "role alternation break (same speaker twice)": D.ROLE_BREAK,
    "role alternation break": D.ROLE_BREAK,
    "role marker inside a turn without a blank line before it": D.ROLE_MARKER,
    "chosen and rejected differ only in punctuation or case": D.NEARLY_IDENTICAL,
    "chosen equals rejected": D.IDENTICAL,
    "best and worst reply identical": D.IDENTICAL,
    "responses identical but labelled": D.IDENTICAL,
    "tied scores (no preference)": D.TIE,
    "tie": D.TIE,
    "tie (preference 1.5)": D.TIE,
    "equal scores (label is arbitrary)": D.EQUAL_SCORES,
    "response is not a string (JSON true/false/number)": D.NOT_TEXT,
    "final answer has a thousands comma": D.THOUSANDS_COMMA,
    "negative final answer": D.NEGATIVE_ANSWER,
    "answer is not a single number": D.NOT_A_NUMBER,
    "duplicate choice text": D.DUPLICATE_CHOICES,
    "starts with the assistant (a long chat split in parts, id suffix _N)": D.ASSISTANT_FIRST,
    "empty turn": D.EMPTY_TURN,
    "empty conversation": D.EMPTY_CONVERSATION,
    "one turn only": D.ONE_TURN,
    "does not end with the assistant": D.NO_ANSWER,
    "unusual speaker name": D.RENAMED_ROLE,
}
WHOLE: dict[str, Callable[[dict], dict]] = {  # rows that show only the field at fault, put back into their published shape
    "alpaca_eval_v1": lambda row: {"instruction": "Say it.", "output_1": "One.", "output_2": "Two.", "preference": 2} | row,
    "alpaca_eval_v2": lambda row: {"instruction": "Say it.", "output_1": "One.", "output_2": "Two.", "preference": 2} | row,
    "gsm8k": lambda row: row if "answer" in row else {"question": row["question"], "answer": f"#### {row['final']}"},
    "mwp_asdiv": lambda row: {"question": "Who or how many?", "answer": f"#### {row['Answer']}"},
}
FORMATS_OF = {
    "alpaca": "alpaca",
    "dolly": "alpaca",
    "lima": "alpaca",
    "hh_helpful": "hh_rlhf",
    "hh_harmless": "hh_rlhf",
    "webgpt": "ranked_transcripts",
    "ultrafeedback": "preferences",
    "pandalm": "pandalm",
    "autoj": "prompts",
    "style_polite": "preferences",
    "oasst_zh_rm": "alpaca_ranked",
    "alpaca_eval_v1": "alpaca_eval",
    "alpaca_eval_v2": "alpaca_eval",
    "gsm8k": "gsm8k",
    "mwp_asdiv": "gsm8k",
    "csqa": "choices",
    "sharegpt": "sharegpt",
}
CUT = "the text is cut before the fault"
PROMPT_ONLY = "only the prompt is shown, the responses at fault are left out"
UNDECIDABLE = {
    **dict.fromkeys((21, 22, 23, 69, 70, 79, 81, 82, 83, 84, 85, 86, 87, 89, 94, 95, 97, 130, 131, 132), CUT),
    **dict.fromkeys((68, 71), PROMPT_ONLY),
    **dict.fromkeys((120, 122, 124, 125), "the chat is cut before the turn at fault"),
}


def labelled(number: int, entry: dict) -> tuple[Defect, tuple[Flaw, ...], bool]:
    """The defect that a row of defects.jsonl is labelled with, the flaws found in it, and whether items came out."""
    whole = WHOLE.get(entry["source"], lambda row: row)(entry["row"])
    form = format_named(FORMATS_OF[entry["source"]])
    assert form.fits(whole), number
    got = form.convert(whole)
    return LABELS[entry["defect"]], got.flaws, bool(got.items)


def test_every_row_of_the_defects_file_gets_its_label_or_is_cut_too_short() -> None:
    entries = rows("defects.jsonl")
    assert len(entries) == 132
    missed = []
    for number, entry in enumerate(entries, 1):
        expected, flaws, items = labelled(number, entry)
        found = {flaw.defect for flaw in flaws}
        if expected not in found:
            missed.append(number)
        assert not (items and any(VERDICTS[defect] is Verdict.REJECT for defect in found)), number
    assert missed == sorted(UNDECIDABLE)


def test_labels_of_cut_rows_are_found_where_the_fault_is_put_back() -> None:
    """The faults that are cut off in every row of their source: a zero-width space, U+FFFD, an entity or a template token in an output."""
    faults = {D.ZERO_WIDTH: "a\u200bb", D.REPLACEMENT: "a\ufffd", D.HTML_ENTITY: "a &lt; b", D.TEMPLATE_TOKEN: "the end.<|endoftext|>"}
    for number, entry in enumerate(rows("defects.jsonl"), 1):
        defect = LABELS[entry["defect"]]
        if UNDECIDABLE.get(number) != CUT or entry["source"] not in {"lima", "alpaca_eval_v1", "alpaca_eval_v2"}:
            continue
        key = "output_2" if "alpaca_eval" in entry["source"] else "output"
        _, flaws, _ = labelled(number, {**entry, "row": {**entry["row"], key: entry["row"][key] + faults[defect]}})
        assert defect in {flaw.defect for flaw in flaws}


def test_only_prompts_and_answers_make_conversations_without_an_answer() -> None:
    for name, (form, *_) in PUBLISHED.items():
        if format_named(form).makes is Makes.CONVERSATIONS:
            ends = {item.messages[-1].role for item in converted(format_named(form), rows(name)[:50])[0] if isinstance(item, Conversation)}
            assert ends <= ({"user"} if form in {"openai_evals", "prompts", "choices"} else {"assistant"})
