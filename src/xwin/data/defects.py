"""What is wrong with rows people have: each defect has a name, a verdict and a meaning, so that nothing is swallowed."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """What reading does with a row that has the defect."""

    REJECT = "reject"
    """The row cannot be used: an error, or with `on_defect: drop` a line of `rejected.jsonl`."""
    REPAIR = "repair"
    """The row is mended in the way its meaning says, and counted."""
    NOTE = "note"
    """The row is used as it is, and counted."""


class Defect(StrEnum):
    """The name of a defect, as error messages, `rejected.jsonl` and the data card write it."""

    # the file
    NOT_JSON = "not JSON"
    TRUNCATED = "cut off at the end of the file"
    ENCODING = "not UTF-8"
    OTHER_FORMAT = "another format than the rows before"
    WRONG_COLUMNS = "missing or wrong fields"
    # the conversation
    EMPTY_CONVERSATION = "empty conversation"
    EMPTY_TURN = "empty turn"
    ROLE_BREAK = "roles do not alternate"
    ASSISTANT_FIRST = "starts with the assistant"
    ONE_TURN = "one turn only"
    NO_ANSWER = "does not end with the assistant"
    UNKNOWN_ROLE = "unknown speaker"
    RENAMED_ROLE = "unusual speaker name"
    ROLE_MARKER = "role marker inside a turn"
    EMPTY_ANSWER = "empty answer"
    PLACEHOLDER_ANSWER = "placeholder answer"
    PLACEHOLDER_INPUT = "placeholder input"
    LINK_INPUT = "input is only a link or image"
    SCAFFOLDING = "prompt scaffolding in the answer"
    NOT_TEXT = "text is not a string"
    # the preference
    IDENTICAL = "chosen and rejected are identical"
    NEARLY_IDENTICAL = "chosen and rejected differ only in punctuation or case"
    TIE = "no preference"
    EQUAL_SCORES = "equal scores"
    DIFFERENT_PROMPTS = "chosen and rejected answer different prompts"
    # the text
    CONTROL = "control character"
    ZERO_WIDTH = "zero-width character"
    REPLACEMENT = "replacement character U+FFFD"
    HTML_ENTITY = "HTML entity"
    TEMPLATE_TOKEN = "chat-template token in the text"
    # the reference answer
    THOUSANDS_COMMA = "thousands comma in the final answer"
    NEGATIVE_ANSWER = "negative final answer"
    NOT_A_NUMBER = "the answer is not one number"
    DUPLICATE_CHOICES = "two equal choices"
    # the budget
    TOO_LONG = "longer than the budget"
    NOTHING_TRAINED = "nothing would be trained"


@dataclass(frozen=True, slots=True)
class Flaw:
    """One defect of one row.  Example: Flaw(Defect.EMPTY_TURN, "turn 3 (assistant)")"""

    defect: Defect
    detail: str = ""
