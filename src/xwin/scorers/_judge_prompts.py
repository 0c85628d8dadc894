"""What a judge is shown: a prompt with places to fill. The wording is ours; a published prompt file can be read in its stead.

A place is `{name}`. All places are filled in one pass, so a text that says `{output_1}` itself stays what it is, and markup is read before
anything is filled in, so a text that holds `<|im_end|>` ends nothing. (alpaca_eval fills places one after the other; the two agree on all
instructions but those that name a place.)
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from xwin.data.conversation import Conversation, Message, Role, content_id
from xwin.errors import DataError

PLACE = re.compile(r"\{(\w+)\}")
CHATML = re.compile(r"<\|im_start\|>(system|user|assistant)\n(.*?)(?:<\|im_end\|>|\Z)", re.DOTALL)
ROLES: Mapping[str, Role] = {"system": "system", "user": "user", "assistant": "assistant"}


@dataclass(frozen=True, slots=True)
class JudgePrompt:
    """Messages with places to fill."""

    messages: tuple[Message, ...]

    @property
    def digest(self) -> str:
        """Names the wording: 12 hex digits."""
        return content_id(self.messages)

    def filled(self, places: Mapping[str, str]) -> Conversation:
        """The conversation to answer, named by its content."""
        messages = tuple(Message(m.role, _sendable(fill(m.text, places).strip())) for m in self.messages)
        return Conversation(content_id(messages), messages)


def fill(text: str, places: Mapping[str, str]) -> str:
    """The text with its places filled; a name that is no place stays as it is."""
    return PLACE.sub(lambda found: places.get(found[1], found[0]), text)


def read_prompt(path: Path, places: tuple[str, ...]) -> JudgePrompt:
    """A prompt file as alpaca_eval publishes them: ChatML turns, or plain text, which is one user turn.

    Args:
        path: the file.
        places: what it must have a place for, each once.

    Raises:
        DataError: it cannot be read, or a place is missing or there twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot be read as a prompt: {error}", str(path)) from None
    for place in places:
        count = PLACE.findall(text).count(place)
        if count != 1:
            raise DataError(f"has {count} places {{{place}}}, and must have one", str(path), f"a judge's prompt names {_named(places)} once each")
    turns = [Message(ROLES[role], said) for role, said in CHATML.findall(text) if said.strip()]
    return JudgePrompt(tuple(turns) or (Message("user", text),))


def _sendable(text: str) -> str:
    """Half of a surrogate pair, which JSON can hold, is no character and cannot be sent: a question mark stands for it."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _named(places: tuple[str, ...]) -> str:
    return ", ".join(f"{{{place}}}" for place in places)


RANKING = JudgePrompt(
    (
        Message("system", "You compare what language models answer, and rank the answers as most people would."),
        Message(
            "user",
            """Two models, model_1 and model_2, were given the same instruction. Rank 1 is for the model whose answer most people would prefer, \
rank 2 for the other.

The instruction:
<instruction>
{instruction}
</instruction>

What model_1 answered:
<model_1>
{output_1}
</model_1>

What model_2 answered:
<model_2>
{output_2}
</model_2>

Answer with a Python list of this form and nothing else, with a rank, 1 or 2, in place of each question mark:
[{'model': 'model_1', 'rank': ?}, {'model': 'model_2', 'rank': ?}]""",
        ),
    )
)
TOKEN = JudgePrompt(
    (
        Message("system", "You compare what two language models, m and M, answer, and name the one that most people would prefer."),
        Message(
            "user",
            """The instruction that both models were given:
<instruction>
{instruction}
</instruction>

What model m answered:
<answer of m>
{output_1}
</answer of m>

What model M answered:
<answer of M>
{output_2}
</answer of M>

Which of the two answers is better? Write m or M, one letter, and nothing else.""",
        ),
    )
)
