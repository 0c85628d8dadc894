"""The examples run as they stand, and do what they say."""

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

EXAMPLES = Path(__file__).parents[1] / "examples"


def example(name: str) -> dict[str, Any]:
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))


def said(text: str, word: str) -> list[float]:
    return [float(line.split(word)[1]) for line in text.splitlines()]


def test_the_sft_loop_lowers_the_loss_and_writes_a_model(tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = tmp_path / "rows.jsonl"
    messages = [[{"role": "user", "content": f"What is {i}?"}, {"role": "assistant", "content": "A number."}] for i in range(64)]
    rows.write_text("".join(json.dumps({"messages": each}) + "\n" for each in messages), encoding="utf-8")
    example("sft_loop")["main"](str(tiny_folder), str(rows), tmp_path / "out")
    losses = said(capsys.readouterr().out, "loss")
    assert len(losses) == 8
    assert losses[-1] < losses[0] - 0.2
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")


def test_the_ppo_loop_raises_the_reward(tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example("ppo_loop")["main"](str(tiny_folder), tmp_path / "out", 24)
    rewards = said(capsys.readouterr().out, "reward")
    assert sum(rewards[-6:]) > 1.5 * sum(rewards[:6])
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")


def test_best_of_n_prints_an_answer_no_worse_than_the_mean(tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example("best_of_n")["main"](str(tiny_folder), ["Why?", "Who are you?"])
    found = [line.replace("(mean", "").replace(")", "", 1).split()[:2] for line in capsys.readouterr().out.splitlines() if "(mean" in line]
    assert len(found) == 2
    assert all(float(best) >= float(mean) for best, mean in found)
