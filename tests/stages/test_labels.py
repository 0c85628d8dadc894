"""Answers with a label: right above the bar, each text once, none that is cut, and never all of one kind."""

from pathlib import Path

import pytest

from xwin.data.conversation import conversation_from_json

from .small import carry_out, failure, ids, prompts, read, write

LIMIT = {"constraint": {"family": "word_limit", "words": 4}}
TABLE = {
    "q0": [ids("far too many words are here"), ids("one two three"), ids("one two three"), ids("now one two three")],
    "q1": [ids("one two three four"), ids("three little words")],
}
STAGE = {
    "kind": "labels",
    "policy": "base",
    "prompts": "./prompts.jsonl",
    "scorer": "constraint",
    "n": 4,
    "sampling": {"max_tokens": 30},
    "engine": {"kind": "scripted", "answers": TABLE},
}


def test_each_answer_is_labelled_once(tmp_path: Path, tiny_folder: Path) -> None:
    write(tmp_path / "prompts.jsonl", prompts(2, LIMIT))
    done = carry_out(tmp_path, tiny_folder, {"labels": STAGE})
    rows = [conversation_from_json(row, "") for row in read(done.stage("labels") / "conversations.jsonl")]
    expected = [
        ("q0/0", "far too many words are here", False),
        ("q0/1", "one two three", True),
        ("q0/3", "now one two three", True),
        ("q1/0", "one two three four", True),
        ("q1/1", "three little words", True),
    ]
    assert [(row.id, row.messages[-1].text, row.label) for row in rows] == expected
    assert [row.meta["score"] for row in rows] == [0.0, 1.0, 1.0, 1.0, 1.0]
    assert (done.metrics("labels")["labelled"], done.metrics("labels")["labelled_right"]) == (5.0, 0.8)


@pytest.mark.parametrize(("above", "what"), [(1.0, "all 5 answers are labelled wrong"), (-1.0, "all 5 answers are labelled right")])
def test_labels_of_one_kind_are_an_error(tmp_path: Path, tiny_folder: Path, above: float, what: str) -> None:
    write(tmp_path / "prompts.jsonl", prompts(2, LIMIT))
    error = failure(tmp_path, tiny_folder, {"labels": {**STAGE, "above": above}})
    assert error.exit_code == 2
    assert str(error).startswith(f"labels.above: {what}")


def test_cut_answers_are_no_labels(tmp_path: Path, tiny_folder: Path) -> None:
    write(tmp_path / "prompts.jsonl", prompts(2, LIMIT))
    error = failure(tmp_path, tiny_folder, {"labels": {**STAGE, "sampling": {"max_tokens": 3}}})
    assert "each answer is empty, cut or without a score" in str(error)
