"""The watch for reward hacking: gold on held-out prompts, alarms in time, and looks that survive a kill."""

from pathlib import Path
from typing import Any

import pytest

from xwin.errors import TrainingStopped

from . import rewards
from .small import Done, carry_out, chats, failure, prompts, read, write

FLAWED: dict[str, Any] = {
    "kind": "rl",
    "init": "sft",
    "prompts": "./prompts.jsonl",
    "validation": "./held.jsonl",
    "scorer": {"kind": "function", "function": f"{rewards.__name__}:longer"},
    "gold": {"kind": "function", "function": f"{rewards.__name__}:to_the_point"},
    "objective": "grpo",
    "credit": "group",
    "kl": {"coef": 0.0},
    "optim": {"lr": 5e-4, "schedule": "constant"},
    "eval_every": 2,
    "steps": 12,
    "prompts_per_step": 4,
    "n": 8,
    "minibatches": 1,
    "sampling": {"max_tokens": 16},
}
SFT = {"kind": "sft", "init": "base", "data": "./chat.jsonl", "epochs": 30, "optim": {"lr": 1e-2}, "tokens_per_step": 8192, "tokens_per_batch": 8192}


def files(folder: Path) -> None:
    """The policy says one to five letters, each as often."""
    write(folder / "chat.jsonl", chats(["a", "ab", "abc", "abcd", "abcde"] * 5))
    write(folder / "prompts.jsonl", prompts(20))
    write(folder / "held.jsonl", [{**row, "id": f"held{i}"} for i, row in enumerate(prompts(64))])


@pytest.fixture(scope="module")
def hacked(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Done:
    folder = tmp_path_factory.mktemp("hacked")
    files(folder)
    return carry_out(folder, tiny_folder, {"sft": SFT, "rl": FLAWED})


def test_the_alarm_fires_before_gold_has_fallen_by_a_tenth(hacked: Done) -> None:
    """The curves begin with the policy as it starts, before the first round."""
    gold, reward = hacked.curve("rl", "validation_gold"), hacked.curve("rl", "validation_reward")
    alarms = [row for row in read(hacked.stage("rl") / "alarms.jsonl") if row["metric"] == "hacking"]
    assert reward[11] > 1.5 * reward[0], "the flaw was found"
    assert gold[11] < 0.9 * gold[0], "and did harm"
    assert alarms
    assert alarms[0]["action"] == "warn"
    assert gold[alarms[0]["step"]] > 0.9 * gold[0]
    assert f"hacking is {alarms[0]['value']:.4g}, above its guard" in hacked.said


def test_the_other_signs_are_curves(hacked: Done) -> None:
    last = 11
    assert hacked.curve("rl", "length_drift")[last] > 0.5
    assert 0 <= hacked.curve("rl", "format_drift")[last] <= 1
    assert hacked.curve("rl", "repetition")[last] >= 0
    assert hacked.curve("rl", "kl_per_reward")[last] > 0


def test_a_guard_of_the_recipe_stops_the_stage_at_the_alarm(hacked: Done, tmp_path: Path, tiny_folder: Path) -> None:
    files(tmp_path)
    guard = {"metric": "hacking", "above": 3.5, "do": "stop"}
    error = failure(tmp_path, tiny_folder, {"sft": SFT, "rl": {**FLAWED, "guards": [guard]}})
    assert isinstance(error, TrainingStopped)
    assert "hacking is" in str(error)
    alarm = next(row for row in read(hacked.stage("rl") / "alarms.jsonl") if row["metric"] == "hacking")
    assert error.where == f"stages.rl, step {alarm['step']}"
