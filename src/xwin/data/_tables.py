"""Published chat formats as tables: what stands before and after what is said. One table gives both the token ids and the exported Jinja."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType

from xwin.data._words import Part, Stretch
from xwin.data.conversation import Json, Message
from xwin.errors import DataError

VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
"""The system text of Vicuna v1.1 (FastChat conversation.py; Xwin-LM README)."""


class Place(StrEnum):
    """Where the system text goes. Only a turn of its own is written when the text is empty."""

    TURN = "a turn of its own"
    OPENING = "plain text in front"
    FIRST_USER = "inside the first user turn"
    LAST_USER = "inside the last user turn"


class Bos(StrEnum):
    """Where the beginning-of-sequence token stands, if the tokenizer puts one before a text by itself."""

    START = "in front"
    EXCHANGE = "before every user turn"


@dataclass(frozen=True)
class Table:
    """A format. `end` closes the assistant's turn; where the tokenizer has no such special token its own end-of-sequence token stands for it."""

    system: tuple[str, str]
    """Before and after the system text."""
    user: tuple[str, str]
    """Before and after a user's text."""
    ask: str
    """What an engine continues; it follows the user's turn."""
    answer: tuple[str, str]
    """Before and after the assistant's text; part of what the model writes."""
    end: str
    after: str = ""
    """Between the end of an answer and the next turn."""
    place: Place = Place.TURN
    bos: Bos = Bos.START
    default: str | None = None
    """System text of a conversation that has none."""
    trims: bool = False
    """Whether white space around what is said is dropped."""
    needs: tuple[str, ...] = ()
    """Special tokens without which the next table of the same name is used."""


VICUNA = Table(  # FastChat conversation.py, `vicuna_v1.1`: separators " " and "</s>"
    system=("", " "), user=("USER: ", ""), ask=" ASSISTANT:", answer=(" ", ""), end="</s>", place=Place.OPENING, default=VICUNA_SYSTEM
)
CHATML = Table(  # openai-python v0.28 chatml.md
    system=("<|im_start|>system\n", "<|im_end|>\n"),
    user=("<|im_start|>user\n", "<|im_end|>\n"),
    ask="<|im_start|>assistant\n",
    answer=("", ""),
    end="<|im_end|>",
    after="\n",
)
LLAMA2 = Table(  # Meta's llama repository, llama/generation.py, chat_completion: each exchange is encoded with bos and eos
    system=("<<SYS>>\n", "\n<</SYS>>\n\n"),
    user=("[INST] ", " [/INST]"),
    ask="",
    answer=(" ", " "),
    end="</s>",
    place=Place.FIRST_USER,
    bos=Bos.EXCHANGE,
    trims=True,
)
LLAMA3 = Table(  # Meta's llama3 repository, llama/tokenizer.py, ChatFormat
    system=("<|start_header_id|>system<|end_header_id|>\n\n", "<|eot_id|>"),
    user=("<|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>"),
    ask="<|start_header_id|>assistant<|end_header_id|>\n\n",
    answer=("", ""),
    end="<|eot_id|>",
    trims=True,
)
MISTRAL_V3 = Table(  # docs.mistral.ai, "Tokenization: templates", V3 (SentencePiece); mistral-common puts the system text into the last user turn
    system=("", "\n\n"),
    user=("[INST] ", "[/INST]"),
    ask="",
    answer=(" ", ""),
    end="</s>",
    place=Place.LAST_USER,
    needs=("[INST]", "[/INST]"),
)
MISTRAL_V1 = Table(  # the same page, V1: the markers are plain text, the system text stands in the first user turn
    system=("", "\n\n"), user=(" [INST] ", " [/INST]"), ask="", answer=(" ", ""), end="</s>", place=Place.FIRST_USER
)
ZEPHYR = Table(  # model card of HuggingFaceH4/zephyr-7b-beta
    system=("<|system|>\n", "</s>\n"), user=("<|user|>\n", "</s>\n"), ask="<|assistant|>\n", answer=("", ""), end="</s>", after="\n"
)

TABLES: Mapping[str, tuple[Table, ...]] = MappingProxyType(
    {
        "vicuna": (VICUNA,),
        "chatml": (CHATML,),
        "llama2": (LLAMA2,),
        "llama3": (LLAMA3,),
        "mistral": (MISTRAL_V3, MISTRAL_V1),
        "zephyr": (ZEPHYR,),
    }
)
"""Name -> its tables; the first one whose special tokens the tokenizer has is used."""


def markers(table: Table) -> tuple[str, ...]:
    """All markup of a table."""
    return (*table.system, *table.user, table.ask, *table.answer, table.end, table.after)


@dataclass(frozen=True)
class Tabular:
    """A table over a tokenizer: see template.Layout."""

    table: Table
    bos: str
    """Empty where the tokenizer puts none before a text."""
    end: str
    """The special token that ends an answer; in the table's markup it replaces `table.end`."""
    stop: tuple[int, ...]
    marks: Mapping[str, Part] = field(init=False, repr=False, compare=False)
    """The table's markup with the end token in place."""

    def __post_init__(self) -> None:
        marks = {text: Part(text.replace(self.table.end, self.end), said=False) for text in markers(self.table)}
        object.__setattr__(self, "marks", marks)

    @property
    def extends(self) -> bool:
        """Whether what was said stays where it is when the conversation goes on."""
        return self.table.place is not Place.LAST_USER

    def read(self, text: str) -> str:
        """See template.Layout."""
        before, after = self.table.answer
        text = text.removeprefix(before)
        return text.removesuffix(after)

    def lay(self, messages: Sequence[Message], tools: Sequence[Json], *, generate: bool) -> list[Stretch]:
        """See template.Layout.

        Raises:
            DataError: a message, or a list of tools, has no place in the table.
        """
        if tools:
            raise DataError("the template has no place for tools", fix="use a model whose own chat template has one, with template: own")
        stated = bool(messages) and messages[0].role == "system"
        system = messages[0].text if stated else self.table.default
        carrier = self._carrier(messages, system)
        stretches: list[Stretch] = []
        context = [Part(self.bos, said=False)] if self.table.bos is Bos.START else []
        context += self._opening(system, stated=stated)
        for i, message in enumerate(messages):
            if message.role == "user":
                context += self._user(message.text, system if i == carrier else None)
            elif message.role == "assistant" and not message.tool_calls:
                context.append(self.marks[self.table.ask])
                stretches += [Stretch(tuple(context), trained=False), self._answer(message), Stretch((self.marks[self.table.after],), trained=False)]
                context = []
            elif i or not stated:
                what = "tool calls" if message.tool_calls else f"a {message.role} message"
                raise DataError(f"the template has no place for {what} here", f"message {i + 1}", "use a template that has one, such as own")
        context += [self.marks[self.table.ask]] if generate else []
        return [*stretches, Stretch(tuple(context), trained=False)]

    def _trim(self, text: str) -> str:
        return text.strip() if self.table.trims else text

    def _carrier(self, messages: Sequence[Message], system: str | None) -> int | None:
        """Index of the user turn that holds the system text."""
        if not system or self.table.place not in {Place.FIRST_USER, Place.LAST_USER}:
            return None
        users = [i for i, message in enumerate(messages) if message.role == "user"]
        if not users:
            raise DataError("the system text stands inside a user turn, and there is none", fix="use a template with a system turn, such as chatml")
        return users[0 if self.table.place is Place.FIRST_USER else -1]

    def _opening(self, system: str | None, *, stated: bool) -> list[Part]:
        before, after = self.table.system
        if system is None or self.table.place in {Place.FIRST_USER, Place.LAST_USER} or (self.table.place is Place.OPENING and not system):
            return []
        return [self.marks[before], Part(self._trim(system), said=stated), self.marks[after]]

    def _user(self, text: str, system: str | None) -> list[Part]:
        bos = [Part(self.bos, said=False)] if self.table.bos is Bos.EXCHANGE else []
        before, after = self.table.user
        if system is None:
            return [*bos, self.marks[before], Part(self._trim(text), said=True), self.marks[after]]
        opens, closes = self.table.system
        text = text.rstrip() if self.table.trims else text  # both texts together are what is trimmed
        close = self.marks[closes]
        close = Part(close.text.rstrip(), said=False) if self.table.trims and not text else close
        return [*bos, self.marks[before], self.marks[opens], Part(system, said=True), close, Part(text, said=True), self.marks[after]]

    def _answer(self, message: Message) -> Stretch:
        before, after = self.table.answer
        parts = (self.marks[before], Part(self._trim(message.text), said=True), self.marks[after], Part(self.end, said=False))
        return Stretch(parts, message.weight > 0)

    def jinja(self) -> str:
        """The same template for a tokenizer's `chat_template`."""
        table, trim = self.table, " | trim" if self.table.trims else ""
        before, after = (_quoted(self.marks[text].text) for text in table.user)
        opens, closes = (_quoted(self.marks[text].text) for text in table.system)
        ask, end = _quoted(self.marks[table.ask].text), _quoted(self.marks[table.after].text)
        lead, tail = (_quoted(text) for text in (table.answer[0], table.answer[1] + self.end))
        bos = _quoted(self.bos)
        inside = table.place in {Place.FIRST_USER, Place.LAST_USER}
        turn = "system is not none" if table.place is Place.TURN else "system"
        begin = [f"{{{{- {bos} -}}}}"] if self.bos and table.bos is Bos.START else []
        block = [f"{{%- if {turn} -%}}{{{{- {opens} + (system{trim}) + {closes} -}}}}{{%- endif -%}}"] if not inside else []
        said = "message['content']" if not inside else f"({opens} + system + {closes} if loop.index0 == ns.carrier else '') + message['content']"
        user = f"{bos + ' + ' if self.bos and table.bos is Bos.EXCHANGE else ''}{before} + (({said}){trim}) + {after}"
        lines = [
            "{%- if messages and messages[0]['role'] == 'system' -%}{%- set system = messages[0]['content'] -%}{%- set rest = messages[1:] -%}",
            f"{{%- else -%}}{{%- set system = {_quoted(table.default)} -%}}{{%- set rest = messages -%}}{{%- endif -%}}",
            *(_carrier_search(table.place) if inside else ()),
            *begin,
            *block,
            "{%- for message in rest -%}",
            f"{{%- if message['role'] == 'user' -%}}{{{{- {user} -}}}}",
            "{%- elif message['role'] == 'assistant' and not message['tool_calls'] -%}",
            f"{{{{- {ask} + {lead} + (message['content']{trim}) + {tail} + {end} -}}}}",
            "{%- else -%}{{- raise_exception('the template has no place for this message') -}}{%- endif -%}",
            "{%- endfor -%}",
            f"{{%- if add_generation_prompt -%}}{{{{- {ask} -}}}}{{%- endif -%}}",
        ]
        return "\n".join(lines)


def _carrier_search(place: Place) -> list[str]:
    """Jinja that finds the user turn that holds the system text."""
    first = " and ns.carrier < 0" if place is Place.FIRST_USER else ""
    return [
        "{%- set ns = namespace(carrier=-1) -%}",
        "{%- if system -%}{%- for message in rest -%}",
        f"{{%- if message['role'] == 'user'{first} -%}}{{%- set ns.carrier = loop.index0 -%}}{{%- endif -%}}",
        "{%- endfor -%}{%- if ns.carrier < 0 -%}{{- raise_exception('there is no user turn to hold the system text') -}}{%- endif -%}{%- endif -%}",
    ]


def _quoted(text: str | None) -> str:
    return "none" if text is None else json.dumps(text, ensure_ascii=False)
