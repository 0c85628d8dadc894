import json
from pathlib import Path
from typing import Any

import pytest
from inside import xwin

from xwin.cli.data import Sample, marked, visible

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


@pytest.fixture(autouse=True)
def _at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XWIN_CACHE", str(tmp_path / "cache"))


def written(name: str, rows: list[Any]) -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


CHAT = {"messages": [{"role": "user", "content": "Hi!"}, {"role": "assistant", "content": "Hello."}]}
EMPTY = {"messages": [{"role": "user", "content": "Hi!"}, {"role": "assistant", "content": ""}]}
PAIR = {"prompt": "Hi!", "chosen": "Hello.", "rejected": "Go\naway."}


def test_what_is_trained_stands_in_brackets(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    assert xwin(monkeypatch, "data", "show", written("a.jsonl", [CHAT]), "--model", str(tiny_folder), "--plain") == 0
    head, text = capsys.readouterr().out.strip().splitlines()
    # by hand: the byte tokenizer has a token per byte; " Hello." and the end are 8
    assert head.startswith("a.jsonl:1  conversation ")
    assert f": {len(SYSTEM) + len(' USER: Hi! ASSISTANT:') + 8} tokens, 8 trained (4 %)" in head
    assert text == f"{SYSTEM} USER: Hi! ASSISTANT:[[ Hello.<|im_end|>]]"


def test_a_template_is_chosen_by_name(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    assert xwin(monkeypatch, "data", "show", written("a.jsonl", [CHAT]), "--model", str(tiny_folder), "--template", "chatml", "--plain") == 0
    assert "<|im_start|>assistant↵\n[[Hello.<|im_end|>]]" in capsys.readouterr().out
    assert xwin(monkeypatch, "data", "show", "a.jsonl", "--model", str(tiny_folder), "--template", "vicunia") == 2
    assert "did you mean 'vicuna'?" in capsys.readouterr().err


def test_both_answers_of_a_preference_and_open_prompts_are_shown(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    assert xwin(monkeypatch, "data", "show", written("p.jsonl", [PAIR]), "--model", str(tiny_folder), "--plain") == 0
    out = capsys.readouterr().out
    assert "[[ Hello.<|im_end|>]]" in out
    assert "[[ Go↵\naway.<|im_end|>]]" in out
    prompts = written("q.jsonl", [{"prompt": "Two plus two?", "answer": "4"}])
    assert xwin(monkeypatch, "data", "show", prompts, "--model", str(tiny_folder), "--plain") == 0
    out = capsys.readouterr().out
    assert ", 0 trained (0 %)" in out
    assert out.endswith("USER: Two plus two? ASSISTANT:\n")


def test_earlier_answers_of_a_preference_are_not_shown_as_trained(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    asked = [*CHAT["messages"], {"role": "user", "content": "Bye!"}]
    pairs = written("p.jsonl", [{"prompt": asked, "chosen": "See you.", "rejected": "Go."}])
    assert xwin(monkeypatch, "data", "show", pairs, "--model", str(tiny_folder), "--plain") == 0
    out = capsys.readouterr().out
    assert out.count("[[") == 2
    assert "[[ See you.<|im_end|>]]" in out
    assert "[[ Go.<|im_end|>]]" in out


def test_json_is_one_object_with_ids_mask_and_texts(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    name = written("a.jsonl", [EMPTY, CHAT, CHAT, CHAT])
    assert xwin(monkeypatch, "data", "show", name, "--model", str(tiny_folder), "-n", "2", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [sample["row"] for sample in found["samples"]] == ["a.jsonl:2", "a.jsonl:3"]
    assert [line.partition(" (")[0] for line in found["not_used"]] == ["a.jsonl:1: not used: empty answer"]
    first = found["samples"][0]
    assert len(first["ids"]) == len(first["mask"])
    assert sum(first["mask"]) == 8
    assert "".join(text for text, trained in first["texts"] if trained) == " Hello.<|im_end|>"


def test_colours_show_tokens_without_changing_the_text(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    assert xwin(monkeypatch, "data", "show", written("a.jsonl", [CHAT]), "--model", str(tiny_folder)) == 0
    assert f"{SYSTEM} USER: Hi! ASSISTANT: Hello.<|im_end|>" in capsys.readouterr().out


def test_without_a_model_the_message_says_what_to_give(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    assert xwin(monkeypatch, "data", "show", written("a.jsonl", [CHAT])) == 2
    assert "RUN:stage" in capsys.readouterr().err


def test_a_template_without_a_place_for_tools_says_so_for_each_row(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    chat = CHAT | {"tools": [{"name": "add", "description": "adds", "parameters": {}}]}
    assert xwin(monkeypatch, "data", "show", written("t.jsonl", [chat]), "--model", str(tiny_folder)) == 2
    said = capsys.readouterr()
    assert "t.jsonl:1: cannot be written in this template" in said.out
    assert "no row can be shown" in said.err


def test_what_a_terminal_would_obey_is_spelled_out() -> None:
    assert visible("a\x1b[31m\tb\r\nc\u202e é") == "a<U+001B>[31m\tb<U+000D>↵\nc<U+202E> é"
    sample = Sample("a:1", "x", "conversation", (1, 2, 3), (False, True, True), (("a", False), ("b", True), ("c", True)))
    assert marked(sample) == "a[[bc]]"


def test_a_file_without_defects_passes(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    assert xwin(monkeypatch, "data", "check", written("a.jsonl", [CHAT, CHAT])) == 0
    out = capsys.readouterr().out
    assert "a.jsonl: 2 rows, 2 conversations" in out
    assert "1 x exact duplicate" in out
    assert "1 conversations are left" in out


def test_a_file_with_defects_exits_1_and_names_them(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    noted = {"messages": [{"role": "user", "content": "Hi &amp; bye"}, {"role": "assistant", "content": "Hello."}]}
    assert xwin(monkeypatch, "data", "check", written("a.jsonl", [CHAT, EMPTY, noted])) == 1
    out = capsys.readouterr().out
    assert "1 x empty answer (reject)" in out
    assert "a.jsonl:2" in out
    assert "1 x HTML entity (note)" in out
    assert "1 x empty answer" not in out.partition("HTML entity")[2]


def test_notes_alone_do_not_fail_a_check(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    noted = {"messages": [{"role": "user", "content": "Hi &amp; bye"}, {"role": "assistant", "content": "Hello."}]}
    assert xwin(monkeypatch, "data", "check", written("a.jsonl", [noted])) == 0


def test_a_file_in_which_nothing_can_be_used_still_has_a_card(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    assert xwin(monkeypatch, "data", "check", written("a.jsonl", [EMPTY]), "--json") == 1
    card = json.loads(capsys.readouterr().out)
    assert (card["dropped"], card["splits"], card["lengths"]) == ({"empty answer": 1}, {"left": 0}, [])


def test_a_check_against_a_benchmark_names_the_rows_that_repeat_it(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    question = "How many apples are left when ten of the forty apples have been eaten by the crows?"
    exam = written("exam.jsonl", [{"question": question, "answer": "30"}, {"question": "And now?", "answer": "1"}])
    chat = {"messages": [{"role": "user", "content": question.upper()}, {"role": "assistant", "content": "30"}]}
    assert xwin(monkeypatch, "data", "check", written("a.jsonl", [CHAT, chat]), "--against", exam) == 0
    out = capsys.readouterr().out
    assert "overlap with exam: 1 of its 2 texts are in 1 rows" in out
    assert "a.jsonl:2: how many apples are left when ten of the forty apples have been eaten" not in out
    assert "a.jsonl:2: how many apples are left when ten of the forty apples have been" in out


def test_a_file_that_is_not_there_is_a_user_error(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    assert xwin(monkeypatch, "data", "check", "gone.jsonl") == 2
    assert "no such file" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["show", "check"])
def test_help_teaches_with_examples(monkeypatch: pytest.MonkeyPatch, capsys: Any, command: str) -> None:
    assert xwin(monkeypatch, "data", command, "--help") == 0
    assert f"xwin data {command} chats.json" in capsys.readouterr().out
