"""Formats whose rows say which of two answers is better: native, prompt with chosen and rejected, sharegpt pairs, HH-RLHF transcripts."""

from __future__ import annotations

import re
from dataclasses import replace

from xwin.data._chats import INPUTS, instruction_turns, with_system, with_tools
from xwin.data._converted import Fields, Findings, Item, kind, rest, row_id, shown
from xwin.data._texts import as_number, as_text, bare, blank, note_texts
from xwin.data._turns import End, first_of, holds_turns, read_turns, settle
from xwin.data.conversation import Json, Message, Preference, content_id, preference_from_json
from xwin.data.defects import Defect
from xwin.errors import DataError

SIDES = ("chosen", "rejected")
PROMPTS = ("prompt", "question", "instruction")
SCORES = ("score_chosen", "score_rejected")
NOBODY = Message("assistant", "")
MARKER = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
HEADED_MARKER = re.compile(r"(?:\A\s*|\n\n)## (Human|Assistant):")
STRAY_MARKER = re.compile(r"\b(?:Human|Assistant):")


def looks_native_pair(row: Fields) -> str | None:
    """The row of a preference file that Xwin-LM wrote."""
    native = {"id", "prompt", *SIDES} <= row.keys() <= {"id", "prompt", *SIDES, "margin", "meta"}
    lists = native and all(isinstance(row[key], list) for key in ("prompt", *SIDES))
    return "has id, prompt, chosen and rejected, and nothing that the native format does not know" if lists and isinstance(row["id"], str) else None


def read_native_pair(row: Fields, found: Findings) -> list[Item]:
    """Exactly what was written; a row that was edited into something else is read like any pair, so that its flaws get their names."""
    try:
        preference = preference_from_json(row, "")
    except DataError as error:
        items = read_pair(row, found)
        if not found.first:
            found.add(Defect.WRONG_COLUMNS, error.what)
        return items
    for place, messages in (("prompt", preference.prompt), ("chosen", (preference.chosen,)), ("rejected", (preference.rejected,))):
        for message in messages:
            note_texts(message.text, place, found)
    check_answers(preference.chosen, preference.rejected, found)
    return [preference]


def looks_sharegpt_pair(row: Fields) -> str | None:
    """Turns, and two answers to them."""
    return "has conversations, chosen and rejected" if holds_turns(row, "conversations") and {*SIDES} <= row.keys() else None


def read_sharegpt_pair(row: Fields, found: Findings) -> list[Item]:
    """The conversations are the prompt; chosen and rejected are a text each, or a turn."""
    turns = with_system(row, read_turns(row.get("conversations"), found, "prompt turn"), found)
    answers = [_answer(_side(row, side), side, found) for side in SIDES]
    return make_pair(turns, answers, found, row_id(row), with_tools(row, rest(row, "conversations", *SIDES, "system"), found))


def looks_transcripts(row: Fields) -> str | None:
    """Two whole transcripts and no prompt."""
    texts = {*SIDES} <= row.keys() and not any(isinstance(row[side], list) for side in SIDES)
    return "has chosen and rejected transcripts" if texts and not any(key in row for key in PROMPTS) else None


def read_transcripts(row: Fields, found: Findings) -> list[Item]:
    """The turns that both transcripts begin with are the prompt."""
    sides = [read_transcript(row.get(side), found, side) for side in SIDES]
    prompt, answers = split_sides(sides, found)
    return make_pair(prompt, answers, found, row_id(row), rest(row, *SIDES))


def looks_pair(row: Fields) -> str | None:
    """Chosen and rejected beside a prompt, or as whole conversations."""
    if not {*SIDES} <= row.keys():
        return None
    key = next((key for key in PROMPTS if key in row), None)
    if key:
        return f"has {key}, chosen and rejected"
    return "has chosen and rejected conversations" if all(isinstance(row[side], list) for side in SIDES) else None


def read_pair(row: Fields, found: Findings) -> list[Item]:
    """Chosen and rejected are answers, or whole conversations that repeat the prompt."""
    prompt = _stated_prompt(row, found)
    sides = [_turns_of(_side(row, side), found, side) for side in SIDES]
    if max(len(side) for side in sides) > 1:
        repeated, answers = split_sides(sides, found)
        repeated = _with_stated_system(prompt, repeated, found)
        _compare_prompts(prompt, repeated, found)
        prompt = repeated
    else:
        answers = [side[-1] if side else NOBODY for side in sides]
    messages = row.get("messages")
    copy = ("messages",) if messages == row.get("chosen") else ()  # one published set repeats the chosen conversation under that name
    meta = rest(row, *PROMPTS, *INPUTS, *SIDES, "history", "system", "margin", *copy)
    return make_pair(prompt, answers, found, row_id(row), with_tools(row, meta, found), _margin(row, found))


def read_transcript(value: Json, found: Findings, label: str) -> list[Message]:
    """The turns of a "\\n\\nHuman: ...\\n\\nAssistant: ..." transcript, split only at a marker after a blank line; one space after it goes."""
    text = as_text(value, label, found)
    parts = (HEADED_MARKER if text.lstrip().startswith("## ") else MARKER).split(text)
    if not blank(parts[0]) or len(parts) < 3:
        found.add(Defect.WRONG_COLUMNS, f"{label} is not a transcript: it does not begin with Human: or Assistant:")
        return []
    turns = []
    for speaker, said in zip(parts[1::2], parts[2::2], strict=True):
        said = said[1:] if said[:1] in {" ", "\n"} else said
        if stray := STRAY_MARKER.search(said):
            found.add(Defect.ROLE_MARKER, f"{label} turn {len(turns) + 1}: {stray.group()} at character {stray.start() + 1}")
        turns.append(Message("user" if speaker == "Human" else "assistant", said))
    return turns


def split_sides(sides: list[list[Message]], found: Findings) -> tuple[list[Message], list[Message]]:
    """The prompt that two conversations share, and their last answers; (prompt, [chosen, rejected])."""
    for label, side in zip(SIDES, sides, strict=True):
        settle(side, found, End.ANSWER, f"{label} turn")
    chosen, rejected = sides
    if chosen[:-1] != rejected[:-1]:
        same = next((i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), min(len(chosen), len(rejected)))
        found.add(Defect.DIFFERENT_PROMPTS, f"{len(chosen)} and {len(rejected)} turns, which differ from turn {same + 1} on")
    return chosen[:-1], [side[-1] if side else NOBODY for side in sides]


def make_pair(
    prompt: list[Message], answers: list[Message], found: Findings, name: str, meta: dict[str, Json], margin: float | None = None
) -> list[Item]:
    """The preference, checked.

    Args:
        prompt: what both answers reply to.
        answers: the chosen and the rejected one.
        found: collects what is wrong.
        name: that the source gives the row; empty = the digest of the content.
        meta: of the preference.
        margin: how much better; None = not known.
    """
    messages = () if found.rejected else settle(prompt, found, End.PROMPT, "prompt turn")
    chosen, rejected = (replace(answer, weight=1.0) for answer in answers)
    check_answers(chosen, rejected, found)
    return [Preference(name or content_id((*messages, chosen, rejected)), messages, chosen, rejected, margin, meta)]


def check_answers(chosen: Message, rejected: Message, found: Findings) -> None:
    """What is wrong with two answers that are to be compared: empty, identical, or all but identical."""
    for side, answer in zip(SIDES, (chosen, rejected), strict=True):
        if blank(answer.text) and not answer.tool_calls:
            found.add(Defect.EMPTY_ANSWER, side)
    if Defect.EMPTY_ANSWER in found.first or Defect.NOT_TEXT in found.first or chosen.tool_calls != rejected.tool_calls:
        return
    if chosen.text.strip() == rejected.text.strip():
        found.add(Defect.IDENTICAL, shown(chosen.text))
    elif bare(chosen.text) == bare(rejected.text):
        found.add(Defect.NEARLY_IDENTICAL, f"{chosen.text[-40:]!r} and {rejected.text[-40:]!r}")


def _side(row: Fields, side: str) -> Json:
    value = row.get(side)
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _turns_of(value: Json, found: Findings, side: str) -> list[Message]:
    """One answer, or the turns of a whole conversation."""
    return read_turns(value, found, f"{side} turn") if isinstance(value, list) else [_answer(value, side, found)]


def _answer(value: Json, side: str, found: Findings) -> Message:
    """An answer given as a text, as a turn, or as a list of one turn."""
    if not isinstance(value, dict):
        return Message("assistant", as_text(value, side, found))
    turns = read_turns([value], found, side)
    if turns and turns[0].role != "assistant":
        found.add(Defect.NO_ANSWER, f"{side} is the {turns[0].role}'s")
    return turns[0] if turns else NOBODY


def _stated_prompt(row: Fields, found: Findings) -> list[Message]:
    """What the row's own prompt fields say; nothing when it has none."""
    if "instruction" in row and "prompt" not in row:
        return instruction_turns(row, found)
    value = first_of(row, PROMPTS)
    return with_system(row, [] if value is None else read_turns(value, found, "prompt turn"), found)


def _with_stated_system(stated: list[Message], repeated: list[Message], found: Findings) -> list[Message]:
    """What the conversations repeat, after the row's own system message where they have none; two that differ are a flaw."""
    systems = [m for m in stated if m.role == "system" and not blank(m.text)]
    own, turns = (repeated[:1], repeated[1:]) if repeated and repeated[0].role == "system" else ([], repeated)
    if not systems:
        return repeated
    if not own or blank(own[0].text):
        return [*systems, *turns]
    if [m.text.strip() for m in systems] != [own[0].text.strip()]:
        found.add(Defect.DIFFERENT_PROMPTS, "the stated system message is not the one that chosen and rejected begin with")
    return repeated


def _compare_prompts(stated: list[Message], repeated: list[Message], found: Findings) -> None:
    """A prompt of one turn may be any user turn of the conversations; a longer one must be what they begin with."""
    asked = [m.text.strip() for m in repeated if m.role == "user"]
    said = [m for m in stated if m.role != "system"]
    if not said or (len(said) == 1 and said[0].text.strip() in asked) or stated == repeated:
        return
    found.add(Defect.DIFFERENT_PROMPTS, "the prompt field is not what chosen and rejected begin with")


def _margin(row: Fields, found: Findings) -> float | None:
    """The stated margin, else the difference of the stated scores; flaws when they are equal or contradict the choice."""
    stated = row.get("margin")
    if stated is not None and as_number(stated) is None:
        found.add(Defect.WRONG_COLUMNS, f"margin is {kind(stated)}")
    holder = row["metadata"] if isinstance(row.get("metadata"), dict) else row
    scores = [as_number(holder.get(key, row.get(key))) for key in SCORES]
    margin = as_number(stated)
    if margin is None and scores[0] is not None and scores[1] is not None:
        margin = scores[0] - scores[1]
    if margin == 0:
        found.add(Defect.EQUAL_SCORES, "" if scores[0] is None else f"both {scores[0]:g}")
    elif margin is not None and margin < 0:
        found.add(Defect.REVERSED, f"margin {margin:g}")
    return margin
