"""What is wrong with rows people have: each defect has a name, a verdict and a meaning, so that nothing is swallowed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType


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
    EMPTY_SYSTEM = "empty system message"
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
    TOOL_CALL = "tool call that cannot be read"
    USER_WEIGHT = "loss weight on a turn that is not the assistant's"
    EXTRA_FIELDS = "fields of a turn that are not used"
    SYNTHETIC = "marked as written by a model"
    UNUSED = "answers that are not used"
    PART_LEFT_OUT = "a part of the row is left out"
    # the preference
    IDENTICAL = "chosen and rejected are identical"
    NEARLY_IDENTICAL = "chosen and rejected differ only in punctuation or case"
    TIE = "no preference"
    EQUAL_SCORES = "equal scores"
    REVERSED = "the rejected answer has the higher score"
    ONE_ANSWER = "fewer than two answers to compare"
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
    NO_PLACE = "the template has no place for it"
    TOO_LONG = "longer than the budget"
    NOTHING_TRAINED = "nothing would be trained"


@dataclass(frozen=True, slots=True)
class Flaw:
    """One defect of one row.  Example: Flaw(Defect.EMPTY_TURN, "turn 3 (assistant)")"""

    defect: Defect
    detail: str = ""


_REJECT: Mapping[Defect, str] = {
    Defect.NOT_JSON: "the line cannot be parsed",
    Defect.TRUNCATED: "the file ends in the middle of a row; the rows before it are whole",
    Defect.ENCODING: "the bytes are not UTF-8, or a text holds half a surrogate pair, which no UTF-8 file can hold",
    Defect.OTHER_FORMAT: "the row does not look like the format that the first rows have; files of mixed formats are to be split",
    Defect.WRONG_COLUMNS: "a field that the format needs is missing or of the wrong type",
    Defect.EMPTY_CONVERSATION: "there are no turns",
    Defect.EMPTY_TURN: "a turn before the answer has no text: the answers after it reply to something that is lost",
    Defect.ROLE_BREAK: "the same speaker twice, a system message that is not the first, or a tool that nobody called: something between is lost",
    Defect.ONE_TURN: "a chat of one turn has no question or no answer (prompts without answers are read from a field `prompt`)",
    Defect.NO_ANSWER: "the last turn is not the assistant's: the chat is cut off, or it is a prompt and belongs in a field `prompt`",
    Defect.UNKNOWN_ROLE: "a speaker who is none of user, assistant, system and tool, nor a known name for one of them",
    Defect.EMPTY_ANSWER: "the answer to learn from, or to compare, has no text",
    Defect.PLACEHOLDER_ANSWER: "the answer only says that there is none (`<nooutput>`, `N/A`, `None`)",
    Defect.NOT_TEXT: "a number, a boolean, null or an image stands where a text should be; how it was spelled cannot be known",
    Defect.TOOL_CALL: "not JSON with a name and arguments",
    Defect.IDENTICAL: "there is nothing to learn from the pair",
    Defect.TIE: "the annotators, or the scores that make the pair, prefer neither answer",
    Defect.REVERSED: "the scores of the row contradict its choice",
    Defect.ONE_ANSWER: "a pair needs two answers with a rank or a score",
    Defect.DIFFERENT_PROMPTS: "the two conversations differ before the last answer, so the answers cannot be compared",
    Defect.DUPLICATE_CHOICES: "two letters have the same text, so the letter of the answer proves nothing",
    Defect.NO_PLACE: "the chat template cannot write one of its turns, or its tools",
    Defect.TOO_LONG: "the row has more tokens than one batch may hold",
    Defect.NOTHING_TRAINED: "no token of the row would be in the loss",
}
_REPAIR: Mapping[Defect, str] = {
    Defect.EMPTY_SYSTEM: "the message is left out",
    Defect.ASSISTANT_FIRST: "the turns before the first user turn are left out (chats that were split in parts begin so)",
    Defect.RENAMED_ROLE: "the speaker is read as the role it plays (bing, bard, chatgpt: assistant; developer: system)",
    Defect.PLACEHOLDER_INPUT: "an input that only says none, n/a or noinput is left out of the prompt",
    Defect.PART_LEFT_OUT: "one message or pair of a row that holds many is left out, the others are used",
    Defect.THOUSANDS_COMMA: "the reference answer loses its commas; the text keeps them",
}
_NOTE: Mapping[Defect, str] = {
    Defect.ROLE_MARKER: "kept as text: turns are split only at a marker that follows a blank line",
    Defect.LINK_INPUT: "kept: the answer is about something that the model cannot see",
    Defect.SCAFFOLDING: "kept: `Instruction:`, `Input:` or `Output:` stands in the answer, left over or on purpose",
    Defect.USER_WEIGHT: "ignored: only the assistant's turns are trained",
    Defect.EXTRA_FIELDS: "ignored: a turn keeps its role, text, weight and tool calls",
    Defect.SYNTHETIC: "kept: a message is marked as written by a model",
    Defect.UNUSED: "of ranked answers only the best and the worst make a pair; of a tree only one path makes a conversation",
    Defect.NEARLY_IDENTICAL: "kept: the choice is hardly more than noise",
    Defect.EQUAL_SCORES: "kept with margin 0: the publisher chose one all the same",
    Defect.CONTROL: "kept: an invisible character other than tab and line break",
    Defect.ZERO_WIDTH: "kept: an invisible character (zero-width joiners, which scripts and emoji need, do not count)",
    Defect.REPLACEMENT: "kept: a character was lost when the text was decoded",
    Defect.HTML_ENTITY: "kept: `&lt;` and the like, left over or on purpose",
    Defect.TEMPLATE_TOKEN: "kept as text: templates never turn the text of a message into control tokens",
    Defect.NEGATIVE_ANSWER: "kept: a verifier must read the sign",
    Defect.NOT_A_NUMBER: "kept as text: a verifier of numbers will not find it",
}

VERDICTS: Mapping[Defect, Verdict] = MappingProxyType(
    {d: verdict for verdict, group in ((Verdict.REJECT, _REJECT), (Verdict.REPAIR, _REPAIR), (Verdict.NOTE, _NOTE)) for d in group}
)
"""What reading does with a row that has the defect."""

MEANING: Mapping[Defect, str] = MappingProxyType({**_REJECT, **_REPAIR, **_NOTE})
"""What the defect means, and how a row that can be mended is mended."""
