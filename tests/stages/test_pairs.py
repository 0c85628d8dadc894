"""Preferences from a policy's own samples: never between equal scores or equal texts, and no answer in two pairs."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xwin.data.conversation import Conversation, Message
from xwin.data.rollout import Group, Rollout, Score, scored
from xwin.scorers._outcome import failed
from xwin.stages.pairs import paired

from . import rewards
from .small import carry_out, failure, ids, preferences, prompts, write

ANSWERS = st.lists(st.tuples(st.sampled_from(["", " ", "a", "b", "c", "d", "e"]), st.sampled_from([0.0, 0.25, 0.5, 1.0])), min_size=2, max_size=12)


def group(answers: list[tuple[str, float]]) -> Group:
    rollouts = tuple(Rollout("p", i, 0, (5,), (6, 2), (0.0, 0.0), "stop", Score(value)) for i, (_, value) in enumerate(answers))
    return Group(Conversation("p", (Message("user", "?"),), meta={"family": "x"}), rollouts, tuple(text for text, _ in answers))


@given(answers=ANSWERS, most=st.integers(1, 5), gap=st.sampled_from([0.0, 0.3]), seed=st.integers(0, 50))
def test_laws_of_pairs(answers: list[tuple[str, float]], most: int, gap: float, seed: int) -> None:
    found = paired(group(answers), most=most, gap=gap, seed=seed)
    assert found == paired(group(answers), most=most, gap=gap, seed=seed)
    assert len(found) <= most
    scores = {text: [value for other, value in answers if other == text] for text, _ in answers}
    used: list[str] = []
    for pair in found:
        assert pair.chosen.text != pair.rejected.text
        assert pair.chosen.text.strip()
        assert pair.rejected.text.strip()
        assert pair.margin is not None
        assert pair.margin > gap
        assert pair.margin in {better - worse for better in scores[pair.chosen.text] for worse in scores[pair.rejected.text]}
        used += [pair.chosen.text, pair.rejected.text]
    assert all(used.count(text) <= len(scores[text]) for text in used)  # no answer twice
    assert len({pair.id for pair in found}) == len(found)


def test_better_and_worse_are_paired_by_hand() -> None:
    """Good: a b. Bad: c d e. Two pairs, each of a good and a bad one; the third bad one has no partner."""
    for seed in range(6):
        found = paired(group([("a", 1.0), ("c", 0.0), ("b", 1.0), ("d", 0.0), ("e", 0.0)]), most=5, gap=0.0, seed=seed)
        assert len(found) == 2
        assert {p.chosen.text for p in found} == {"a", "b"}
        assert {p.rejected.text for p in found} < {"c", "d", "e"}
        assert [(p.id, p.margin, p.meta["family"], p.prompt) for p in found] == [(f"p/{i}", 1.0, "x", (Message("user", "?"),)) for i in range(2)]


def test_the_best_meets_the_worst() -> None:
    found = paired(group([("a", 0.1), ("b", 0.2), ("c", 0.7), ("d", 0.9)]), most=5, gap=0.0, seed=0)
    assert [(p.chosen.text, p.rejected.text, p.margin) for p in found] == [("d", "a", pytest.approx(0.8)), ("c", "b", pytest.approx(0.5))]


def test_different_seeds_draw_different_partners() -> None:
    answers = [(letter, float(i < 4)) for i, letter in enumerate("abcdefgh")]
    drawn = {tuple((p.chosen.text, p.rejected.text) for p in paired(group(answers), most=1, gap=0.0, seed=seed)) for seed in range(30)}
    assert len(drawn) > 5


PAIRS = {"kind": "pairs", "policy": "base", "prompts": "./prompts.jsonl", "scorer": "constraint", "n": 4, "sampling": {"max_tokens": 64}}


def test_the_stage_writes_preferences_and_numbers(tmp_path: Path, tiny_folder: Path) -> None:
    short, long = "three short words", "very many more words than that limit"
    table = {"q0": [ids(short), ids(long)], "q1": [ids(short)], "q2": [ids(long)]}
    write(tmp_path / "prompts.jsonl", prompts(3, {"constraint": {"family": "word_limit", "words": 4}}))
    done = carry_out(tmp_path, tiny_folder, {"pairs": {**PAIRS, "engine": {"kind": "scripted", "answers": table}}})
    found = preferences(done.stage("pairs") / "preferences.jsonl")
    assert [(p.chosen.text, p.rejected.text, p.margin) for p in found] == [(short, long, 1.0)] * 2
    assert {p.meta["constraint"]["words"] for p in found} == {4}
    metrics = done.metrics("pairs")
    assert (metrics["pairs"], metrics["reward"], metrics["longer_wins"]) == (2.0, 0.5, 0.0)


def test_answers_that_all_score_alike_are_an_error(tmp_path: Path, tiny_folder: Path) -> None:
    write(tmp_path / "prompts.jsonl", prompts(2, {"constraint": {"family": "no_commas"}}))
    error = failure(tmp_path, tiny_folder, {"pairs": {**PAIRS, "engine": {"kind": "scripted", "other": ids("no comma is here")}}})
    assert error.exit_code == 2
    assert "no prompt has answers of different scores" in str(error)


def test_an_answer_that_could_not_be_scored_is_in_no_pair(tmp_path: Path, tiny_folder: Path) -> None:
    (broken,) = scored([group([("a", 1.0), ("b", 0.0), ("c", 0.5)])], [[Score(1.0), failed("broken"), Score(0.5)]])
    assert [(p.chosen.text, p.rejected.text) for p in paired(broken, most=3, gap=0.0, seed=0)] == [("a", "c")]
    write(tmp_path / "prompts.jsonl", prompts(1))
    scorer = {"kind": "function", "function": f"{rewards.__name__}:none_with_b", "on_failure": "mask"}
    table = {"q0": [ids("aaaaaaaa"), ids("zz"), ids("zz zz")]}
    done = carry_out(tmp_path, tiny_folder, {"pairs": {**PAIRS, "n": 3, "scorer": scorer, "engine": {"kind": "scripted", "answers": table}}})
    found = preferences(done.stage("pairs") / "preferences.jsonl")
    assert [(p.chosen.text, p.rejected.text) for p in found] == [("zz zz", "zz")]
    metrics = done.metrics("pairs")
    assert (metrics["failed"], metrics["reward"]) == (1.0, 0.5)


def test_a_cut_answer_is_in_no_pair() -> None:
    """Rendered for training it would get an end that was never written."""
    given = group([("a", 1.0), ("b", 0.0), ("c", 0.5)])
    cut = replace(given, rollouts=tuple(replace(r, finish="length") if r.sample == 1 else r for r in given.rollouts))
    assert [(p.chosen.text, p.rejected.text) for p in paired(given, most=3, gap=0.0, seed=0)] == [("a", "b")]
    assert [(p.chosen.text, p.rejected.text) for p in paired(cut, most=3, gap=0.0, seed=0)] == [("a", "c")]
