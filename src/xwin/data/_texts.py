"""The texts of a row: what is invisible, left over or broken in them, and numbers and answers written as text."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping

from xwin.data._converted import Findings, kind, shown
from xwin.data.conversation import Json
from xwin.data.defects import Defect

CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
ZERO_WIDTH = re.compile("[\u180e\u200b\u2060\ufeff]")  # not the joiners U+200C and U+200D: Persian, Indic scripts and emoji are written with them
HTML_ENTITY = re.compile(
    r"&(?:lt|gt|amp|quot|apos|nbsp|ndash|mdash|hellip|[lr][sd]quo|copy|reg|trade|times|bull|middot|deg|#\d{1,7}|#x[0-9a-fA-F]{1,6});"
)
TEMPLATE_TOKEN = re.compile(
    r"<\|[a-zA-Z][a-zA-Z0-9_ -]{0,40}\|>|</?s>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|<(?:bos|eos|unk|pad)>|\[(?:BOS|EOS|PAD|UNK)\]"
)
NOTES: Mapping[Defect, re.Pattern[str]] = {
    Defect.CONTROL: CONTROL,
    Defect.ZERO_WIDTH: ZERO_WIDTH,
    Defect.REPLACEMENT: re.compile("\ufffd"),
    Defect.HTML_ENTITY: HTML_ENTITY,
    Defect.TEMPLATE_TOKEN: TEMPLATE_TOKEN,
}
SUSPECT = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u180e\u200b\u2060\ufeff\ufffd&<\[]")
"""Where one of the above may begin: most texts hold none, and one search says so."""
NOTHING = re.compile(r"\W*(?:no\W?(?:input|output)|n/?a|none)\W*", re.IGNORECASE)
LINK = re.compile(
    r"(?:https?://|www\.)\S+|\S+\.(?:png|jpe?g|gif|webp)|[\[<(]\s*(?:insert |attached |an? |the )*(?:image|picture|photo|link|url)\b[^\])>]*[\])>]",
    re.IGNORECASE,
)
PUNCTUATION = re.compile(r"[\s!-/:-@\[-`{-~\u00a1-\u00bf\u2000-\u206f\u3000-\u303f\uff00-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65]+")
SCAFFOLD = re.compile(r"\b(?:Instruction|Input|Output)s?:")
NUMBER = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?", re.ASCII)


def note_texts(text: str, place: str, found: Findings) -> None:
    """Note what no reader of the file would see: control and zero-width characters, U+FFFD, HTML entities, template tokens."""
    if not SUSPECT.search(text):
        return
    for defect, pattern in NOTES.items():
        if match := pattern.search(text):
            said = match.group()
            found.add(
                defect, f"{place}: {said if said.isprintable() and said.isascii() else f'U+{ord(said[0]):04X}'} at character {match.start() + 1}"
            )


def as_text(value: Json, place: str, found: Findings) -> str:
    """The value if it is a text, its invisible faults noted; anything else is NOT_TEXT and gives a text that stands for it."""
    if not isinstance(value, str):
        found.add(Defect.NOT_TEXT, f"{place} is {kind(value)}")
        return f"({kind(value)})"
    note_texts(value, place, found)
    return value


def as_number(value: Json) -> float | None:
    """A finite number, also one written as text ("2"); None for everything else."""
    if isinstance(value, str) and NUMBER.fullmatch(value.strip()):
        value = float(value.strip().replace(",", ""))
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
        return None
    return float(value)


def blank(text: str) -> bool:
    """Whether nothing of the text can be seen."""
    return not ZERO_WIDTH.sub("", text).strip()


def bare(text: str) -> str:
    """Without punctuation, spaces and case; the marks that vowels are in many scripts stay."""
    return PUNCTUATION.sub("", text.casefold())


def task_text(instruction: Json, given: Json, found: Findings) -> str:
    """An instruction and its input, joined by a blank line; an input that only says none is left out."""
    text = as_text(instruction, "instruction", found)
    given = as_text(given, "input", found) if given is not None else ""
    if NOTHING.fullmatch(given):
        found.add(Defect.PLACEHOLDER_INPUT, shown(given))
        given = ""
    if LINK.fullmatch(given.strip()):
        found.add(Defect.LINK_INPUT, shown(given))
    return text if blank(given) else f"{text}\n\n{given}"


def note_answer(answer: str, found: Findings) -> None:
    """What may be wrong with an answer to an instruction: a placeholder, or scaffolding of the prompt that was left in it."""
    if NOTHING.fullmatch(answer):
        found.add(Defect.PLACEHOLDER_ANSWER, shown(answer))
    elif match := SCAFFOLD.search(answer):
        found.add(Defect.SCAFFOLDING, f"{match.group()} at character {match.start() + 1}")


def final_number(text: str, found: Findings) -> str:
    """A final answer as a verifier of numbers wants it: without thousands commas."""
    text = text.strip()
    if not NUMBER.fullmatch(text):
        found.add(Defect.NOT_A_NUMBER, shown(text))
        return text
    if "," in text:
        found.add(Defect.THOUSANDS_COMMA, text)
    if text.startswith("-"):
        found.add(Defect.NEGATIVE_ANSWER, text)
    return text.replace(",", "")


def reference(value: Json) -> Json:
    """A reference answer as it is kept in meta: numbers become texts, alone or in a list; everything else stays."""
    if isinstance(value, list):
        return [_written(v) for v in value]
    return _written(value)


def _written(value: Json) -> Json:
    return json.dumps(value) if isinstance(value, int | float) and not isinstance(value, bool) else value
