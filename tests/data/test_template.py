"""Templates: the published strings, what is trained, what is exported, what is refused. The laws are in test_template_laws.py."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from data.template_laws import MARKERS
from data.template_tokenizers import CHATML, FORMS, SPECIALS, byte_level, legacy, write_tokenizer
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from xwin.data._rules import Prefix
from xwin.data._words import Part, Stretch, Words
from xwin.data.conversation import Conversation, Message
from xwin.data.template import (
    NAMES,
    LaidOut,
    Own,
    Rendered,
    Tabular,
    Template,
    answers,
    describe,
    export_template,
    load_template,
    samples,
    template_digest,
)
from xwin.errors import DataError, ModelError

ASK, ANSWER = Message("user", "Hi!"), Message("assistant", "Hello.")
CHAT = (ASK, ANSWER, Message("user", "Who are you?"))
WITH_SYSTEM = (Message("system", "Be brief."), *CHAT)
CONTROLS = [*SPECIALS, "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
CALL = {"type": "function", "function": {"name": "weather", "arguments": '{"town": "Ulm"}'}}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {"town": {"type": "string"}}}}}


@pytest.fixture(scope="session")
def folders(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("tokenizers")
    made = {form.__name__: write_tokenizer(home / form.__name__, form) for form in FORMS}
    return {"tiny": tiny_folder, "full": write_tokenizer(home / "full", byte_level, CONTROLS)} | made


@pytest.fixture(scope="session")
def exported(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """transformers' tokenizer of each folder after the Vicuna template was written into it."""
    home, out = tmp_path_factory.mktemp("exported"), {}
    for name, folder in folders.items():
        shutil.copytree(folder, home / name)
        export_template(home / name, "vicuna")
        out[name] = AutoTokenizer.from_pretrained(home / name)
    return out


def whole(folder: Path, ids: tuple[int, ...]) -> str:
    """What the ids say, special tokens spelled out."""
    return Tokenizer.from_file(str(folder / "tokenizer.json")).decode(list(ids), skip_special_tokens=False)


def trained(template: Template, rendered: Rendered) -> list[str]:
    """The texts of the trained ranges."""
    ranges: list[list[int]] = []
    for i, learn in enumerate(rendered.mask):
        if learn and not rendered.mask[i - 1]:
            ranges.append([])
        if learn:
            ranges[-1].append(rendered.tokens[i])
    return [template.decode(each) for each in ranges]


@pytest.mark.parametrize("form", ["tiny", *(form.__name__ for form in FORMS)])
def test_vicuna_is_the_published_string(form: str, folders: dict[str, Path]) -> None:
    template = load_template(folders[form], "vicuna")
    eos = "<|im_end|>" if form == "tiny" else "</s>"
    bos = "" if form == "tiny" else "<s>"
    assert whole(folders[form], template.prompt(CHAT)) == (
        f"{bos}A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions. "
        f"USER: Hi! ASSISTANT: Hello.{eos}USER: Who are you? ASSISTANT:"
    )


PUBLISHED = {
    "vicuna": "<s>Be brief. USER: Hi! ASSISTANT: Hello.</s>USER: Who are you? ASSISTANT:",
    "chatml": (
        "<s><|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi!<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n"
        "<|im_start|>user\nWho are you?<|im_end|>\n<|im_start|>assistant\n"
    ),
    "llama2": "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi! [/INST] Hello. </s><s>[INST] Who are you? [/INST]",
    "llama3": (
        "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHi!<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nHello.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nWho are you?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    ),
    "mistral": "<s> [INST] Be brief.\n\nHi! [/INST] Hello.</s> [INST] Who are you? [/INST]",
    "zephyr": "<s><|system|>\nBe brief.</s>\n<|user|>\nHi!</s>\n<|assistant|>\nHello.</s>\n<|user|>\nWho are you?</s>\n<|assistant|>\n",
}
ENDS = {"vicuna": " Hello.</s>", "chatml": "Hello.<|im_end|>", "llama2": " Hello. </s>", "llama3": "Hello.<|eot_id|>"}
ENDS |= {"mistral": " Hello.</s>", "zephyr": "Hello.</s>"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_table_is_the_published_string(name: str, folders: dict[str, Path]) -> None:
    template = load_template(folders["full"], name)
    assert template.decode(template.prompt(WITH_SYSTEM)) == PUBLISHED[name]
    assert trained(template, template.render((*WITH_SYSTEM[:-1],))) == [ENDS[name]]


def test_mistrals_control_tokens_make_the_third_version(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path / "t", byte_level, [*SPECIALS, "[INST]", "[/INST]"])
    template = load_template(folder, "mistral")
    text = "<s>[INST] Hi![/INST] Hello.</s>[INST] Be brief.\n\nWho are you?[/INST]"
    assert template.decode(template.prompt(WITH_SYSTEM)) == text, "the system text goes into the last user turn"
    assert not template.extends
    assert load_template(write_tokenizer(tmp_path / "plain", byte_level), "mistral").extends


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_tokenizer_without_the_end_token_ends_with_its_own(name: str, tiny_folder: Path, tmp_path: Path) -> None:
    template = load_template(tiny_folder, name)
    own_end = "<|im_end|>"
    (answer,) = trained(template, template.render((ASK, ANSWER)))
    assert answer.endswith(own_end)
    assert answer.count(own_end) == 1
    folder = tmp_path / "t"
    shutil.copytree(tiny_folder, folder)
    export_template(folder, name)
    assert own_end in json.loads((folder / "tokenizer_config.json").read_text())["chat_template"]


def test_the_end_token_of_a_template_becomes_the_end_token_of_the_exported_folder(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "t"
    shutil.copytree(folders["full"], folder)
    (folder / "config.json").write_text(json.dumps({"eos_token_id": 2, "bos_token_id": 1}))
    (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": "</s>"}))
    export_template(folder, "llama3")
    template = load_template(folder, "llama3")
    assert AutoTokenizer.from_pretrained(folder).eos_token == "<|eot_id|>"
    assert json.loads((folder / "generation_config.json").read_text()) == {"bos_token_id": 1, "eos_token_id": template.stop[0]}
    assert json.loads((folder / "special_tokens_map.json").read_text()) == {"eos_token": "<|eot_id|>"}


def test_the_exported_tokenizer_of_llamas_older_kind_puts_no_space_after_the_end(folders: dict[str, Path], exported: dict[str, Any]) -> None:
    plain = AutoTokenizer.from_pretrained(folders["legacy"])
    assert "▁" in plain.convert_ids_to_tokens(plain("a</s>b", add_special_tokens=False).input_ids)[-1], "as the source does"
    tokens = exported["legacy"].convert_ids_to_tokens(exported["legacy"]("a</s>b", add_special_tokens=False).input_ids)
    assert tokens == ["▁a", "</s>", "b"], "a text still begins with one"
    assert load_template(folders["legacy"], "vicuna").words.prefix is Prefix.FIRST
    assert load_template(folders["legacy"], "own").words.prefix is Prefix.ALWAYS, "what the model was made with is what it gets"


def test_special_tokens_that_merges_spell_stay_text(tmp_path: Path) -> None:
    """Converters make merges of any two pieces that join to a third, so that a typed `<|im_start|>` became the token."""
    folder = write_tokenizer(tmp_path / "t", legacy)
    source = json.loads((folder / "tokenizer.json").read_text())
    vocabulary, merges, text = source["model"]["vocab"], source["model"]["merges"], "<|im_start|>"
    for n in range(2, len(text) + 1):
        vocabulary.setdefault(text[:n], len(vocabulary))
        merges.append([text[: n - 1], text[n - 1]])
    for letter in text:
        vocabulary.setdefault(letter, len(vocabulary))
    (folder / "tokenizer.json").write_text(json.dumps(source))
    template = load_template(folder, "chatml")
    start = template.words.controls[text]
    assert template.prompt((Message("user", text),)).count(start) == 2
    assert template.decode(template.prompt((Message("user", text),))).count(text) == 3


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("text", MARKERS)
def test_markup_that_somebody_types_stays_text(name: str, text: str, folders: dict[str, Path]) -> None:
    template = load_template(folders["full"], name)
    controls = set(template.words.controls.values())
    plain, tricky = (template.prompt((Message("system", "s"), Message("user", content))) for content in ("x", text))
    assert [t for t in tricky if t in controls] == [t for t in plain if t in controls]
    assert (text.strip() if name in {"llama2", "llama3"} else text) in template.decode(tricky)


def test_own_is_chatml_with_only_the_answers_trained(tiny_folder: Path, own_template: Template) -> None:
    rendered = own_template.render((*CHAT, Message("assistant", "Me.")))
    assert whole(tiny_folder, rendered.tokens) == (
        "<|im_start|>user\nHi!<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n"
        "<|im_start|>user\nWho are you?<|im_end|>\n<|im_start|>assistant\nMe.<|im_end|>\n"
    )
    trained = tuple(t for t, m in zip(rendered.tokens, rendered.mask, strict=True) if m)
    assert whole(tiny_folder, trained) == "Hello.<|im_end|>Me.<|im_end|>"
    assert isinstance(own_template.layout, Own)


def test_vicuna_trains_the_answer_with_its_space_and_its_end(tiny_folder: Path, tiny_template: Template) -> None:
    rendered = tiny_template.render((ASK, ANSWER, Message("user", "x"), Message("assistant", "no", 0.0)))
    trained = tuple(t for t, m in zip(rendered.tokens, rendered.mask, strict=True) if m)
    assert whole(tiny_folder, trained) == " Hello.<|im_end|>"
    assert rendered.tokens[-1] == tiny_template.stop[0]
    assert isinstance(tiny_template.layout, Tabular)


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
    with pytest.raises(Exception, match="no place for this message"):
        exported["tiny"].apply_chat_template([{"role": "user", "content": "x"}, {"role": "tool", "content": "x"}], tokenize=False)


@pytest.mark.parametrize("name", NAMES)
def test_a_prompt_must_end_with_the_users_turn(name: str, tiny_folder: Path) -> None:
    with pytest.raises(DataError, match="must end with the user's turn"):
        load_template(tiny_folder, name).prompt((ASK, ANSWER))


@pytest.mark.parametrize("name", PUBLISHED)
def test_tools_have_no_place_in_a_published_template(name: str, tiny_folder: Path) -> None:
    template = load_template(tiny_folder, name)
    with pytest.raises(DataError, match="no place for tools"):
        template.prompt((ASK,), [WEATHER])
    with pytest.raises(DataError, match="no place for tool calls"):
        template.render((ASK, Message("assistant", "", tool_calls=(CALL,))))


@pytest.mark.parametrize("name", ["llama2", "mistral"])
def test_a_system_text_needs_the_user_turn_that_holds_it(name: str, tiny_folder: Path) -> None:
    with pytest.raises(DataError, match="there is none"):
        load_template(tiny_folder, name).render((Message("system", "s"), ANSWER))


def test_a_refused_row_is_named(tiny_template: Template) -> None:
    rows = [Conversation("c1", (ASK, ANSWER)), Conversation("c2", (ASK, ANSWER, Message("tool", "x")))]
    with pytest.raises(DataError) as caught:
        list(tiny_template.render_all(rows))
    assert caught.value.where == "conversation c2, message 3"
    with pytest.raises(DataError, match="no place for tools") as caught:
        list(tiny_template.tokenise([Conversation("c3", (ASK, ANSWER), meta={"tools": [WEATHER]})]))
    assert caught.value.where == "conversation c3"


def test_samples_carry_the_weights_of_their_answers(tiny_template: Template) -> None:
    half = Message("assistant", "Hm.", 0.5)
    (sample,) = samples(tiny_template, [Conversation("c9", (ASK, half, ASK, Message("assistant", "no", 0.0), ASK, ANSWER))])
    rendered = tiny_template.render((ASK, half, ASK, Message("assistant", "no", 0.0), ASK, ANSWER))
    assert (sample.id, sample.tokens, sample.mask) == ("c9", rendered.tokens, rendered.mask)
    weight = sample.columns["weight"]
    assert isinstance(weight, tuple)
    assert [w for w, m in zip(weight, sample.mask, strict=True) if m] == [0.5] * 5 + [1.0] * 8, "' Hm.' and ' Hello.', each with its end"
    assert not any(w for w, m in zip(weight, sample.mask, strict=True) if not m)


def test_a_conversation_without_anything_to_train_is_an_error_that_names_it(tiny_template: Template) -> None:
    for messages in ((ASK,), (ASK, Message("assistant", "no", 0.0))):
        with pytest.raises(DataError, match="nothing would be trained") as caught:
            list(samples(tiny_template, [Conversation("c9", messages)]))
        assert "c9" in caught.value.where


def test_only_the_last_answer_may_be_asked_for(tiny_template: Template) -> None:
    (rendered,) = answers(tiny_template, [Conversation("c1", (ASK, Message("assistant", "One."), ASK, Message("assistant", "Two.", 0.0)))])
    assert trained(tiny_template, rendered) == [" Two.<|im_end|>"]
    with pytest.raises(DataError, match="does not end with an answer"):
        list(answers(tiny_template, [Conversation("c1", (ASK,))]))


def test_more_conversations_than_a_chunk_come_back_in_order(tiny_template: Template, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xwin.data._words.CHUNK", 3)
    rows = [Conversation(str(i), (Message("user", f"What is {i}?"), Message("assistant", "A number." * (i % 4 + 1)))) for i in range(11)]
    assert list(tiny_template.render_all(iter(rows))) == [tiny_template.render(row.messages) for row in rows]
    assert not list(tiny_template.render_all([]))


def test_half_characters_are_shown_with_their_other_half(tiny_template: Template) -> None:
    rendered = tiny_template.render((Message("user", "🐈 \ufffd"), Message("assistant", "é!")))
    shown = describe(tiny_template, rendered)
    assert "".join(text for text, _ in shown) == tiny_template.decode(rendered.tokens)
    assert [text for text, learn in shown if learn] == [" ", "é", "!", "<|im_end|>"]
    assert ("🐈", False) in shown


def test_what_is_kept_of_markup_is_bounded_and_gives_the_same_ids(own_template: Template, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(own_template, LaidOut)
    words = own_template.words
    stretches = [[Stretch((Part(f"system {i} ", said=False), Part("hi", said=True)), trained=True)] for i in range(30)]
    long = [Stretch((Part("long markup " * 20, said=False),), trained=False)]
    expected = list(words.tokenise([*stretches, long]))
    monkeypatch.setattr("xwin.data._words.KEPT", 8)
    monkeypatch.setattr("xwin.data._words.LONGEST", 100)
    fresh = Words(words._bare, words.names)
    for _ in range(2):
        assert [found.ids for found in fresh.tokenise([*stretches, long])] == [found.ids for found in expected]
        assert len(fresh._markup) <= 8
        assert len(fresh._known) <= 8
    assert all(len(text) <= 100 for text in fresh._markup._held)


def test_the_digest_of_a_template_follows_all_that_makes_its_ids(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    found = [template_digest(folder, "vicuna"), template_digest(folder, "chatml")]
    (folder / "added_tokens.json").write_text("{}")
    found.append(template_digest(folder, "vicuna"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_size": 1}))
    assert template_digest(folder, "vicuna") == found[-1]
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "other"}))
    found.append(template_digest(folder, "vicuna"))
    monkeypatch.setattr("xwin.data.template.version", lambda package: "0")
    found.append(template_digest(folder, "vicuna"))
    assert len(set(found)) == len(found)


def test_a_tokenizer_that_cannot_be_used_is_an_error(tmp_path: Path, tiny_folder: Path) -> None:
    with pytest.raises(ModelError, match=r"no tokenizer.json"):
        load_template(tmp_path, "vicuna")
    bare = write_tokenizer(tmp_path / "bare", byte_level, ["<unk>"], bos_token=None, eos_token=None, add_bos_token=False)
    with pytest.raises(ModelError, match="no end-of-sequence token"):
        load_template(bare, "vicuna")
    plain = write_tokenizer(tmp_path / "plain", byte_level, chat_template=None)
    with pytest.raises(ModelError, match="no chat template"):
        load_template(plain, "own")
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "tokenizer.json").write_text('{"version": "1.0", "mod')
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_template(tmp_path / "cut", "vicuna")
    with pytest.raises(ModelError, match="there is no template 'alpaca'") as caught:
        load_template(tiny_folder, "alpaca")
    assert "vicuna, chatml" in caught.value.fix


def test_the_export_replaces_the_template_wherever_it_was(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path / "t", byte_level, eos_token={"__type": "AddedToken", "content": "</s>", "special": True})
    (folder / "chat_template.jinja").write_text(CHATML)
    export_template(folder, "vicuna")
    rows = [{"role": m.role, "content": m.text} for m in CHAT]
    assert AutoTokenizer.from_pretrained(folder).apply_chat_template(rows, tokenize=False, add_generation_prompt=True).startswith("<s>A chat between")


def test_the_own_template_is_exported_as_it_is(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path / "t", legacy)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    export_template(folder, "own")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
