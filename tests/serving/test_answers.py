"""Answers in bulk: lines in order, each once, whatever cut the file off; what evaluation reads."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from xwin.data.conversation import Conversation, Message
from xwin.data.rollout import Rollout
from xwin.data.template import Template
from xwin.engines.base import Sampling
from xwin.engines.local import Local
from xwin.engines.scripted import ScriptedEngine
from xwin.errors import DataError, ModelError, RunBusy, UserError
from xwin.serving.answers import Asking, open_answers, write_answers
from xwin.suites._outputs import pick_outputs, read_outputs

ABOUT = {"model": "m", "seed": 7}


def prompts(count: int) -> list[Conversation]:
    return [Conversation(f"q{i}", (Message("user", f"What is {i}?"),), meta={"answer": str(i)}) for i in range(count)]


@pytest.fixture
def write(tiny_folder: Path, tiny_template: Template) -> Callable[..., None]:
    engine = Local(rows=4).build(tiny_folder, tiny_template.stop, "float32")

    def write(path: Path, n: int = 2, count: int = 5, most: int | None = None) -> None:
        """At most `most` answers, then it is as if the process was stopped."""
        asking = Asking(prompts(count), Sampling(max_tokens=12), n, 7, "tiny")

        def told(_: Rollout) -> None:
            nonlocal most
            if most is not None:
                most -= 1
                if most == 0:
                    raise KeyboardInterrupt

        with open_answers(path, ABOUT, asking.keys()) as out:
            write_answers(asking, engine, tiny_template, out, told)

    return write


def test_lines_come_in_order_and_say_what_evaluation_reads(write: Callable[..., None], tmp_path: Path) -> None:
    write(tmp_path / "one.jsonl", n=1)
    write(tmp_path / "two.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "two.jsonl").read_text().splitlines()]
    assert [(row["id"], row["sample"]) for row in rows] == [(f"q{i}", k) for i in range(5) for k in (0, 1)]
    assert rows[3].keys() == {"id", "sample", "instruction", "output", "generator", "finish", "prompt_tokens", "tokens", "meta"}
    (single,) = read_outputs(tmp_path / "one.jsonl", {})
    assert (single.model, list(single.texts)) == ("tiny", [f"What is {i}?" for i in range(5)])
    both = read_outputs(tmp_path / "two.jsonl", {})
    assert pick_outputs(both, "tiny#0", "two").texts == single.texts  # sample 0 does not depend on how many there are


@pytest.mark.parametrize("most", [1, 4, 7])
def test_a_file_that_was_cut_off_becomes_the_whole_one(write: Callable[..., None], tmp_path: Path, most: int) -> None:
    write(tmp_path / "whole.jsonl")
    cut = tmp_path / "cut.jsonl"
    with pytest.raises(KeyboardInterrupt):
        write(cut, most=most)
    assert cut.read_text().count("\n") == most
    with cut.open("a") as out:
        out.write('{"id": "q4", "sample')  # a kill in the middle of a line
    write(cut)
    assert cut.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    write(cut)  # and once more: nothing is written twice
    assert cut.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_the_first_prompts_are_the_beginning_of_all(write: Callable[..., None], tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write(path, count=2)
    before = path.read_bytes()
    write(path)
    assert path.read_bytes().startswith(before)


def test_a_stop_text_and_what_follows_it_are_no_part_of_the_output(tiny_template: Template, tmp_path: Path) -> None:
    engine = ScriptedEngine({}, [3 + byte for byte in b"yes. no. END"], tiny_template.stop)
    asking = Asking(prompts(1), Sampling(max_tokens=40, stop=(" END", ". no")), 1, 0, "m")
    with open_answers(tmp_path / "a.jsonl", ABOUT, asking.keys()) as out:
        write_answers(asking, engine, tiny_template, out, lambda _: None)
    assert json.loads((tmp_path / "a.jsonl").read_text())["output"] == "yes"


def test_a_prompt_of_several_turns_is_kept(tiny_template: Template, tmp_path: Path) -> None:
    turns = (Message("system", "Be brief."), Message("user", "a"), Message("assistant", "b"), Message("user", "c"))
    asking = Asking([Conversation("q", turns)], Sampling(), 1, 0, "m")
    with open_answers(tmp_path / "a.jsonl", ABOUT, asking.keys()) as out:
        write_answers(asking, ScriptedEngine({}, [3 + 65], tiny_template.stop), tiny_template, out, lambda _: None)
    row = json.loads((tmp_path / "a.jsonl").read_text())
    assert [m["content"] for m in row["messages_asked"]] == ["Be brief.", "a", "b", "c"]
    assert row["instruction"] == "system: Be brief.\n\nuser: a\n\nassistant: b\n\nuser: c"


def test_other_settings_need_another_file(write: Callable[..., None], tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl")
    with pytest.raises(UserError, match="made otherwise: seed was 7, not 8"), open_answers(tmp_path / "a.jsonl", ABOUT | {"seed": 8}, []):
        pass
    (tmp_path / "b.jsonl").write_text("precious\n")
    with pytest.raises(UserError, match="nothing says how"), open_answers(tmp_path / "b.jsonl", ABOUT, []):
        pass
    assert (tmp_path / "b.jsonl").read_text() == "precious\n"


def test_a_changed_file_is_refused_at_its_row(write: Callable[..., None], tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write(path)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:3] + lines[4:]))
    with pytest.raises(DataError, match="not the answer that belongs there") as caught:
        write(path)
    assert caught.value.where == f"{path}:4"
    path.write_text("".join(lines) + "{}\n")
    with pytest.raises(DataError, match="not the answer"):
        write(path)


def test_two_processes_cannot_write_one_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with open_answers(path, ABOUT, []), pytest.raises(RunBusy), open_answers(path, ABOUT, []):
        pass


def test_a_prompt_that_does_not_fit_is_told_before_anything_is_asked(tiny_folder: Path, tiny_template: Template, tmp_path: Path) -> None:
    engine = Local(rows=4).build(tiny_folder, tiny_template.stop, "float32")
    asking = Asking([*prompts(2), Conversation("long", (Message("user", "x" * 3000),))], Sampling(max_tokens=4), 1, 0, "m")
    with (
        open_answers(tmp_path / "a.jsonl", ABOUT, asking.keys()) as out,
        pytest.raises(ModelError, match="exceed the context") as caught,
    ):
        write_answers(asking, engine, tiny_template, out, lambda _: None)
    assert "long" in caught.value.where
    assert (tmp_path / "a.jsonl").read_text() == ""
