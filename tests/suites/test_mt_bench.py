"""MT-bench: which prompt for which category, what is read, when a pair is won, what is left out; against a real endpoint."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from engines.endpoint import Endpoint, Say, endpoint

from suites.public import ROOT
from xwin.cli.main import main
from xwin.engines.base import Reply
from xwin.suites._mt_bench import rating, read_answers, read_questions, verdict
from xwin.suites._mt_bench_prompts import NAMES, PromptName, ours, read_prompts

MT_BENCH = ROOT / "mt_bench"
needs_mt_bench = pytest.mark.skipif(not MT_BENCH.exists(), reason=f"MT-bench's public files are not in {MT_BENCH}")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of its own with three questions and their reference answers."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XWIN_CACHE", str(tmp_path / "cache"))
    questions = [(81, "writing"), (111, "math"), (121, "coding")]
    rows("questions.jsonl", [{"question_id": i, "category": c, "turns": [f"first of {i}", f"second of {i}"]} for i, c in questions])
    answers("references.jsonl", "gpt-4", {i: (f"ref 1 of {i}", f"ref 2 of {i}") for i in (111, 121)})


def rows(name: str, told: list[dict[str, Any]]) -> None:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in told))


def answers(name: str, model: str, turns: dict[int, tuple[str, str]]) -> None:
    rows(name, [{"question_id": i, "model_id": model, "choices": [{"index": 0, "turns": list(t)}]} for i, t in turns.items()])


def xwin(monkeypatch: pytest.MonkeyPatch, server: Endpoint, *arguments: object) -> int:
    options = ("--questions", "questions.jsonl", "--judge", "remote:toy", "--endpoint", server.url, "--key", "")
    monkeypatch.setattr(sys, "argv", ["xwin", "eval", "mt-bench", *map(str, arguments), *options])
    try:
        main()
    except SystemExit as done:
        return int(done.code or 0)
    return 0


def reply(text: str) -> Reply:
    return Reply(text, "stop", 1)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Good. Rating: [[7]]", 7.0),
        ("[[7.5]] and [[3]]", 7.5),
        ("I say [8].", 8.0),
        ("[1] cites, but [[6]]", 6.0),
        ("[[eight]]", None),
        ("8", None),
        ("", None),
        ("[[0]]", None),
        ("[[11]]", None),
        ("很好", None),
    ],
)
def test_a_grade_is_the_first_in_double_brackets_else_in_single_ones(text, value):
    assert rating(reply(text)) == value


@pytest.mark.parametrize(("text", "said"), [("[[A]]", "A"), ("x [[B]]", "B"), ("[[C]]", "tie"), ("[[B]] or [[A]]", "A"), ("[A]", None), ("", None)])
def test_a_verdict_is_looked_for_in_the_order_a_b_c(text, said):
    assert verdict(reply(text)) == said


def test_names_of_prompts_are_the_published_ones():
    assert [name.published for name in NAMES] == [
        "single-v1",
        "single-v1-multi-turn",
        "single-math-v1",
        "single-math-v1-multi-turn",
        "pair-v2",
        "pair-v2-multi-turn",
        "pair-math-v1",
        "pair-math-v1-multi-turn",
    ]


def test_our_prompts_show_everything_once():
    for name, prompt in ours().items():
        text = prompt.messages[1].text
        wanted = {"question", "question_1"} & set(re.findall(r"\{(\w+)\}", text))
        assert len(wanted) == 1
        assert ("ref_answer" in text) == name.reference
        assert ("question_2" in text) == (name.turn == 2)
        assert ("answer_b" in text) == (name.mode == "pair")


def graded(body: dict[str, Any], number: int) -> Say:
    """10 for an answer that is good, 4 for another; nothing to be read for one that is odd."""
    text = body["messages"][-1]["content"]
    last = text.rpartition("answered:\n")[2]
    return Say("hm" if "odd" in last else "[[10]]" if "good" in last else "[[4]]")


def test_grades_by_turn_and_category_with_what_could_not_be_read(monkeypatch, capsys):
    answers("mine.jsonl", "mine", {81: ("good", "bad"), 111: ("good", "odd"), 121: ("bad", "bad")})
    with endpoint(graded) as server:
        assert xwin(monkeypatch, server, "mine.jsonl", "--references", "references.jsonl", "--json", "--out", "judgements.jsonl") == 0
        assert len(server.asked) == 6 + 2  # and the odd one twice more
        shown = [body["messages"][-1]["content"] for body in server.asked]
    found = json.loads(capsys.readouterr().out)
    (row,) = found["models"]
    assert (row["first_turn"], row["second_turn"], row["average"]) == (8.0, 4.0, (10 + 4 + 10 + 4 + 4) / 5)
    assert row["categories"] == {"writing": 7.0, "math": 10.0, "coding": 4.0}
    assert (row["n"], row["n_unread"], row["unread"]) == (5, 1, ["question 111, turn 2: hm"])
    assert row["low"] <= 7.0 <= row["high"]  # mean over questions: (7 + 10 + 4) / 3
    assert sum("ref 1 of 111" in text for text in shown) == 4  # first turn, second turn, and that twice more
    assert not any("ref" in text for text in shown if "81" in text)
    written = [json.loads(line) for line in Path("judgements.jsonl").read_text().splitlines()]
    assert [w["score"] for w in written] == [10.0, 4.0, 10.0, None, 4.0, 4.0]


def test_a_pair_is_won_only_if_both_orders_agree(monkeypatch, capsys):
    """good beats bad in both orders; of two equal ones the judge likes A: a tie by order alone."""
    answers("base.jsonl", "base", {81: ("bad", "bad"), 111: ("bad", "good"), 121: ("odd", "bad")})
    answers("mine.jsonl", "mine", {81: ("good", "good"), 111: ("bad", "bad"), 121: ("bad", "bad")})

    def rule(body: dict[str, Any], number: int) -> Say:
        text = body["messages"][-1]["content"]
        a, b = (re.findall(rf"Assistant {name} answered:\n(\w+)", text)[-1] for name in "AB")
        return Say("?" if "odd" in (a, b) else "[[A]]" if a == "good" or b != "good" else "[[B]]")

    with endpoint(rule) as server:
        assert xwin(monkeypatch, server, "base.jsonl", "mine.jsonl", "--mode", "pairs", "--references", "references.jsonl", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    (row,) = found["matches"]
    assert (row["first"], row["second"]) == ("mine", "base")
    assert (row["n_first"], row["n_second"], row["n_ties"], row["n_inconsistent"]) == (2, 1, 2, 2)
    assert (row["n"], row["n_unread"], len(row["unread"])) == (5, 1, 2)
    assert (row["win_rate"], row["win_rate_adjusted"]) == (40.0, 60.0)


def test_a_model_answers_the_second_turn_after_its_own_first_at_its_categorys_temperature(monkeypatch, capsys):
    def rule(body: dict[str, Any], number: int) -> Say:
        return graded(body, number) if body["messages"][0]["role"] == "system" else Say(f"good {len(body['messages'])}")

    with endpoint(rule) as server:
        assert xwin(monkeypatch, server, "remote:model", "--references", "references.jsonl", "--json") == 0
        talks = [body for body in server.asked if body["messages"][0]["role"] == "user"]
    assert json.loads(capsys.readouterr().out)["models"][0]["average"] == 10.0
    second = [body for body in talks if len(body["messages"]) == 3]
    assert [m["content"] for m in second[-1]["messages"]] == ["first of 81", "good 1", "second of 81"]
    assert {body["messages"][0]["content"]: body["temperature"] for body in talks} == {"first of 81": 0.7, "first of 111": 0.0, "first of 121": 0.0}


@pytest.mark.parametrize(
    ("turns", "said"),
    [
        ({81: ("a", "b"), 111: ("a", "b")}, "1 without an answer (121)"),
        ({81: ("a", "b"), 111: ("a", "b"), 121: ("a", "b"), 7: ("a", "b")}, "1 of other sets (7)"),
        ({81: ("a",)}, "needs two turns"),
    ],
)
def test_answers_to_other_questions_are_refused(monkeypatch, capsys, turns, said):
    answers("mine.jsonl", "mine", turns)
    with endpoint(graded) as server:
        assert xwin(monkeypatch, server, "mine.jsonl", "--references", "references.jsonl") == 2
        assert not server.asked
    assert said in capsys.readouterr().err


def test_references_that_are_missing_or_foreign_are_refused(monkeypatch, capsys):
    answers("mine.jsonl", "mine", dict.fromkeys((81, 111, 121), ("a", "b")))
    answers("few.jsonl", "gpt-4", {111: ("a", "b")})
    with endpoint(graded) as server:
        assert xwin(monkeypatch, server, "mine.jsonl") == 2
        assert "coding, math are judged against reference answers" in capsys.readouterr().err
        assert xwin(monkeypatch, server, "mine.jsonl", "--references", "few.jsonl") == 2
        assert "1 without an answer (121)" in capsys.readouterr().err
        assert xwin(monkeypatch, server, "mine.jsonl", "--references", "references.jsonl", "--mode", "pairs") == 2
        assert "pairs need the answers of two models" in capsys.readouterr().err


@needs_mt_bench
def test_the_published_files_are_read(monkeypatch):
    questions = read_questions(MT_BENCH / "question.jsonl.gz")
    assert len(questions) == 40
    assert [a.model for a in read_answers(MT_BENCH / "reference_answer_gpt-4.jsonl.gz")] == ["gpt-4"]
    prompts = read_prompts(MT_BENCH / "judge_prompts.jsonl.gz")
    filled = prompts[PromptName("pair", reference=True, turn=1)].filled({"question": "{answer_a}", "answer_a": "x"})
    assert "[User Question]\n{answer_a}\n" in filled.messages[1].text
