"""Numbers in text, exactly: signs, thousands, decimals, fractions, percent, currency and units around them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

# A minus belongs to the number unless it stands behind a digit, a letter or a closing bracket, where it subtracts or joins.
NUMBER = re.compile(
    r"(?P<sign>(?<![\w)\]}])[-+])?[$€£¥]?(?<![\w.])"
    r"(?:(?P<whole>\d{1,3}(?:,\d{3})+(?!\d|,\d)|\d+)(?P<part>\.\d+)?|(?P<only>\.\d+))"
    r"(?:[eE](?P<power>[-+]?\d{1,3})(?!\d))?"
    r"(?:\s*/\s*(?P<below>\d+)(?![\d.]))?"
    r"(?P<percent>\s*(?:%|percent\b))?"
)
PLAIN = (
    (re.compile(r"\\(?:d|t)?frac\s*\{\s*(-?\d+)\s*\}\s*\{\s*(\d+)\s*\}"), r"\1/\2"),
    (re.compile(r"\\(?:d|t)?frac\s*(\d)\s*(\d)"), r"\1/\2"),
    (re.compile(r"\\(?:text|mathrm|textbf|mathbf)\s*\{([^{}]*)\}"), r" \1 "),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\\[,!;: ]|~"), ""),
    (re.compile(r"\\left|\\right|\*\*|__"), ""),
    (re.compile(r"\\([$%])"), r"\1"),
    (re.compile(r"[\u2212\u2013]"), "-"),
    (re.compile(r"\^\{?\\circ\}?|\\degrees?\b"), " degrees"),
    (re.compile(r"(^|=)\s*([-+])\s+(?=[$€£¥]?\.?\d)"), r"\1 \2"),
)
UNITS = re.compile(r"[\s.,;:!?'\"$€£¥°%-]*")
WORD = re.compile(r"[A-Za-z]{2,}(?:\s*/\s*[A-Za-z]+|\^?[23])?|(?<=\s)[mgshlLWVNJK]\b")
"""A unit: a word, "km/h", "cm^2", or one letter behind a space; a letter that touches a number is algebra."""
FUNCTIONS = frozenset({"pi", "sqrt", "log", "ln", "exp", "sin", "cos", "tan", "inf", "infty", "infinity", "frac"})
"""Words that are mathematics and no units."""
DENIALS = frozenset({"not", "never", "neither", "nor", "cannot", "than"})
"""Words that say it is another number."""
JOINS = re.compile(r"[ \t]*(?:[-+*/^×÷·]|(?<=\d):(?=\d))[ \t]*")
"""What makes one expression of two numbers: an operator, or the colon of a time or a ratio."""
MOST_DIGITS = 300
"""Characters of a number; longer ones are none: nobody means them, and Python refuses to convert them from some length on."""


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number as it was written.  Example: Quantity(Fraction(25, 2), percent=True) of "12.5 %" """

    value: Fraction
    """Of the number before the percent sign."""
    percent: bool = False


def plain(text: str) -> str:
    """The text with the LaTeX that only dresses a number taken off: simple fractions as a/b, no spacing, no \\text."""
    for pattern, by in PLAIN:
        text = pattern.sub(by, text)
    return text.strip()


def quantity(text: str) -> Quantity | None:
    """The number that the text is, units and currency aside; what stands before the last "=" does not count.

    Returns:
        None when the text holds no number, two different ones, or mathematics or a denial beside it.
    """
    last = plain(text).rpartition("=")[2]
    matches = list(NUMBER.finditer(last))
    found = {_quantity(match) for match in matches}
    if len(found) != 1 or any(_joined(last, *pair) for pair in pairwise(matches)):
        return None
    rest = NUMBER.sub(" ", last)
    words = WORD.findall(rest)
    if any(word.casefold() in FUNCTIONS | DENIALS for word in words) or not UNITS.fullmatch(WORD.sub(" ", rest)):
        return None
    return found.pop()


def last_of(text: str) -> str | None:
    """The last number of a text, as written, with what it is joined to: "8 - 5" and "5:30" are expressions, of which no part is the answer."""
    shown = plain(text)
    matches = list(NUMBER.finditer(shown))
    if not matches:
        return None
    first = len(matches) - 1
    while first > 0 and _joined(shown, matches[first - 1], matches[first]):
        first -= 1
    return shown[matches[first].start() : matches[-1].end()]


def _joined(text: str, before: re.Match[str], after: re.Match[str]) -> bool:
    between = JOINS.match(text, before.end())
    return between is not None and between.end() == after.start()


def equal(a: Quantity, b: Quantity, tolerance: float) -> bool:
    """Whether two numbers are the same: whole ones exactly, others but for a relative difference of `tolerance`.

    A percent sign that only one of them has is a unit or a factor: 50 %, 50 and 0.5 are all taken for each other.
    """
    if a.percent == b.percent:
        return _near(a.value, b.value, tolerance)
    part, whole = (a, b) if a.percent else (b, a)
    return _near(part.value, whole.value, tolerance) or _near(part.value / 100, whole.value, tolerance)


def _near(a: Fraction, b: Fraction, tolerance: float) -> bool:
    if a.denominator == b.denominator == 1:
        return a == b
    return abs(a - b) <= Fraction(tolerance) * max(abs(a), abs(b))


def _quantity(match: re.Match[str]) -> Quantity | None:
    if len(match[0]) > MOST_DIGITS:
        return None
    written = match["only"] or (match["whole"].replace(",", "") + (match["part"] or ""))
    value = Fraction(written) * Fraction(10) ** int(match["power"] or 0)
    if match["below"] is not None:
        if int(match["below"]) == 0 or (value / int(match["below"])).denominator == 1 != int(match["below"]):
            return None
        value /= int(match["below"])
    return Quantity(-value if match["sign"] == "-" else value, match["percent"] is not None)
