"""Rejection sampling keeps the best answers by score, and only answers that are worth keeping."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from xwin.data.conversation import Conversation, Message, conversation_from_json
from xwin.data.rollout import Finish, Group, Rollout, Score, rollout_from_json, scored
from xwin.data.template import load_template
from xwin.scorers._outcome import ScorerError, failed
from xwin.stages.best_of_n import chosen

from . import rewards
from .small import carry_out, failure, ids, pairs, prompts, read, write

LIMIT = {"constraint": {"family": "word_limit", "words": 4}}
TABLE = {
    "q0": [ids("far too many words are here"), ids("one two three")],
    "q1": [ids("one two three four"), ids("three little words")],
    "q2": [ids("nothing that is said here passes")],
}
SCRIPTED = {
    "kind": "best_of_n",
    "policy": "base",
    "prompts": "./prompts.jsonl",
    "scorer": "constraint",
    "n": 2,
    "above": 0.5,
    "sampling": {"max_tokens": 64},
    "engine": {"kind": "scripted", "answers": TABLE},
}


def group(*answers: tuple[str, float], cut: Sequence[int] = ()) -> Group:
    """Answers with their scores; those in `cut` hit the length limit."""
    finish: list[Finish] = ["length" if i in cut else "stop" for i in range(len(answers))]
    scores = [Score(value) for _, value in answers]
    rollouts = tuple(Rollout("p", i, 0, (5,), (6, 2), (0.0, 0.0), f, s) for i, (f, s) in enumerate(zip(finish, scores, strict=True)))
    return Group(Conversation("p", (Message("user", "?"),)), rollouts, tuple(text for text, _ in answers))


def test_the_best_come_first_and_ties_go_to_the_earlier_sample() -> None:
    answers = group(("a", 0.1), ("b", 0.9), ("c", 0.9), ("d", -1.0))
    assert chosen(answers, above=None, most=1) == [(1, 0.9)]
    assert chosen(answers, above=None, most=3) == [(1, 0.9), (2, 0.9), (0, 0.1)]
    assert chosen(answers, above=None, most=9) == [(1, 0.9), (2, 0.9), (0, 0.1), (3, -1.0)]


def test_the_bar_is_exclusive() -> None:
    assert chosen(group(("a", 0.5), ("b", 0.75)), above=0.5, most=2) == [(1, 0.75)]
    assert chosen(group(("a", 0.5)), above=0.5, most=2) == []


def test_equal_texts_empty_and_cut_answers_are_not_kept() -> None:
    answers = group(("same", 0.9), ("same", 0.8), ("  ", 2.0), ("cut", 3.0), ("other", 0.1), cut=[3])
    assert chosen(answers, above=None, most=5) == [(0, 0.9), (4, 0.1)]


def test_an_answer_that_could_not_be_scored_is_not_kept() -> None:
    """Its value of 0 would beat what a reward model gives below it."""
    (answers,) = scored([group(("a", 0.0), ("b", 0.0))], [[failed("broken"), Score(-1.0)]])
    assert chosen(answers, above=None, most=2) == [(1, -1.0)]


def test_answers_that_could_not_be_scored_are_counted_and_said(tmp_path: Path, tiny_folder: Path) -> None:
    write(tmp_path / "prompts.jsonl", prompts(2))
    scorer = {"kind": "function", "function": f"{rewards.__name__}:none_with_b", "on_failure": "mask"}
    table = {"q0": [ids("aaaaaaaa"), ids("zz")], "q1": [ids("zz zz"), ids("zz")]}
    stage = {**SCRIPTED, "above": None, "scorer": scorer, "engine": {"kind": "scripted", "answers": table}}
    done = carry_out(tmp_path, tiny_folder, {"best": stage})
    assert [row["messages"][-1]["content"] for row in read(done.stage("best") / "conversations.jsonl")] == ["zz", "zz zz"]
    assert done.metrics("best")["failed"] == 1.0
    assert "1 of 4 answers could not be scored" in done.said
    error = failure(tmp_path, tiny_folder, {"best": {**stage, "engine": {"kind": "scripted", "other": ids("aaa")}}})
    assert isinstance(error, ScorerError)
    assert "no answer could be scored" in str(error)


def test_kept_answers_become_conversations(tmp_path: Path, tiny_folder: Path) -> None:
    write(tmp_path / "prompts.jsonl", prompts(3, LIMIT))
    done = carry_out(tmp_path, tiny_folder, {"best": SCRIPTED})
    rows = [conversation_from_json(row, "") for row in read(done.stage("best") / "conversations.jsonl")]
    assert [(row.id, row.messages[-1].text) for row in rows] == [("q0", "one two three"), ("q1", "one two three four")]
    assert rows[0].messages[0] == Message("user", "Say it 0.")
    assert rows[0].meta == {**LIMIT, "score": 1.0}
    metrics = done.metrics("best")
    assert (metrics["accepted"], metrics["solved"]) == (pytest.approx(2 / 6), pytest.approx(2 / 3))
    texts = [answer for row in TABLE.values() for answer in (row * 2)[:2]]
    assert metrics["length"] == pytest.approx(sum(len(t) + 1 for t in texts) / 6)


def test_nothing_above_the_bar_is_an_error(tmp_path: Path, tiny_folder: Path) -> None:
    write(tmp_path / "prompts.jsonl", prompts(3, LIMIT))
    error = failure(tmp_path, tiny_folder, {"best": {**SCRIPTED, "above": 1.0}})
    assert error.exit_code == 2
    assert str(error).startswith("best.above: no answer passed the bar")


def test_a_reward_model_picks_the_answer_it_scores_highest(tmp_path: Path, tiny_folder: Path) -> None:
    """The kept texts are those of the rollouts that the published reward model scores highest, each scored alone."""
    write(tmp_path / "prompts.jsonl", prompts(5))
    write(tmp_path / "pairs.jsonl", pairs("aaa", "zzz", 8))
    stages = {
        "rm": {"kind": "reward_model", "init": "base", "data": "./pairs.jsonl", "epochs": 2, "optim": {"lr": 1e-3}},
        "best": {
            "kind": "best_of_n",
            "policy": "base",
            "prompts": "./prompts.jsonl",
            "scorer": {"kind": "reward_model", "model": "rm"},
            "n": 6,
            "sampling": {"max_tokens": 60},
            "engine": {"kind": "scripted", "answers": {f"q{i}": [ids(chr(97 + (i + k) % 26) * (k + 1)) for k in range(6)] for i in range(5)}},
        },
    }
    done = carry_out(tmp_path, tiny_folder, stages)
    expected = _highest(done.stage("rm") / "final", done.stage("best") / "rollouts.jsonl")
    rows = read(done.stage("best") / "conversations.jsonl")
    assert [row["messages"][-1]["content"] for row in rows] == [text for text, _ in expected]
    assert [row["meta"]["score"] for row in rows] == pytest.approx([score for _, score in expected], abs=1e-4)
    assert len({len(text) for text, _ in expected}) > 1


def _highest(model: Path, rollouts: Path) -> list[tuple[str, float]]:
    """Text and score of the best rollout of each prompt, by transformers."""
    judge, template = AutoModelForSequenceClassification.from_pretrained(model), load_template(model, "vicuna")
    stats = json.loads((model / "reward_stats.json").read_text())
    found: dict[str, list[tuple[float, str]]] = {}
    for r in map(rollout_from_json, read(rollouts)):
        with torch.no_grad():
            raw = float(judge(torch.tensor([r.prompt + r.completion])).logits[0, 0])
        found.setdefault(r.prompt_id, []).append(((raw - stats["mean"]) / stats["std"], template.parse(r.completion).text))
    return [(text, score) for score, text in (max(row) for row in found.values())]
