"""Distillation on the student's own samples, other references than the start, and models that read other tokens."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from xwin.errors import ModelError

from .small import Done, carry_out, chats, failure, pairs, prompts, read, write

SFT = {
    "kind": "sft",
    "init": "base",
    "data": "./chat.jsonl",
    "epochs": 30,
    "optim": {"lr": 1e-2},
    "tokens_per_step": 8192,
    "tokens_per_batch": 8192,
}
DISTIL: dict[str, Any] = {
    "kind": "rl",
    "init": "student",
    "reference": "teacher",
    "prompts": "./prompts.jsonl",
    "objective": "ppo",
    "credit": "distil",
    "kl": None,
    "optim": {"lr": 1e-3, "schedule": "constant"},
    "steps": 20,
    "prompts_per_step": 8,
    "n": 4,
    "minibatches": 2,
    "sampling": {"max_tokens": 8},
}


def files(folder: Path) -> None:
    write(folder / "chat.jsonl", chats(["yes"] * 12))
    write(folder / "mixed.jsonl", chats(["yes", "no", "maybe"] * 6))
    write(folder / "prompts.jsonl", prompts(32))
    write(folder / "pairs.jsonl", pairs("a", "b", 4))


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Done:
    folder = tmp_path_factory.mktemp("distil")
    files(folder)
    """The teacher says "yes", the student "yes", "no" or "maybe"."""
    stages = {"teacher": SFT, "student": {**SFT, "data": "./mixed.jsonl"}, "taught": DISTIL}
    return carry_out(folder, tiny_folder, stages)


def test_the_student_reaches_the_teacher(taught: Done) -> None:
    """No scorer, no data: the KL to the teacher per answer falls to a twentieth, and the student says what the teacher says."""
    kl = taught.curve("taught", "kl")
    assert kl[0] > 5
    assert sum(kl[step] for step in range(15, 20)) / 5 < kl[0] / 20
    said = [row["text"] for row in read(taught.stage("taught") / "rollouts.jsonl") if row["step"] >= 15]
    assert said.count("yes") / len(said) > 0.9


def test_without_a_scorer_no_score_is_shown_and_nothing_has_failed(taught: Done) -> None:
    names = {row["name"] for row in read(taught.stage("taught") / "events.jsonl")}
    assert not names & {"reward", "zero_spread", "reward/failed", "kl_coef"}
    assert {"length", "cut", "advantage", "kl"} <= names
    assert all(row["score"] is None for row in read(taught.stage("taught") / "rollouts.jsonl"))


def test_a_round_teaches_minus_its_kl(taught: Done) -> None:
    """The advantages of a round are the log-ratios of its tokens: their sum is minus the KL of its answers."""
    kl, advantage, length = (taught.curve("taught", name) for name in ("kl", "advantage", "length"))
    for step in (0, 5, 19):
        assert advantage[step] * length[step] == pytest.approx(-kl[step], rel=1e-4, abs=1e-5)


def test_kl_is_measured_to_the_reference_that_is_named(tmp_path: Path, tiny_folder: Path) -> None:
    files(tmp_path)
    score = {"kind": "length", "shape": {"kind": "linear"}}
    change = {"init": "base", "credit": "group", "objective": "grpo", "scorer": score, "kl": {"coef": 0.01}, "steps": 1, "prompts_per_step": 2}
    short = {**SFT, "epochs": 3}
    done = carry_out(tmp_path, tiny_folder, {"teacher": short, "far": {**DISTIL, **change}, "near": {**DISTIL, **change, "reference": None}})
    assert done.curve("far", "kl")[0] > 1
    assert done.curve("near", "kl")[0] == pytest.approx(0.0, abs=1e-5)


MISTAKES = [
    ({"kl": {"coef": 0.1}}, "credit distil is the KL to its teacher"),
    ({"reference": None}, "learns from a teacher, and the policy cannot be its own"),
    ({"credit": "group", "objective": "grpo"}, "nobody says how good an answer is"),
    ({"refill": {}}, "it goes by scores, and there are none"),
    ({"validation": "./prompts.jsonl"}, "it goes by scores, and there are none"),
    ({"credit": "group", "objective": "grpo", "scorer": "answer"}, "nothing reads it: there is no price of KL"),
    ({"gold": "answer"}, "it judges answers to validation prompts, and there are none"),
]


@pytest.mark.parametrize(("change", "what"), MISTAKES)
def test_a_combination_that_cannot_work_is_refused_before_anything_runs(tmp_path: Path, tiny_folder: Path, change: Any, what: str) -> None:
    files(tmp_path)
    error = failure(tmp_path, tiny_folder, {"x": {**DISTIL, "init": "base", "reference": "base", **change}})
    assert what in str(error)
    assert not (tmp_path / "run" / "stages").exists()


@pytest.mark.parametrize("role", ["teacher", "critic", "preference"])
def test_a_model_that_reads_other_tokens_than_the_policy_writes_is_refused_at_the_start(
    role: str, tmp_path: Path, tiny_folder: Path, with_other_tokens: Callable[..., Path]
) -> None:
    """Whoever reads the policy's ids: they would be other words to it. (A reward model reads the text then: test_other_tokens.)"""
    files(tmp_path)
    other = with_other_tokens({"a": "zz"})
    own = {**DISTIL, "init": "base"}
    ppo = {**own, "credit": "gae", "scorer": {"kind": "length", "shape": {"kind": "linear"}}, "reference": None, "critic": {"init": str(other)}}
    stages: dict[str, dict[str, Any]] = {
        "teacher": {"x": {**own, "reference": str(other)}},
        "critic": {"x": ppo},
        "preference": {"x": {"kind": "preference", "init": "base", "data": "./pairs.jsonl", "reference": str(other)}},
    }
    error = failure(tmp_path, tiny_folder, stages[role])
    assert isinstance(error, ModelError)
    assert f"id {3 + ord('a')} is 'a' there and 'zz' here" in str(error)
    assert "same tokenizer" in error.fix
    assert not (tmp_path / "run" / "stages" / "x" / "final").exists()
