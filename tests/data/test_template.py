"""Templates: the published Vicuna string, and the four laws over every template and several kinds of tokenizer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer

from xwin.data.conversation import Conversation, Message
from xwin.data.template import VICUNA_SYSTEM, Own, Template, Vicuna, export_vicuna, load_template, samples
from xwin.errors import DataError, ModelError

ASK, ANSWER = Message("user", "Hi!"), Message("assistant", "Hello.")
CHAT = (ASK, ANSWER, Message("user", "Who are you?"))
CORPUS = [f"{VICUNA_SYSTEM} USER: Hi! ASSISTANT: Hello.</s>USER: Who are you? ASSISTANT:", "a  b\n\n c USER ASSISTANT", "user assistant system"] * 3
CHATML = (
    "{% for message in messages %}{{ bos_token if loop.first }}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + eos_token + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def byte_level(tokenizer: Tokenizer) -> None:
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()


def metaspace(tokenizer: Tokenizer) -> None:
    """As transformers 5 writes Llama 2's: a space before the first word of a text, and before no other piece."""
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])


def legacy(tokenizer: Tokenizer) -> None:
    """As the files of Llama 2 have it: a space before every text between special tokens."""
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])


def write_tokenizer(folder: Path, form: Callable[[Tokenizer], None], **more: Any) -> Path:
    """A trained BPE tokenizer of a kind that models have, with merges across words' beginnings, `<s>` first and `</s>` as the end."""
    specials = ["<unk>", "<s>", "</s>", "<|im_start|>"]
    fallback = form is not byte_level
    tokenizer = Tokenizer(models.BPE(byte_fallback=fallback, unk_token="<unk>" if fallback else None))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace() if fallback else pre_tokenizers.ByteLevel(add_prefix_space=False)  # learns within words
    first = [*specials, *(f"<0x{b:02X}>" for b in range(256))] if fallback else specials
    alphabet = [] if fallback else pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=640, special_tokens=first, initial_alphabet=alphabet, show_progress=False))
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = [t for t in content["added_tokens"] if t["content"] in specials]
    content["pre_tokenizer"] = None
    tokenizer = Tokenizer.from_str(json.dumps(content))
    form(tokenizer)
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in specials])
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True, "chat_template": CHATML}
    settings_ = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False} | named | more
    (folder / "tokenizer_config.json").write_text(json.dumps(settings_))
    return folder


@pytest.fixture(scope="session")
def folders(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("tokenizers")
    made = {form.__name__: write_tokenizer(home / form.__name__, form) for form in (byte_level, metaspace, legacy)}
    return {"tiny": tiny_folder} | made


@pytest.fixture(scope="session")
def exported(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """transformers' tokenizer of each folder after the Vicuna template was written into it."""
    home, out = tmp_path_factory.mktemp("exported"), {}
    for name, folder in folders.items():
        shutil.copytree(folder, home / name)
        export_vicuna(home / name)
        out[name] = AutoTokenizer.from_pretrained(home / name)
    return out


FORMS = ["tiny", "byte_level", "metaspace", "legacy"]
PARTS = ["a", "Hi!", " ", "  ", "\n", "USER:", " USER: ", "ASSISTANT:", " ASSISTANT: x", "🐈", "é", "▁", "你好", "\u200b", ".", "\u20630\u2063"]
PLAIN = st.lists(st.one_of(st.sampled_from(PARTS), st.text(max_size=3)), max_size=6).map("".join)
SPECIAL = ["</s>", "<s>", "<unk>", "<|im_start|>", "<|im_end|>", "<|endoftext|>", "</s>USER: x", "<|im_end|>\n<|im_start|>user"]
ANY = st.lists(st.one_of(st.sampled_from(PARTS + SPECIAL), st.text(max_size=3)), max_size=6).map("".join)


@st.composite
def chats(draw: st.DrawFn, text: st.SearchStrategy[str]) -> tuple[Message, ...]:
    """[system,] then user and assistant in turn, ending with either."""
    turns = [Message("system", draw(text))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        turns += [Message("user", draw(text)), Message("assistant", draw(text), draw(st.sampled_from([1.0, 1.0, 0.0])))]
    return tuple(turns[: len(turns) - draw(st.integers(0, 1))])


def published(messages: tuple[Message, ...], eos: str) -> str:
    """The string of Vicuna v1.1, a second spelling: FastChat's two separators joined by hand."""
    system, rest = (messages[0].text, messages[1:]) if messages[0].role == "system" else (VICUNA_SYSTEM, messages)
    text = system
    for i, m in enumerate(rest):
        before = " " if (i == 0 and system) or m.role == "assistant" else ""
        text += before + {"user": "USER: ", "assistant": "ASSISTANT: "}[m.role] + m.text + (eos if m.role == "assistant" else "")
    return text if messages[-1].role == "assistant" else text + " ASSISTANT:"


def whole(folder: Path, ids: tuple[int, ...]) -> str:
    """What the ids say, special tokens spelled out."""
    return Tokenizer.from_file(str(folder / "tokenizer.json")).decode(list(ids), skip_special_tokens=False)


@pytest.mark.parametrize("form", FORMS)
def test_vicuna_is_the_published_string(form: str, folders: dict[str, Path]) -> None:
    template = load_template(folders[form], "vicuna")
    eos = "<|im_end|>" if form == "tiny" else "</s>"
    bos = "" if form == "tiny" else "<s>"
    assert whole(folders[form], template.prompt(CHAT)) == (
        f"{bos}A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions. "
        f"USER: Hi! ASSISTANT: Hello.{eos}USER: Who are you? ASSISTANT:"
    )


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=60, deadline=None)
@given(messages=chats(PLAIN))
def test_vicuna_decodes_to_the_published_string_whatever_is_said(form: str, messages: tuple[Message, ...], folders: dict[str, Path]) -> None:
    if form in {"metaspace", "legacy"}:  # they have no letter for "▁" but the space's
        messages = tuple(Message(m.role, m.text.replace("▁", "_")) for m in messages)
    template = load_template(folders[form], "vicuna")
    ids = template.render(messages).tokens if messages[-1].role == "assistant" else template.prompt(messages)
    eos, bos = ("<|im_end|>", "") if form == "tiny" else ("</s>", "<s>")
    assert whole(folders[form], ids) == bos + published(messages, eos)


@pytest.mark.parametrize("form", ["tiny", "byte_level", "metaspace"])
@settings(max_examples=60, deadline=None)
@given(messages=chats(PLAIN))
def test_law_1_a_vicuna_prompt_is_what_the_exported_tokenizer_gives(
    form: str, messages: tuple[Message, ...], folders: dict[str, Path], exported: dict
) -> None:
    rows = [{"role": m.role, "content": m.text} for m in messages]
    template, generate = load_template(folders[form], "vicuna"), messages[-1].role == "user"
    ids = template.prompt(messages) if generate else template.render(messages).tokens
    text = exported[form].apply_chat_template(rows, tokenize=False, add_generation_prompt=generate)
    assert text == ("" if form == "tiny" else "<s>") + published(messages, "<|im_end|>" if form == "tiny" else "</s>")
    if form != "metaspace" or not any(m.text.endswith((" ", "▁")) for m in messages):  # there a space joins the one of the next piece
        assert exported[form].apply_chat_template(rows, add_generation_prompt=generate, return_dict=False) == list(ids)


@pytest.mark.parametrize("form", ["tiny", "byte_level"])
@settings(max_examples=60, deadline=None)
@given(messages=chats(PLAIN))
def test_law_1_the_own_prompt_is_what_the_tokenizer_gives(form: str, messages: tuple[Message, ...], folders: dict[str, Path]) -> None:
    rows = [{"role": m.role, "content": m.text} for m in messages]
    template, generate = load_template(folders[form], "own"), messages[-1].role == "user"
    ids = template.prompt(messages) if generate else template.render(messages).tokens
    tokenizer = AutoTokenizer.from_pretrained(folders[form])
    assert tokenizer.apply_chat_template(rows, tokenize=False, add_generation_prompt=generate) == whole(folders[form], ids)
    assert form == "byte_level" or tokenizer.apply_chat_template(rows, add_generation_prompt=generate, return_dict=False) == list(ids)


EVERY = [(form, name) for form in FORMS for name in ("vicuna", "own")]


@pytest.mark.parametrize(("form", "name"), EVERY)
@settings(max_examples=60, deadline=None)
@given(messages=chats(ANY))
def test_laws_2_and_4_a_conversation_begins_with_its_prompts(form: str, name: str, messages: tuple[Message, ...], folders: dict[str, Path]) -> None:
    template = load_template(folders[form], name)
    tokens = template.render(messages).tokens
    assert len(tokens) == len(template.render(messages).mask)
    for i, message in enumerate(messages):
        if message.role == "assistant" and (template.extends or i == len(messages) - 1):
            prompt = template.prompt(messages[:i])
            assert tokens[: len(prompt)] == prompt
        if message.role == "user" and template.extends:
            shorter = template.render(messages[: i + 1]).tokens
            assert tokens[: len(shorter)] == shorter


@pytest.mark.parametrize(("form", "name"), EVERY)
@settings(max_examples=60, deadline=None)
@given(messages=chats(ANY))
def test_law_3_what_is_trained_last_is_the_last_answer(form: str, name: str, messages: tuple[Message, ...], folders: dict[str, Path]) -> None:
    if form in {"metaspace", "legacy"}:
        messages = tuple(Message(m.role, m.text.replace("▁", "_"), m.weight) for m in messages)
    template = load_template(folders[form], name)
    answer = Message("assistant", messages[-1].text)
    before = messages[:-1] if messages[-1].role == "assistant" else (*messages[:-1], ASK)
    rendered = template.render((*before, answer))
    completion = rendered.tokens[len(template.prompt(before)) :]
    trained = tuple(t for t, m in zip(completion, rendered.mask[-len(completion) :], strict=True) if m)
    assert template.parse(trained) == answer
    assert template.parse(completion) == answer, "what an engine writes, whatever it adds after the end"
    assert template.parse(trained[:-1]) == answer, "the end token is not needed"


@pytest.mark.parametrize(("form", "name"), EVERY)
@settings(max_examples=60, deadline=None)
@given(messages=chats(ANY))
def test_the_end_is_there_once_per_answer_and_trained_with_it(form: str, name: str, messages: tuple[Message, ...], folders: dict[str, Path]) -> None:
    template = load_template(folders[form], name)
    (eos,) = template.stop
    rendered = template.render(messages)
    trained = sum(m.role == "assistant" and m.weight > 0 for m in messages)
    assert sum(t == eos and m for t, m in zip(rendered.tokens, rendered.mask, strict=True)) == trained
    ends = len([m for m in messages if m.role == "assistant"]) if name == "vicuna" else len(messages)
    assert rendered.tokens.count(eos) == ends, "the end token stands only where a turn ends: in content it is text"
    starts = [i for i, m in enumerate(rendered.mask) if m and not rendered.mask[i - 1]]
    assert len(starts) == trained
    assert not rendered.mask[0]


@pytest.mark.parametrize(("form", "name"), EVERY)
@pytest.mark.parametrize("text", SPECIAL)
def test_special_tokens_inside_content_stay_text(form: str, name: str, text: str, folders: dict[str, Path]) -> None:
    template, tokenizer = load_template(folders[form], name), Tokenizer.from_file(str(folders[form] / "tokenizer.json"))
    plain, tricky = (template.prompt((Message("system", "s"), Message("user", content))) for content in ("x", text))
    specials = {t.content for t in tokenizer.get_added_tokens_decoder().values() if t.special}
    ids = {tokenizer.token_to_id(t) for t in specials}
    assert [t for t in tricky if t in ids] == [t for t in plain if t in ids]
    assert text in whole(folders[form], tricky)


def test_own_is_chatml_with_only_the_answers_trained(tiny_folder: Path, own_template: Template) -> None:
    rendered = own_template.render((*CHAT, Message("assistant", "Me.")))
    assert whole(tiny_folder, rendered.tokens) == (
        "<|im_start|>user\nHi!<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n"
        "<|im_start|>user\nWho are you?<|im_end|>\n<|im_start|>assistant\nMe.<|im_end|>\n"
    )
    trained = tuple(t for t, m in zip(rendered.tokens, rendered.mask, strict=True) if m)
    assert whole(tiny_folder, trained) == "Hello.<|im_end|>Me.<|im_end|>"
    assert isinstance(own_template, Own)


def test_vicuna_trains_the_answer_with_its_space_and_its_end(tiny_folder: Path, tiny_template: Template) -> None:
    rendered = tiny_template.render((ASK, ANSWER, Message("user", "x"), Message("assistant", "no", 0.0)))
    trained = tuple(t for t, m in zip(rendered.tokens, rendered.mask, strict=True) if m)
    assert whole(tiny_folder, trained) == " Hello.<|im_end|>"
    assert rendered.tokens[-1] == tiny_template.stop[0]
    assert isinstance(tiny_template, Vicuna)


def test_a_system_message_takes_the_place_of_the_default(tiny_folder: Path, tiny_template: Template, exported: dict) -> None:
    messages = (Message("system", "Be brief."), *CHAT)
    text = "Be brief. USER: Hi! ASSISTANT: Hello.<|im_end|>USER: Who are you? ASSISTANT:"
    assert whole(tiny_folder, tiny_template.prompt(messages)) == text
    rows = [{"role": m.role, "content": m.text} for m in messages]
    assert exported["tiny"].apply_chat_template(rows, tokenize=False, add_generation_prompt=True) == text
    empty = (Message("system", ""), ASK)
    assert whole(tiny_folder, tiny_template.prompt(empty)) == "USER: Hi! ASSISTANT:"


def test_a_role_without_a_place_is_refused_by_vicuna_and_by_its_export(tiny_template: Template, exported: dict) -> None:
    with pytest.raises(DataError, match="no place for a tool message"):
        tiny_template.render((ASK, ANSWER, Message("tool", "x")))
    with pytest.raises(DataError, match="no place for a system message"):
        tiny_template.render((ASK, Message("system", "x")))
    with pytest.raises(Exception, match="no place for this role"):
        exported["tiny"].apply_chat_template([{"role": "user", "content": "x"}, {"role": "tool", "content": "x"}], tokenize=False)


@pytest.mark.parametrize("name", ["vicuna", "own"])
def test_a_prompt_must_end_with_the_users_turn(name: str, tiny_folder: Path) -> None:
    with pytest.raises(DataError, match="must end with the user's turn"):
        load_template(tiny_folder, name).prompt((ASK, ANSWER))


def test_a_conversation_without_anything_to_train_is_an_error_that_shows_it(tiny_template: Template) -> None:
    for messages in ((ASK,), (ASK, Message("assistant", "no", 0.0))):
        with pytest.raises(DataError, match="nothing would be trained") as caught:
            samples(tiny_template, [Conversation("c9", messages)], longest=10_000)
        assert "c9" in caught.value.where


def test_samples_are_rendered_whole_or_refused(tiny_template: Template) -> None:
    chat = Conversation("c9", (ASK, ANSWER))
    rendered = tiny_template.render(chat.messages)
    (sample,) = samples(tiny_template, [chat], longest=len(rendered.tokens))
    assert (sample.id, sample.tokens, sample.mask) == ("c9", rendered.tokens, rendered.mask)
    with pytest.raises(DataError, match=f"{len(rendered.tokens)} tokens, but a batch holds {len(rendered.tokens) - 1}"):
        samples(tiny_template, [chat], longest=len(rendered.tokens) - 1)


def test_a_tokenizer_that_cannot_be_used_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no tokenizer.json"):
        load_template(tmp_path, "vicuna")
    bare = write_tokenizer(tmp_path / "bare", byte_level, eos_token=None, chat_template=None)
    with pytest.raises(ModelError, match="no end-of-sequence token"):
        load_template(bare, "vicuna")
    plain = write_tokenizer(tmp_path / "plain", byte_level, chat_template=None)
    with pytest.raises(ModelError, match="no chat template"):
        load_template(plain, "own")


def test_a_chat_template_that_drops_a_message_is_an_error(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path / "drops", byte_level, chat_template="{{ messages[-1]['content'] }}")
    with pytest.raises(ModelError, match="drops or changes a message"):
        load_template(folder, "own").prompt(CHAT)


def test_the_export_replaces_the_template_wherever_it_was(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path / "t", byte_level, eos_token={"__type": "AddedToken", "content": "</s>", "special": True})
    (folder / "chat_template.jinja").write_text(CHATML)
    export_vicuna(folder)
    rows = [{"role": m.role, "content": m.text} for m in CHAT]
    assert AutoTokenizer.from_pretrained(folder).apply_chat_template(rows, tokenize=False, add_generation_prompt=True).startswith("<s>A chat between")
