"""Answers cut by the length limit, empty ones, equal scores: what a round is made of when something is odd."""

from pathlib import Path
from typing import Any

import pytest

from xwin.data.conversation import Conversation, Message
from xwin.data.rollout import Finish, Group, Rollout, Score
from xwin.errors import TrainingStopped
from xwin.scorers._outcome import ScorerError, failed
from xwin.stages._rl import nothing_left, usable

from . import rewards
from .small import carry_out, failure, prompts, read, write

RL: dict[str, Any] = {
    "kind": "rl",
    "init": "base",
    "prompts": "./prompts.jsonl",
    "scorer": {"kind": "function", "function": f"{rewards.__name__}:share_of_vowels"},
    "objective": "grpo",
    "credit": "group",
    "kl": None,
    "optim": {"lr": 1e-2, "schedule": "constant"},
    "steps": 1,
    "prompts_per_step": 8,
    "n": 16,
    "minibatches": 1,
    "sampling": {"max_tokens": 3},
}


def answer(k: int, finish: Finish = "stop", completion: tuple[int, ...] = (5, 2), score: Score | None = Score(1.0)) -> Rollout:  # noqa: B008
    return Rollout("q", k, 0, (1,), completion, (-1.0,) * len(completion), finish, score)


def group(*rollouts: Rollout) -> Group:
    return Group(Conversation("q", (Message("user", "?"),)), rollouts, tuple(f"t{r.sample}" for r in rollouts))


def test_what_is_learned_from() -> None:
    """Cut answers only where they are to be; empty and unscored ones never; answers that nobody was to score always."""
    some = [group(answer(0), answer(1, "length"), answer(2, completion=()), answer(3, score=failed("x")), answer(4, score=None))]
    (learned,), (masked,) = usable(some), usable(some, "mask")
    assert [r.sample for r in learned.rollouts] == [0, 1, 4]
    assert [r.sample for r in masked.rollouts] == [0, 4]
    assert masked.texts == ("t0", "t4")
    assert usable([group(answer(0, "length"))], "mask") == []


def test_the_error_says_why_nothing_is_left() -> None:
    assert isinstance(nothing_left([group(answer(0, score=failed("x")))]), ScorerError)
    error = nothing_left([group(answer(0, "length"), answer(1, "length"), answer(2, completion=()))])
    assert isinstance(error, TrainingStopped)
    assert "of 3 answers 1 are empty, 2 were cut at the length limit" in str(error)
    assert "raise sampling.max_tokens, or set cut: learn" in error.fix


def test_masked_answers_are_neither_learned_from_nor_compared_with(tmp_path: Path, tiny_folder: Path) -> None:
    """The answers that ended are all that a step reads, and all are shown."""
    write(tmp_path / "prompts.jsonl", prompts(8))
    done = carry_out(
        tmp_path, tiny_folder, {"learn": {**RL, "sampling": {"max_tokens": 40}}, "mask": {**RL, "cut": "mask", "sampling": {"max_tokens": 40}}}
    )
    learn, mask = ({r["prompt_id"] + str(r["sample"]): r for r in read(done.stage(name) / "rollouts.jsonl")} for name in ("learn", "mask"))
    ended = [r for r in mask.values() if r["finish"] == "stop"]
    assert 0 < len(ended) < len(mask)
    assert len(learn) == len(mask)
    assert done.curve("mask", "tokens")[0] < done.curve("learn", "tokens")[0]
    assert done.curve("mask", "cut")[0] == pytest.approx(1 - len(ended) / len(mask))  # all are shown


def test_a_round_in_which_every_answer_is_cut_stops_when_they_are_masked(tmp_path: Path, tiny_folder: Path) -> None:
    write(tmp_path / "prompts.jsonl", prompts(2))
    small = {**RL, "prompts_per_step": 1, "n": 2, "sampling": {"max_tokens": 1}, "cut": "mask"}
    error = failure(tmp_path, tiny_folder, {"rl": small})
    assert isinstance(error, TrainingStopped)
    assert "2 were cut at the length limit" in str(error)


@pytest.mark.parametrize("credit", ["group", "round"])
def test_a_round_of_equal_scores_moves_nothing_and_goes_on(credit: str, tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "prompts.jsonl", prompts(4))
    monkeypatch.chdir(tmp_path)
    (tmp_path / f"same_{credit}.py").write_text("def score(prompt, answers):\n    return [0.3 for _ in answers]\n")
    scorer = {"kind": "function", "function": f"same_{credit}:score"}
    done = carry_out(tmp_path, tiny_folder, {"rl": {**RL, "credit": credit, "scorer": scorer, "steps": 2, "prompts_per_step": 2, "n": 4}})
    assert done.curve("rl", "zero_spread") == {0: 1.0, 1: 1.0}
    assert done.curve("rl", "grad_norm") == pytest.approx({0: 0.0, 1: 0.0}, abs=1e-9)
    rows = read(done.stage("rl") / "rollouts.jsonl")
    assert {row["version"] for row in rows} == {0, 1}
