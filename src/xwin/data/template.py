"""Template: messages <-> token ids. What is said is kept apart from markup, so it can never become a control token.

Laws, tested for every template over many tokenizers:
    1. prompt(m) is what the exported tokenizer's chat template gives, and so is render(c).tokens.
    2. render(c).tokens starts with prompt(c without its last answer).
    3. parse(trained tokens of the last turn) is the last message, trimmed where the template trims.
    4. the prompt of a longer conversation extends the shorter one's rendering, or `extends` is False.

Two exceptions to law 1, both on purpose. A special token inside what somebody said is text here; a plain tokenizer makes it a control token. And an
answer is tokenised apart from its prompt, as an engine writes it: where a prompt ends in white space or a sign and the answer does not begin with a
letter, or where a prompt ends in several line breaks, a plain tokenizer may draw the line between tokens elsewhere. The ids decode to the published
string in both cases. (A third is no choice: U+2581, which SentencePiece itself writes for a space, is one to such a tokenizer wherever it stands.)
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.metadata import version
from itertools import tee
from pathlib import Path
from typing import Any, Protocol

from tokenizers import Tokenizer

from xwin.data._export import read_json, write_layout
from xwin.data._own import Jinja, Own, own
from xwin.data._rules import Prefix, apply_rules, open_tokenizer, prefix_of, rules_of, with_prefix
from xwin.data._tables import TABLES, VICUNA_SYSTEM, Tabular, markers
from xwin.data._words import Stretch, Tokens, Words, pieces
from xwin.data.batch import Sample
from xwin.data.conversation import Conversation, Json, Message, Preference
from xwin.errors import DataError, ModelError
from xwin.run.storage import digest_file

__all__ = [
    "NAMES",
    "VICUNA_SYSTEM",
    "Layout",
    "Own",
    "Rendered",
    "Tabular",
    "Template",
    "Tokens",
    "answers",
    "as_trained",
    "describe",
    "export_template",
    "load_template",
    "samples",
    "template_digest",
]

NAMES = (*TABLES, "own")
"""Templates that `load_template` knows: published ones, and the tokenizer's own."""

FIX = "use another template, and report this with the name of the tokenizer"
CHECK = (Message("user", "Hi!"), Message("assistant", "Hello."), Message("user", "Who are you?"))


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as tokens."""

    tokens: tuple[int, ...]
    """[L]"""
    mask: tuple[bool, ...]
    """[L] True where predicting tokens[t] is trained: assistant text and the end of its turn."""


class Template(Protocol):
    """See the laws above. `tools` are descriptions of tools, as the tokenizer's own chat template takes them."""

    @property
    def stop(self) -> tuple[int, ...]:
        """Token ids that end an answer; the first one is trained at the end of every answer."""
        ...

    @property
    def bos(self) -> int | None:
        """The token that begins a sequence, where the tokenizer has one."""
        ...

    @property
    def extends(self) -> bool:
        """Whether law 4 holds."""
        ...

    def render(self, messages: Sequence[Message], tools: Sequence[Json] = ()) -> Rendered:
        """A whole conversation; assistant messages of weight 0 are not trained.

        Raises:
            DataError: the template has no place for a message; says which.
        """
        ...

    def prompt(self, messages: Sequence[Message], tools: Sequence[Json] = ()) -> tuple[int, ...]:
        """What an engine continues with the assistant's next answer. Raises like `render`."""
        ...

    def parse(self, completion: Sequence[int]) -> Message:
        """The answer an engine wrote, its stop token included or not."""
        ...

    def tokenise(self, conversations: Iterable[Conversation]) -> Iterator[Tokens]:
        """Ids and trained ranges of many conversations: what `render` gives, by the tokenizer's batch interface. Tools are read from meta["tools"].

        Raises:
            DataError: as `render`; names the conversation.
        """
        ...

    def render_all(self, conversations: Iterable[Conversation]) -> Iterator[Rendered]:
        """`render` of each conversation, fast."""
        ...

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens, special ones spelled out."""
        ...


class Layout(Protocol):
    """What differs between templates: where markup stands."""

    @property
    def stop(self) -> tuple[int, ...]:
        """See Template."""
        ...

    @property
    def extends(self) -> bool:
        """See Template."""
        ...

    def lay(self, messages: Sequence[Message], tools: Sequence[Json], *, generate: bool) -> list[Stretch]:
        """The conversation as stretches; with `generate`, up to where the next answer begins."""
        ...

    def read(self, text: str) -> str:
        """An answer, from what the model wrote before the end token."""
        ...


@dataclass(frozen=True)
class LaidOut:
    """A Template: a layout over a tokenizer."""

    words: Words
    layout: Layout

    @property
    def stop(self) -> tuple[int, ...]:
        """See Template."""
        return self.layout.stop

    @property
    def bos(self) -> int | None:
        """See Template."""
        return self.words.controls.get(self.words.names.get("bos_token", ""))

    @property
    def extends(self) -> bool:
        """See Template."""
        return self.layout.extends

    def render(self, messages: Sequence[Message], tools: Sequence[Json] = ()) -> Rendered:
        """See Template."""
        return _rendered(next(self.words.tokenise([self.layout.lay(messages, tools, generate=False)])))

    def prompt(self, messages: Sequence[Message], tools: Sequence[Json] = ()) -> tuple[int, ...]:
        """See Template."""
        if messages[-1].role == "assistant":
            raise DataError("a prompt must end with the user's turn", fix="drop the last answer")
        return tuple(next(self.words.tokenise([self.layout.lay(messages, tools, generate=True)])).ids)

    def parse(self, completion: Sequence[int]) -> Message:
        """See Template."""
        end = next((i for i, token in enumerate(completion) if token in self.stop), len(completion))
        return Message("assistant", self.layout.read(self.words.decode(completion[:end])))

    def tokenise(self, conversations: Iterable[Conversation]) -> Iterator[Tokens]:
        """See Template."""
        return self.words.tokenise(map(self._lay, conversations))

    def render_all(self, conversations: Iterable[Conversation]) -> Iterator[Rendered]:
        """See Template."""
        return map(_rendered, self.tokenise(conversations))

    def decode(self, tokens: Sequence[int]) -> str:
        """See Template."""
        return self.words.decode(tokens)

    def _lay(self, conversation: Conversation) -> list[Stretch]:
        try:
            return self.layout.lay(conversation.messages, conversation.meta.get("tools") or (), generate=False)
        except DataError as error:
            where = f"conversation {conversation.id}" + (f", {error.where}" if error.where else "")
            raise DataError(error.what, where, error.fix) from error


def _rendered(tokens: Tokens) -> Rendered:
    mask = [False] * len(tokens.ids)
    for start, end in tokens.trained:
        mask[start:end] = [True] * (end - start)
    return Rendered(tuple(tokens.ids), tuple(mask))


def samples(template: Template, conversations: Iterable[Conversation]) -> Iterator[Sample]:
    """One training sample per conversation, with the column `weight`: of each trained token, that of its message.

    Raises:
        DataError: a conversation in which nothing would be trained; says which.
    """
    named, laid = tee(conversations)
    for conversation, tokens in zip(named, template.tokenise(laid), strict=True):
        if not tokens.trained:
            raise DataError("nothing would be trained: there is no assistant turn with weight", f"conversation {conversation.id}")
        mask, weight = [False] * len(tokens.ids), [0.0] * len(tokens.ids)
        turns = [m.weight for m in conversation.messages if m.role == "assistant" and m.weight > 0]
        for (start, end), value in zip(tokens.trained, turns, strict=True):
            mask[start:end], weight[start:end] = [True] * (end - start), [value] * (end - start)
        yield Sample(conversation.id, tuple(tokens.ids), tuple(mask), {"weight": tuple(weight)})


def answers(template: Template, conversations: Iterable[Conversation]) -> Iterator[Rendered]:
    """Each conversation with only its last answer trained: what precedes it is the prompt that an engine would continue.

    Raises:
        DataError: a conversation does not end with an answer; says which.
    """

    def last_alone(conversation: Conversation) -> Conversation:
        *before, answer = conversation.messages
        if answer.role != "assistant":
            raise DataError("does not end with an answer", f"conversation {conversation.id}")
        context = (replace(m, weight=0.0) if m.role == "assistant" else m for m in before)
        return replace(conversation, messages=(*context, replace(answer, weight=1.0)))

    return template.render_all(map(last_alone, conversations))


def as_trained(template: Template, item: Conversation | Preference) -> dict[str, Rendered]:
    """What the stages make of a row: "chosen" and "rejected" of a preference, "conversation", or "prompt", of which nothing is trained.

    Of a preference and of a labelled conversation only the last answer is trained; of another conversation every answer that has a weight.

    Raises:
        DataError: the template has no place for a message; says which.
    """
    if isinstance(item, Preference):
        sides = {"chosen": item.chosen, "rejected": item.rejected}
        told = [Conversation(item.id, (*item.prompt, answer), meta=item.meta) for answer in sides.values()]
        return dict(zip(sides, answers(template, told), strict=True))
    if item.messages[-1].role != "assistant":
        tokens = template.prompt(item.messages, item.meta.get("tools") or ())
        return {"prompt": Rendered(tokens, (False,) * len(tokens))}
    return {"conversation": next(template.render_all([item]) if item.label is None else answers(template, [item]))}


def describe(template: Template, rendered: Rendered) -> list[tuple[str, bool]]:
    """(text, trained) of each token, in order, to be shown. Tokens that each hold a part of one character come as one; joined, the texts are the
    decoded conversation."""
    return pieces(template.decode, rendered.tokens, rendered.mask)


@lru_cache(maxsize=8)
def load_template(folder: Path, name: str) -> Template:
    """The template `name` (one of NAMES) over the tokenizer of a Hugging Face folder.

    Raises:
        ModelError: no tokenizer, no end-of-sequence token, or no chat template where the own one is asked for.
    """
    return _load(folder, _known(folder, name), open_tokenizer(folder))


REVISION = 1
"""Of how templates lay conversations out; raised when one gives other ids."""

TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"),
    *("tokenizer.model", "vocab.json", "merges.txt"),
)
PACKAGES = ("transformers", "tokenizers")


def template_digest(folder: Path, name: str) -> str:
    """Names what `load_template(folder, name)` does: equal text for equal ids."""
    parts = [f"{REVISION} {name}", *(f"{file} {digest_file(folder / file)}" for file in TOKENIZER_FILES if (folder / file).is_file())]
    parts += [f"model type {read_json(folder / 'config.json').get('model_type')}"]  # where the tokenizer names no class, it chooses one
    parts += [f"{package} {version(package)}" for package in PACKAGES]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def export_template(folder: Path, name: str) -> None:
    """Writes the template `name` into the tokenizer of a Hugging Face folder, and checks that transformers' tokenizer gives its ids.

    The folder then ends answers with the template's end token, in `eos_token` and in generation_config.json. Where the tokenizer lacks the published
    one, the Jinja template names the token that stands for it. "own" leaves the folder as it is.

    Raises:
        ModelError: as `load_template`, or the folder would give other ids than were trained.
    """
    loaded = open_tokenizer(folder)
    template = _load(folder, _known(folder, name), loaded)
    if not isinstance(template.layout, Tabular):
        return
    write_layout(folder, template.layout, loaded.backend_tokenizer)
    exported = open_tokenizer(folder)

    def ids(rows: list[dict[str, str]]) -> list[int]:
        return list(exported.apply_chat_template(rows, add_generation_prompt=True, return_dict=False))

    _require_agreement(_load(folder, name, exported), ids, folder)
    if exported.eos_token_id != template.stop[0]:
        raise ModelError("the exported tokenizer ends answers with another token", str(folder), FIX)


def _require_agreement(template: LaidOut, plain: Callable[[list[dict[str, str]]], list[int]], folder: Path) -> None:
    """Whether a plain tokenizer gives the ids of a first prompt and, from the end of an answer on, of the next one."""
    for messages in (CHECK[:1], CHECK):
        rows = [{"role": message.role, "content": message.text} for message in messages]
        ids, found = list(template.prompt(messages)), plain(rows)
        since = 0 if len(messages) == 1 else len(ids) - 1 - ids[::-1].index(template.stop[0])
        if found[len(found) - len(ids) + since :] != ids[since:] or template.decode(found) != template.decode(ids):
            raise ModelError("a plain tokenizer would not give the ids of this template", str(folder), FIX)


def _load(folder: Path, name: str, loaded: Any) -> LaidOut:
    backend: Tokenizer = loaded.backend_tokenizer
    names = {key: str(value) for key, value in loaded.special_tokens_map.items() if not isinstance(value, list | tuple)}
    if name == "own":
        return _load_own(folder, backend, names, loaded.chat_template)
    marks = {mark for table in TABLES[name] for text in markers(table) for mark in _added(backend) if mark in text}
    words = Words(backend, names, marks)
    if words.prefix is Prefix.ALWAYS:
        words = Words(backend, names, marks, Prefix.FIRST)
    table = next(table for table in TABLES[name] if all(each in words.controls for each in table.needs))
    end = table.end if table.end in words.controls else names.get("eos_token", "")
    if end not in words.controls:
        raise ModelError("the tokenizer names no end-of-sequence token", str(folder), "set eos_token in tokenizer_config.json")
    layout = Tabular(table, _bos(folder, backend, names, words), end, (words.controls[end],))
    template = LaidOut(words, layout)
    _require_agreement(template, _whole(backend, layout, names), folder)
    return template


def _whole(tokenizer: Tokenizer, layout: Tabular, names: dict[str, str]) -> Callable[[list[dict[str, str]]], list[int]]:
    """Whole strings to ids, as the folder will do once the layout is written into it."""
    jinja, rules = Jinja(layout.jinja(), names), rules_of(tokenizer)
    if prefix_of(rules) is Prefix.ALWAYS:
        tokenizer = copy.deepcopy(tokenizer)
        apply_rules(tokenizer, with_prefix(rules, Prefix.FIRST))
    return lambda rows: tokenizer.encode(jinja(rows, (), generate=True), add_special_tokens=False).ids


def _load_own(folder: Path, backend: Tokenizer, names: dict[str, str], source: object) -> LaidOut:
    if isinstance(source, dict):
        source = source.get("default")
    if not isinstance(source, str):
        raise ModelError("the tokenizer has no chat template", str(folder), f"use one of: {', '.join(TABLES)}")
    words = Words(backend, names)
    return LaidOut(words, own(words, Jinja(source, names), str(folder)))


def _known(folder: Path, name: str) -> str:
    if name not in NAMES:
        raise ModelError(f"there is no template '{name}'", str(folder), f"one of: {', '.join(NAMES)}")
    return name


def _added(tokenizer: Tokenizer) -> list[str]:
    return [token.content for token in tokenizer.get_added_tokens_decoder().values()]


def _bos(folder: Path, tokenizer: Tokenizer, names: dict[str, str], words: Words) -> str:
    """The beginning-of-sequence token, if the tokenizer puts it before a text by itself: its settings say so, or it is seen to."""
    bos = names.get("bos_token", "")
    if bos not in words.controls:
        return ""
    stated = read_json(folder / "tokenizer_config.json").get("add_bos_token")
    does = stated if isinstance(stated, bool) else tokenizer.encode("a").ids[:1] == [words.controls[bos]]
    return bos if does else ""
