"""A tokenizer's own Jinja chat template, with exact spans of what was said and of what the assistant writes, though templates mark neither.

The text rendered with the real contents is the truth. To find the contents in it, the same shape of conversation is rendered with a word of its own
for each content; what stands between the words is markup, and markup and contents together must make the real text, letter by letter, or the row is
refused. A template may trim a content, or drop its beginning where it is only context (reasoning of earlier answers). What an engine reads ends where
the same template's prompt for this answer ends; what it writes goes from there to the first end token.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from xwin.data._words import Part, Stretch, Words
from xwin.data.conversation import Json, Message
from xwin.errors import DataError, ModelError

Row = dict[str, Json]
"""A message as a chat template takes it."""

FIX = "use one of the published templates, such as vicuna or chatml"
PROBE = (Message("user", "Which town is it?"), Message("assistant", "The one by the river."))
GO_ON = (Message("user", "And then?"), Message("assistant", "Then comes the sea."))


@dataclass(frozen=True)
class Form:
    """What the template writes around contents, for one shape of conversation."""

    slots: tuple[int, ...]
    """Messages whose content is looked for; the others have none, or stand in the markup."""
    gaps: tuple[str, ...]
    """Markup before each slot, and after the last one."""
    asks: Mapping[int, str]
    """Answer -> markup between the slot before it and what the model writes, as in the prompt for that answer."""


class Jinja:
    """A chat template as a function of messages."""

    def __init__(self, source: str, names: Mapping[str, str]) -> None:
        """`names`: bos_token and the like, as the template calls them."""
        from transformers.utils.chat_template_utils import render_jinja_template

        self.source = source
        self._names = {name: names.get(name, "") for name in ("bos_token", "eos_token", "unk_token", "pad_token")} | dict(names)
        self._render: Callable[..., Any] = render_jinja_template

    def __call__(self, rows: Sequence[Row], tools: Sequence[Json], *, generate: bool) -> str:
        """The text.

        Raises:
            DataError: the template refuses these messages.
        """
        try:
            texts, _ = self._render([list(rows)], tools=list(tools) or None, chat_template=self.source, add_generation_prompt=generate, **self._names)
        except (TemplateError, TypeError, ValueError, KeyError, AttributeError, IndexError) as error:
            raise DataError(f"the chat template refuses these messages: {error}", fix=FIX) from error
        return texts[0]


@dataclass(frozen=True)
class Own:
    """A Jinja template over a tokenizer: see template.Layout."""

    words: Words
    jinja: Jinja
    stop: tuple[int, ...]
    end: str
    """The special token that closes an answer."""
    wrap: tuple[str, str]
    """What the model writes before and after a short answer."""
    extends: bool = False
    """Measured on two exchanges, with and without reasoning in the first answer."""
    form: Any = field(init=False, repr=False, compare=False)
    """(shapes, tools, generate) -> Form; a function that remembers."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "form", lru_cache(maxsize=4096)(self._measure))

    def read(self, text: str) -> str:
        """See template.Layout."""
        before, after = self.wrap
        text = text.removeprefix(before)
        return text.removesuffix(after)

    def lay(self, messages: Sequence[Message], tools: Sequence[Json], *, generate: bool) -> list[Stretch]:
        """See template.Layout.

        Raises:
            DataError: the template refuses the messages, drops one, or rewrites one so that it cannot be followed.
        """
        rows = [_row(message) for message in messages]
        text = self.jinja(rows, tools, generate=generate)
        self._check_written(messages, tools, text)
        key = tuple(map(self._shape, messages)), _frozen(tools)
        form = self.form(*key, generate=generate)
        spans = self._locate(form, messages, text)
        if spans is None:
            self.form.cache_clear()  # a template may write the date, and a day may have passed
            form = self.form(*key, generate=generate)
            spans = self._locate(form, messages, text)
        if spans is None:
            what = "the chat template rewrites a message in a way that cannot be followed"
            raise DataError(what, fix=f"{FIX}; or give an answer that holds reasoning the weight 0")
        return list(_stretches(text, spans, self._answers(form, messages, spans, text)))

    def _shape(self, message: Message) -> tuple[str, str | None, str]:
        """(role, content where it belongs to the markup, tool calls): messages of equal shapes have equal markup."""
        literal = not message.text or (message.role == "system" and not self.words.has_special(message.text))
        return message.role, message.text if literal else None, _frozen(message.tool_calls)

    def _measure(self, shapes: tuple[tuple[str, str | None, str], ...], tools: str, *, generate: bool) -> Form:
        slots = tuple(i for i, (_, literal, _) in enumerate(shapes) if literal is None)
        marks = {i: _mark(i) for i in slots}
        rows = [_shaped(shape, marks.get(i, "")) for i, shape in enumerate(shapes)]
        gaps = self._gaps(rows, tools, [marks[i] for i in slots], generate=generate)
        asks: dict[int, str] = {}
        for k in (i for i, (role, _, _) in enumerate(shapes) if role == "assistant"):
            before = [marks[i] for i in slots if i < k]
            asks[k] = self._gaps(rows[:k], tools, before, generate=True)[-1] if k else ""
        return Form(slots, gaps, asks)

    def _gaps(self, rows: Sequence[Row], tools: str, marks: Sequence[str], *, generate: bool) -> tuple[str, ...]:
        text = self.jinja(rows, json.loads(tools), generate=generate)
        gaps: list[str] = []
        for mark in marks:
            before, found, text = text.partition(mark)
            if not found or mark in text:
                raise DataError("the chat template drops, changes or repeats a message", fix=FIX)
            gaps.append(before)
        return (*gaps, text)

    def _check_written(self, messages: Sequence[Message], tools: Sequence[Json], text: str) -> None:
        """Tools and tool calls are written by the template: it must write them, and nothing in them may pass for a special token."""
        calls = [(i, call) for i, message in enumerate(messages) for call in message.tool_calls]
        for where, value in [*((f"message {i + 1}", call) for i, call in calls), *(("tools", tool) for tool in tools)]:
            name = _called(value)
            if not name or name not in text:
                what = "tool calls" if where != "tools" else "tools"
                raise DataError(f"the chat template has no place for {what}", where, "use a model whose template has one, or drop the row")
            if any(self.words.has_special(each) for each in _texts(value)):
                raise DataError("a special token stands inside a tool or its call", where, "remove it from the row")
        for i, message in enumerate(messages):
            if message.role == "system" and message.text.strip() and not self.words.has_special(message.text) and message.text.strip() not in text:
                raise DataError("the chat template drops or changes a system message", f"message {i + 1}", FIX)

    def _locate(self, form: Form, messages: Sequence[Message], text: str) -> list[tuple[int, int]] | None:
        """[start, end) of each slot's content in the text; None if markup and contents do not make the text."""
        contents = [messages[i].text for i in form.slots]
        spans, at = [], 0
        for gap, content in zip(form.gaps, contents, strict=False):
            spans.append((at + len(gap), at := at + len(gap) + len(content)))
        plain = "".join(part for pair in zip(form.gaps, [*contents, ""], strict=True) for part in pair)
        return spans if plain == text else self._search(form, messages, text)

    def _search(self, form: Form, messages: Sequence[Message], text: str) -> list[tuple[int, int]] | None:
        """Spans that make up the text together with the markup, found slot by slot, going back where a choice leads nowhere."""
        spans: list[tuple[int, int]] = []
        choices = [self._choices(form, messages, text, 0, 0)]
        while choices:
            span = next(choices[-1], None)
            if span is None:
                choices.pop()
                spans = spans[:-1]
                continue
            spans.append(span)
            if len(spans) == len(form.slots):
                if text[span[1] :] == form.gaps[-1]:
                    return spans
                spans.pop()
            else:
                choices.append(self._choices(form, messages, text, len(spans), span[1]))
        return None

    def _choices(self, form: Form, messages: Sequence[Message], text: str, slot: int, at: int) -> Iterator[tuple[int, int]]:
        """Where the content of a slot may be whose markup begins at `at`."""
        if slot == len(form.slots):
            return
        index = form.slots[slot]
        for gap in dict.fromkeys((form.gaps[slot], form.asks.get(index, form.gaps[slot]))):
            if text.startswith(gap, at):
                start = at + len(gap)
                yield from ((start, end) for end in _ends(messages[index], text, start, form.gaps[slot + 1]))

    def _answers(self, form: Form, messages: Sequence[Message], spans: Sequence[tuple[int, int]], text: str) -> list[tuple[int, int, bool]]:
        """[start, end) of what the model writes, and whether it is trained, for each answer."""
        ends = dict(zip(form.slots, (end for _, end in spans), strict=True))
        starts = dict(zip(form.slots, (start for start, _ in spans), strict=True))
        cuts: list[tuple[int, int, bool]] = []
        for k, ask in form.asks.items():
            trained = messages[k].weight > 0
            before = max((ends[i] for i in form.slots if i < k), default=0)
            following = min((starts[i] for i in form.slots if i > k), default=len(text))
            start = before + len(ask)
            close = text.find(self.end, ends.get(k, start), following)
            if not text.startswith(ask, before) or start > starts.get(k, start):
                problem = "the chat template's prompt for an answer is not how it writes the answer's beginning"
            elif close < 0:
                problem = f"the chat template does not end this answer with {self.end}"
            else:
                cuts.append((start, close + len(self.end), trained))
                continue
            if trained or k == len(messages) - 1:
                raise DataError(problem, f"message {k + 1}", FIX)
        return cuts


def own(words: Words, jinja: Jinja, folder: str) -> Own:
    """The layout of a template: what ends an answer is read off a short conversation.

    Raises:
        ModelError: the template ends no answer with a special token, or its prompts are not how its answers begin.
    """
    try:
        draft = Own(words, jinja, (), "", ("", ""))
        (_, gap, tail), prompt = _gaps_of_probe(draft)
        if not gap.startswith(prompt):
            what = f"the chat template's prompt for an answer ends with {prompt[-40:]!r}, but its answers begin after {gap[-40:]!r}"
            raise ModelError(what, folder, FIX)
        lead = gap.removeprefix(prompt)
        end = next((token for token in words.specials_in(tail) if token not in lead), None)
        if end is None:
            raise ModelError(f"the chat template ends an answer with {tail!r}, which is no special token: engines could not stop there", folder, FIX)
        eos = words.controls.get(words.names.get("eos_token", ""))
        stop = dict.fromkeys((words.controls[end], *(() if eos is None else (eos,)), *_ends_named(Path(folder))))
        layout = Own(words, jinja, tuple(stop), end, (lead, tail.partition(end)[0]))
        layout.lay(PROBE, (), generate=False)
    except DataError as error:
        raise ModelError(error.what, folder, FIX) from error
    return replace(layout, extends=_extends(layout))


def _ends_named(folder: Path) -> list[int]:
    """What generation_config.json says that an answer ends with; it may list several tokens."""
    path = folder / "generation_config.json"
    named = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id") if path.is_file() else None
    return named if isinstance(named, list) else [] if named is None else [named]


def _extends(layout: Own) -> bool:
    def ids(messages: Sequence[Message], *, generate: bool) -> list[int]:
        return next(layout.words.tokenise([layout.lay(messages, (), generate=generate)])).ids

    for first in (PROBE, (PROBE[0], Message("assistant", f"<think>\nHm.\n</think>\n\n{PROBE[1].text}"))):
        try:
            short = ids(first, generate=False)
            longer = (ids((*first, *GO_ON), generate=False), ids((*first, GO_ON[0]), generate=True))
        except DataError:
            return False
        if any(each[: len(short)] != short for each in longer):
            return False
    return True


def _gaps_of_probe(draft: Own) -> tuple[tuple[str, ...], str]:
    shapes = tuple((message.role, None, "[]") for message in PROBE)
    form = draft.form(shapes, "[]", generate=False)
    return form.gaps, form.asks[1]


def _ends(message: Message, text: str, start: int, following: str) -> Iterator[int]:
    """Where a content may end that begins at `start`: whole, trimmed, or, of an answer that is only context, without its beginning."""
    said = message.text
    trims = (None, "\n", " ")
    forms = [said, *(said.strip(c) for c in trims), *(said.lstrip(c) for c in trims), *(said.rstrip(c) for c in trims)]
    yield from (start + len(form) for form in dict.fromkeys(forms) if text.startswith(form, start))
    if message.role != "assistant" or message.weight > 0:
        return
    end = text.find(following, start) if following else len(text)
    while end >= 0:
        kept = text[start:end].rstrip()
        if kept and said.rstrip().endswith(kept):
            yield end
        end = text.find(following, end + 1) if following else -1


def _stretches(text: str, spans: Sequence[tuple[int, int]], cuts: Sequence[tuple[int, int, bool]]) -> Iterator[Stretch]:
    """The text cut into what is read and what is written; contents stay apart from markup."""
    edges = [0, *(edge for start, end, _ in cuts for edge in (start, end)), len(text)]
    kinds = [flag for *_, trained in cuts for flag in (False, trained)]
    for start, end, trained in zip(edges, edges[1:], [*kinds, False], strict=False):
        parts: list[Part] = []
        at = start
        for left, right in spans:
            if right <= start or left >= end:
                continue
            parts += [Part(text[at:left], said=False), Part(text[left:right], said=True)]
            at = right
        parts.append(Part(text[at:end], said=False))
        yield Stretch(tuple(part for part in parts if part.text), trained)


def _mark(i: int) -> str:
    """A word for message i that no template, no trimming and no change of case mistakes for another."""
    letters = "".join(chr(ord("a") + int(digit)) for digit in str(i))
    return f"qxzj{letters}jzxq"


def _frozen(value: Sequence[Json]) -> str:
    return json.dumps(list(value), ensure_ascii=False) if value else "[]"


def _shaped(shape: tuple[str, str | None, str], mark: str) -> Row:
    role, literal, calls = shape
    return _with_calls({"role": role, "content": mark if literal is None else literal}, json.loads(calls))


def _row(message: Message) -> Row:
    return _with_calls({"role": message.role, "content": message.text}, list(message.tool_calls))


def _with_calls(row: Row, calls: Sequence[Json]) -> Row:
    return row | {"tool_calls": [_call(call) for call in calls]} if calls else row


def _call(call: Json) -> Json:
    """A tool call as templates take it: arguments as an object, where files often hold them as JSON text."""
    if not isinstance(call, dict):
        return call
    inner = call.get("function", call)
    if not isinstance(inner, dict) or not isinstance(inner.get("arguments"), str):
        return call
    try:
        inner = inner | {"arguments": json.loads(inner["arguments"])}
    except json.JSONDecodeError:
        return call
    return call | {"function": inner} if "function" in call else inner


def _called(value: Json) -> str:
    """The name of a tool, or of the tool that is called."""
    inner = value.get("function", value) if isinstance(value, dict) else {}
    return str(inner.get("name", "")) if isinstance(inner, dict) else ""


def _texts(value: Json) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for each in (*value.keys(), *value.values()) if isinstance(value, dict) else value:
            yield from _texts(each)
