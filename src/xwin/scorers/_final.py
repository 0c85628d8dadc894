"""The final answer that a text commits to: after "####", in the last \\boxed{}, after "the answer is"; else, if wanted, the last of its kind."""

from __future__ import annotations

import re
from collections.abc import Callable

PHRASE = re.compile(r"\banswer\b[^.\n:=]{0,60}?(?:\bis(?:\b|(?=n['\u2019]t\b))|:|=)[\s:]*(?=\S)", re.IGNORECASE)
SENTENCE_END = re.compile(r"[.!?](?=\s|$)")
BOXES = ("\\boxed", "\\fbox")
MATH = re.compile(r"\$\$(.+?)\$\$|\$([^$\n]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
CHOICE = re.compile(r"\(([A-Ea-e])\)|(?<![\w(])([A-E])(?=[.):]|\s*$)", re.MULTILINE)


def marked(text: str) -> str | None:
    """What the text marks as its answer, the surest mark first; None when nothing is marked."""
    if "####" in text:
        return text.rpartition("####")[2].strip().partition("\n")[0].strip()
    box = boxed(text)
    if box is not None:
        return box
    phrases = list(PHRASE.finditer(text))
    if not phrases:
        return None
    rest = text[phrases[-1].end() :].partition("\n")[0]
    end = SENTENCE_END.search(rest)
    return (rest[: end.start()] if end else rest).strip()


def boxed(text: str) -> str | None:
    """What is inside the last \\boxed{...}, braces balanced; None when there is none or it never closes."""
    start = max(text.rfind(box) for box in BOXES)
    if start < 0:
        return None
    opening = text.find("{", start)
    if opening < 0:
        return None
    depth = 0
    for place in range(opening, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[opening + 1 : place].strip()
    return None


def last_choice(text: str) -> str | None:
    """The last letter A to E that stands as a choice: "(B)", "B)", "B." or alone at the end of a line."""
    found = [match[1] or match[2] for match in CHOICE.finditer(text)]
    return found[-1].upper() if found else None


def last_math(text: str) -> str | None:
    """The last formula between dollars or \\( \\); else the last line that says something."""
    found = [next(part for part in match.groups() if part) for match in MATH.finditer(text)]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (found or lines or [None])[-1]


def whole(text: str) -> str | None:
    """The text itself when it is one line."""
    stripped = text.strip()
    return stripped if stripped and "\n" not in stripped else None


def final(text: str, fallback: Callable[[str], str | None] | None) -> str | None:
    """What is marked, else what `fallback` finds; None when there is neither."""
    found = marked(text)
    return found if found or fallback is None else fallback(text)
