"""Template: messages <-> token ids. Pieces are tokenised apart and joined as ids, so content can never become a control token.

Laws, tested for every template:
    1. prompt(m) is what the exported tokenizer's chat template gives.
    2. render(c).tokens starts with prompt(c without its last answer).
    3. parse(trained tokens of the last turn) is the last message.
    4. the prompt of a longer conversation extends the shorter one's rendering, or `extends` is False.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from tokenizers import Tokenizer

from xwin.data.batch import Sample
from xwin.data.conversation import Conversation, Json, Message
from xwin.errors import DataError, ModelError

VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
"""The system text of Vicuna v1.1 (FastChat conversation.py; Xwin-LM README)."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as tokens."""

    tokens: tuple[int, ...]
    """[L]"""
    mask: tuple[bool, ...]
    """[L] True where predicting tokens[t] is trained: assistant text and the end of its turn."""


class Template(Protocol):
    """See the laws above."""

    @property
    def stop(self) -> tuple[int, ...]:
        """Token ids that end an answer."""
        ...

    @property
    def extends(self) -> bool:
        """Whether law 4 holds."""
        ...

    def render(self, messages: Sequence[Message]) -> Rendered:
        """A whole conversation; assistant messages of weight 0 are not trained."""
        ...

    def prompt(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """What an engine continues with the assistant's next answer."""
        ...

    def parse(self, completion: Sequence[int]) -> Message:
        """The answer an engine wrote, its stop token included or not."""
        ...


@dataclass(frozen=True)
class Words:
    """A tokenizer seen as two functions: text to ids with nothing added and nothing special, and back."""

    encode: Callable[[str], tuple[int, ...]]
    decode: Callable[[Sequence[int]], str]
    ids: Callable[[str], int | None]
    """Token -> its id, or None; also for special tokens."""


@dataclass(frozen=True)
class Vicuna:
    """Vicuna v1.1, exact to the published string:

    <system> USER: Hi! ASSISTANT: Hello.</s>USER: Who are you? ASSISTANT:

    A separating space belongs to the content after it. Where the tokenizer has no `</s>`, its own end-of-sequence token stands there.
    """

    words: Words
    bos: tuple[int, ...]
    eos: int
    extends: bool = True

    @property
    def stop(self) -> tuple[int, ...]:
        """The end-of-sequence token."""
        return (self.eos,)

    def render(self, messages: Sequence[Message]) -> Rendered:
        """See Template."""
        tokens: list[int] = list(self.bos)
        mask: list[bool] = [False] * len(tokens)
        for piece, trained in self._pieces(messages):
            tokens += piece
            mask += [trained] * len(piece)
        return Rendered(tuple(tokens), tuple(mask))

    def prompt(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """See Template."""
        _require_open(messages)
        return (*self.render(messages).tokens, *self.words.encode(" ASSISTANT:"))

    def parse(self, completion: Sequence[int]) -> Message:
        """See Template."""
        ids = list(completion)
        ids = ids[: ids.index(self.eos)] if self.eos in ids else ids
        return Message("assistant", self.words.decode(ids).removeprefix(" "))

    def _pieces(self, messages: Sequence[Message]) -> list[tuple[tuple[int, ...], bool]]:
        """(ids, trained) of each piece."""
        system, rest = (messages[0].text, messages[1:]) if messages[0].role == "system" else (VICUNA_SYSTEM, messages)
        pieces: list[tuple[tuple[int, ...], bool]] = [(self.words.encode(system), False)]
        start = " USER:" if system else "USER:"
        for message in rest:
            if message.role == "user":
                pieces += [(self.words.encode(start), False), (self.words.encode(" " + message.text), False)]
                start = "USER:"
            elif message.role == "assistant":
                answer = (*self.words.encode(" " + message.text), self.eos)
                pieces += [(self.words.encode(" ASSISTANT:"), False), (answer, message.weight > 0)]
            else:
                raise DataError(f"the Vicuna template has no place for a {message.role} message here", fix="use a template that has one")
        return pieces

    @staticmethod
    def jinja(bos: str, eos: str) -> str:
        """The same template for a tokenizer's `chat_template`; `bos` is empty where the tokenizer adds none."""
        return (
            "{%- if messages[0]['role'] == 'system' -%}{%- set system = messages[0]['content'] -%}{%- set rest = messages[1:] -%}"
            f"{{%- else -%}}{{%- set system = {json.dumps(VICUNA_SYSTEM)} -%}}{{%- set rest = messages -%}}{{%- endif -%}}"
            f"{{{{- {json.dumps(bos)} + system -}}}}"
            "{%- for message in rest -%}"
            "{%- if message['role'] == 'user' -%}{{- (' ' if loop.first and system else '') + 'USER: ' + message['content'] -}}"
            "{%- elif message['role'] == 'assistant' -%}{{- ' ASSISTANT: ' + message['content'] + " + json.dumps(eos) + " -}}"
            "{%- else -%}{{- raise_exception('the Vicuna template has no place for this role') -}}{%- endif -%}"
            "{%- endfor -%}"
            "{%- if add_generation_prompt -%}{{- ' ASSISTANT:' -}}{%- endif -%}"
        )


@dataclass(frozen=True)
class Own:
    """The tokenizer's own Jinja chat template, content kept apart from markup.

    The template is rendered with a placeholder for every content; the text between placeholders is markup, whose special tokens count.
    """

    words: Words
    markup: Callable[[str], tuple[int, ...]]
    """Text of the template -> ids, special tokens recognised."""
    apply: Callable[[Sequence[dict[str, str]], bool], str]
    """(messages, add_generation_prompt) -> text."""
    stop: tuple[int, ...]
    extends: bool = False

    def prompt(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """See Template."""
        _require_open(messages)
        return tuple(t for piece, _ in self._pieces(messages, generate=True) for t in piece)

    def render(self, messages: Sequence[Message]) -> Rendered:
        """See Template. The end of an assistant turn is trained with its text."""
        pieces = self._pieces(messages, generate=False)
        tokens: list[int] = []
        mask: list[bool] = []
        for i, (piece, trained) in enumerate(pieces):
            ends = 1 if i and pieces[i - 1][1] and piece and piece[0] in self.stop else 0
            tokens += piece
            mask += [trained or j < ends for j in range(len(piece))]
        return Rendered(tuple(tokens), tuple(mask))

    def parse(self, completion: Sequence[int]) -> Message:
        """See Template."""
        ids = list(completion)
        end = next((i for i, token in enumerate(ids) if token in self.stop), len(ids))
        return Message("assistant", self.words.decode(ids[:end]))

    def _pieces(self, messages: Sequence[Message], *, generate: bool) -> list[tuple[tuple[int, ...], bool]]:
        marks = [f"\u2063{i}\u2063" for i in range(len(messages))]
        text = self.apply([{"role": m.role, "content": mark} for m, mark in zip(messages, marks, strict=True)], generate)
        pieces: list[tuple[tuple[int, ...], bool]] = []
        for mark, message in zip(marks, messages, strict=True):
            before, found, text = text.partition(mark)
            if not found:
                raise ModelError("the chat template drops or changes a message", fix="use the vicuna template")
            pieces.append((self.markup(before), False))
            pieces.append((self.words.encode(message.text), message.role == "assistant" and message.weight > 0))
        return [*pieces, (self.markup(text), False)]


def _require_open(messages: Sequence[Message]) -> None:
    if messages[-1].role == "assistant":
        raise DataError("a prompt must end with the user's turn", fix="drop the last answer")


def samples(template: Template, conversations: Sequence[Conversation], *, longest: int) -> list[Sample]:
    """One training sample per conversation.

    Raises:
        DataError: a conversation in which nothing would be trained, or one longer than `longest` tokens; says which.
    """
    out = []
    for conversation in conversations:
        rendered = template.render(conversation.messages)
        if not any(rendered.mask):
            raise DataError("nothing would be trained: there is no assistant turn with weight", f"conversation {conversation.id}")
        if len(rendered.tokens) > longest:
            raise DataError(
                f"{len(rendered.tokens)} tokens, but a batch holds {longest}", f"conversation {conversation.id}", "raise tokens_per_batch"
            )
        out.append(Sample(conversation.id, rendered.tokens, rendered.mask))
    return out


@lru_cache(maxsize=8)
def load_template(folder: Path, name: str) -> Template:
    """The template `name` ("vicuna" or "own") over the tokenizer of a Hugging Face folder.

    Raises:
        ModelError: no tokenizer, no end-of-sequence token, or no chat template where the own one is asked for.
    """
    tokenizer, settings = _tokenizer(folder), _settings(folder)
    words = _words(folder, tokenizer)
    eos = _eos(folder, settings, words)
    if name == "vicuna":
        bos = words.ids(_text(settings.get("bos_token"))) if settings.get("add_bos_token") else None
        return Vicuna(words, () if bos is None else (bos,), eos)
    jinja = settings.get("chat_template") or _read(folder / "chat_template.jinja")
    if not jinja:
        raise ModelError("the tokenizer has no chat template", str(folder), "use template: vicuna")
    return Own(words, lambda text: tuple(tokenizer.encode(text, add_special_tokens=False).ids), _jinja(jinja, settings), (eos,))


def export_vicuna(folder: Path) -> None:
    """Writes the Vicuna chat template into the tokenizer of a Hugging Face folder, with the end-of-sequence token that stands for `</s>`."""
    settings = _settings(folder)
    bos = _text(settings.get("bos_token")) if settings.get("add_bos_token") else ""
    settings["chat_template"] = Vicuna.jinja(bos, _text(settings.get("eos_token")))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "chat_template.jinja").unlink(missing_ok=True)


def _tokenizer(folder: Path) -> Tokenizer:
    path = folder / "tokenizer.json"
    if not path.exists():
        raise ModelError("has no tokenizer.json", str(folder), "save its tokenizer with transformers' fast tokenizer first")
    return Tokenizer.from_file(str(path))


def _settings(folder: Path) -> dict[str, Any]:
    return json.loads(_read(folder / "tokenizer_config.json") or "{}")


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""


def _text(token: Any) -> str:
    """A special token as tokenizer_config.json writes it: text, or an object with content."""
    return str(token["content"] if isinstance(token, dict) else token or "")


def _words(folder: Path, tokenizer: Tokenizer) -> Words:
    content = Tokenizer.from_str(json.dumps(_unprefixed(json.loads(tokenizer.to_str()))))
    content.encode_special_tokens = True  # special tokens inside content are text
    return Words(
        lambda text: tuple(content.encode(text, add_special_tokens=False).ids),
        lambda ids: content.decode(list(ids), skip_special_tokens=False),
        tokenizer.token_to_id,
    )


def _unprefixed(node: Json) -> Json:
    """A tokenizer's JSON without the space that Llama's puts before a text and takes away again: pieces stand in the middle of one."""
    if isinstance(node, list):
        return [part for part in map(_unprefixed, node) if part is not None]
    if not isinstance(node, dict):
        return node
    if node.get("type") == "Prepend" or (node.get("type") == "Strip" and node.get("start", 0) > 0):
        return None
    never = {"prepend_scheme": "never"} if node.get("type") == "Metaspace" else {}
    plain = {"add_prefix_space": False} if node.get("type") == "ByteLevel" else {}
    parts = {
        key: _unprefixed(node[key]) for key in ("normalizer", "pre_tokenizer", "decoder", "normalizers", "pretokenizers", "decoders") if key in node
    }
    return node | parts | never | plain


def _eos(folder: Path, settings: dict[str, Any], words: Words) -> int:
    eos = words.ids(_text(settings.get("eos_token")))
    if eos is None:
        raise ModelError("the tokenizer names no end-of-sequence token", str(folder), "set eos_token in tokenizer_config.json")
    return eos


def _jinja(source: str, settings: dict[str, Any]) -> Callable[[Sequence[dict[str, str]], bool], str]:
    """transformers' own renderer of chat templates: a sandboxed Jinja."""
    from transformers.utils.chat_template_utils import render_jinja_template

    special: dict[str, Any] = {name: _text(settings.get(name)) for name in ("bos_token", "eos_token", "unk_token", "pad_token")}

    def apply(messages: Sequence[dict[str, str]], generate: bool) -> str:  # noqa: FBT001 - the shape of a two-argument function
        texts, _ = render_jinja_template([list(messages)], chat_template=source, add_generation_prompt=generate, **special)
        return texts[0]

    return apply
