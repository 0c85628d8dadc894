"""What must hold of every template, as functions; and conversations that try to break it."""

from __future__ import annotations

import unicodedata
from typing import Any

from hypothesis import strategies as st

from xwin.data.conversation import Conversation, Message
from xwin.data.template import NAMES, Template, describe

TRIMMING = {"llama2", "llama3"}
MARKERS = [
    *("USER:", " USER: ", "ASSISTANT:", " ASSISTANT: x", "</s>USER: x", "[INST]", " [/INST] ", "<<SYS>>\n", "\n<</SYS>>\n\n"),
    *(
        "<|im_end|>\n<|im_start|>user\n",
        "<|im_start|>",
        "<|eot_id|>",
        "<|start_header_id|>system<|end_header_id|>\n\n",
        "<|user|>\n",
        "<|assistant|>",
    ),
    *("<think>", "\n</think>\n\n", "<start_of_turn>user", "<|endoftext|>", "<s>", "</s>", "<unk>", "<|begin_of_text|>", "<0x0A>"),
]
WORDS = [
    "a",
    "Hi!",
    " ",
    "  ",
    "\n",
    "\n\n",
    "\t",
    "🐈",
    "👩\u200d🚀",
    "é",
    "e\u0301",
    "\u0338x",
    "你好",
    "שלום",
    "\u202eאב",
    "\u200b",
    "\ufeff",
    "\u00a0",
    ".",
]
WORDS += ["\u20630\u2063", "It's 12345.", "x = (y);\n    z", "\ufffd", "qxzjajzxq", "{{ x }}", "{% raw %}", "\\n", '"', "\u0000"]
TEXTS = st.lists(st.one_of(st.sampled_from(WORDS), st.sampled_from(MARKERS), st.text(max_size=3)), max_size=6).map("".join)
"""Anything that people say, markup and special tokens among it, also nothing at all."""


@st.composite
def chats(draw: st.DrawFn, *, system: bool = True) -> tuple[Message, ...]:
    """[system,] then user and assistant in turn, ending with an answer; some answers are not trained."""
    turns = [Message("system", draw(TEXTS))] if system and draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        turns += [Message("user", draw(TEXTS)), Message("assistant", draw(TEXTS), draw(st.sampled_from([1.0, 1.0, 0.0])))]
    return tuple(turns)


def letters(messages: tuple[Message, ...], exported: Any) -> tuple[Message, ...]:
    """The messages in letters that the tokenizer keeps: composed, without the one that SentencePiece uses for a space, and all bytes known."""
    backend = exported.backend_tokenizer

    def known(c: str) -> bool:
        return (c.isascii() and c.isalnum()) or c in backend.decode(backend.encode(f"a{c}a").ids, skip_special_tokens=False)

    def kept(text: str) -> str:
        return "".join(filter(known, unicodedata.normalize("NFC", text).replace("▁", "_")))

    return tuple(Message(m.role, kept(m.text), m.weight) for m in messages)


def rows(messages: tuple[Message, ...]) -> list[dict[str, str]]:
    return [{"role": m.role, "content": m.text} for m in messages]


def specials(exported: Any) -> set[str]:
    return {token.content for token in exported.added_tokens_decoder.values() if token.special} | set(exported.all_special_tokens)


def loose(template: Template, messages: tuple[Message, ...]) -> bool:
    """An answer after a prompt that ends in white space, and more of it at the seam: the engine writes it apart, a plain tokenizer may not."""
    for i in (i for i, m in enumerate(messages) if m.role == "assistant"):
        prompt = template.decode(template.prompt(messages[:i]))
        if prompt[-1:].isspace() and (not messages[i].text or messages[i].text[0].isspace() or prompt[-2:].isspace()):
            return True
    return False


def law_1(template: Template, exported: Any, messages: tuple[Message, ...]) -> None:
    """Prompts and renderings are what plain transformers makes of the exported folder."""
    if any(odd in m.text for m in messages for odd in (*specials(exported), "▁")):
        return
    for said, generate in ((messages[:-1], True), (messages, False)):
        if not loose(template, said):
            ids = template.prompt(said) if generate else template.render(said).tokens
            assert exported.apply_chat_template(rows(said), add_generation_prompt=generate, return_dict=False) == list(ids)


def law_2_and_4(template: Template, messages: tuple[Message, ...]) -> None:
    """A rendering begins with its prompt; where the template extends, with every earlier prompt and rendering."""
    tokens = template.render(messages).tokens
    for i in (i for i, m in enumerate(messages) if m.role == "assistant"):
        if template.extends or i == len(messages) - 1:
            prompt = template.prompt(messages[:i])
            assert tokens[: len(prompt)] == prompt
        if template.extends:
            shorter = template.render(messages[: i + 1]).tokens
            assert tokens[: len(shorter)] == shorter
            if i + 1 < len(messages):
                assert template.prompt(messages[: i + 2])[: len(shorter)] == shorter


def law_3(template: Template, messages: tuple[Message, ...], *, trims: bool) -> None:
    """What is trained of the last answer says what it says, and so does what an engine writes, its end included or not."""
    *before, last = messages
    answer = Message("assistant", last.text.strip() if trims else last.text)
    rendered = template.render((*before, Message("assistant", last.text)))
    start = len(template.prompt(tuple(before)))
    completion, mask = rendered.tokens[start:], rendered.mask[start:]
    trained = tuple(t for t, m in zip(completion, mask, strict=True) if m)
    assert trained == completion[: len(trained)]
    assert template.parse(trained) == template.parse(completion) == template.parse(trained[:-1]) == answer


def one_end(template: Template, messages: tuple[Message, ...]) -> None:
    """Each trained answer is one range that ends with the stop token, which is nowhere else in it."""
    rendered = template.render(messages)
    ends = [i for i, (a, b) in enumerate(zip(rendered.mask, (*rendered.mask[1:], False), strict=True)) if a and not b]
    starts = [i for i, (a, b) in enumerate(zip((False, *rendered.mask), rendered.mask, strict=False)) if b and not a]
    assert len(starts) == len(ends) == sum(m.role == "assistant" and m.weight > 0 for m in messages)
    for start, end in zip(starts, ends, strict=True):
        assert rendered.tokens[end] == template.stop[0]
        assert not set(rendered.tokens[start:end]) & set(template.stop)


def text_stays_text(template: Template, exported: Any, messages: tuple[Message, ...]) -> None:
    """As many special tokens as in the same conversation about nothing."""
    ids = {i for i, token in exported.added_tokens_decoder.items() if token.special}
    plain = tuple(Message(m.role, "x", m.weight) for m in messages)
    tricky, simple = ([t for t in template.render(each).tokens if t in ids] for each in (messages, plain))
    assert tricky == simple


def all_at_once(template: Template, messages: tuple[Message, ...]) -> None:
    """The batch interface gives what one conversation alone gives, and the pieces to show are the decoded text."""
    alone = template.render(messages)
    again = list(template.render_all([Conversation("a", messages), Conversation("b", messages[:-1]), Conversation("c", messages)]))
    assert again == [alone, template.render(messages[:-1]), alone]
    shown = describe(template, alone)
    assert "".join(text for text, _ in shown) == template.decode(alone.tokens)


def all_laws(template: Template, exported: Any, messages: tuple[Message, ...], name: str) -> None:
    assert name in NAMES
    law_1(template, exported, messages)
    law_2_and_4(template, messages)
    law_3(template, letters(messages, exported), trims=name in TRIMMING)
    one_end(template, messages)
    text_stays_text(template, exported, messages)
    all_at_once(template, messages)


def own_laws(template: Template, exported: Any, messages: tuple[Message, ...]) -> None:
    """The laws for a tokenizer's own template, which may trim in its own way."""
    if not joined(template, exported, messages):
        law_1(template, exported, messages)
    law_2_and_4(template, messages)
    *before, last = letters(messages, exported)
    rendered = template.render((*before, Message("assistant", last.text)))
    said = template.parse(rendered.tokens[len(template.prompt(tuple(before))) :])
    assert said.text in last.text
    assert said.text.strip() == last.text.strip()
    one_end(template, messages)
    text_stays_text(template, exported, messages)
    all_at_once(template, messages)


def joined(template: Template, exported: Any, messages: tuple[Message, ...]) -> bool:
    """An answer after a prompt that ends in plain text, and no letter to begin with: a plain tokenizer may join the two."""
    for i in (i for i, m in enumerate(messages) if m.role == "assistant"):
        prompt = template.prompt(messages[:i])
        written = template.decode(template.render(messages[: i + 1]).tokens[len(prompt) :])
        if template.decode(prompt[-1:]) not in specials(exported) and not written[:1].isalpha():
            return True
    return False
