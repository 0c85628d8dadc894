"""A reward model that has other tokens than the policy: it reads the text, in its own template, and its scores mean what they always mean."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from data.template_tokenizers import SPECIALS, byte_level, write_tokenizer
from transformers import AutoModelForSequenceClassification, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from .small import Done, carry_out, failure, ids, pairs, prompts, read, write

GOOD, BAD, ODD = "yes, with pleasure", "no", "na\u00efve \N{SNOWMAN}"


def bpe_model(folder: Path) -> Path:
    """A random network over a trained BPE tokenizer, which reads every text."""
    to = write_tokenizer(folder / "bpe", byte_level, [*SPECIALS, "<|im_end|>"])
    vocab = len(AutoTokenizer.from_pretrained(to))
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        LlamaForCausalLM(LlamaConfig(vocab_size=vocab, max_position_embeddings=512, tie_word_embeddings=True, **shape)).save_pretrained(to)
    return to


SCORER: dict[str, Any] = {"kind": "reward_model", "model": "rm"}
RL: dict[str, Any] = {
    "kind": "rl",
    "init": "base",
    "prompts": "./prompts.jsonl",
    "scorer": SCORER,
    "objective": "grpo",
    "credit": "group",
    "kl": None,
    "prompts_per_step": 2,
    "n": 2,
}


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Done:
    """The policy writes bytes; the reward model, which has pieces of words, learned that GOOD is better than BAD, and picks."""
    folder = tmp_path_factory.mktemp("other")
    model = bpe_model(folder)
    write(folder / "prompts.jsonl", prompts(4))
    write(folder / "pairs.jsonl", pairs(GOOD, BAD, 24))
    write(folder / "held.jsonl", pairs(GOOD, BAD, 40)[:28] + pairs(BAD, GOOD, 40)[28:])
    engine = {"kind": "scripted", "answers": {f"q{i}": [ids(text) for text in (BAD, GOOD, ODD)] for i in range(4)}}
    asked = {"kind": "best_of_n", "policy": "base", "prompts": "./prompts.jsonl", "n": 3, "most": 3, "engine": engine}
    stages = {
        "rm": {"kind": "reward_model", "init": str(model), "data": "./pairs.jsonl", "validation": "./held.jsonl", "epochs": 6, "optim": {"lr": 3e-3}},
        "best": {**asked, "scorer": SCORER},
        "sure": {**asked, "scorer": {**SCORER, "unit": "probability"}},
        "cut": {**RL, "steps": 1, "sampling": {"max_tokens": 3}},
    }
    return carry_out(folder, tiny_folder, stages)


def scores(done: Done, stage: str) -> dict[tuple[str, str], float]:
    """(prompt, answer) -> score."""
    rows = read(done.stage(stage) / "conversations.jsonl")
    return {(row["messages"][0]["content"], row["messages"][1]["content"]): row["meta"]["score"] for row in rows}


def raw(done: Done, prompt: str, answer: str) -> float:
    """What transformers says of the conversation in the chat template that was published with the reward model."""
    folder = done.stage("rm") / "final"
    rows = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    tokens = AutoTokenizer.from_pretrained(folder).apply_chat_template(rows, return_dict=False)
    with torch.no_grad():
        return float(AutoModelForSequenceClassification.from_pretrained(folder)(torch.tensor([tokens])).logits[0, 0])


def test_scores_are_those_of_the_text_in_the_reward_models_own_template(judged: Done) -> None:
    stats = json.loads((judged.stage("rm") / "final" / "reward_stats.json").read_text())
    found = scores(judged, "best")
    assert len(found) == 12
    for (prompt, answer), score in found.items():
        assert score == pytest.approx((raw(judged, prompt, answer) - stats["mean"]) / stats["std"], abs=1e-4)
    assert found["Say it 0.", GOOD] > found["Say it 0.", BAD]


def test_the_calibration_that_was_published_with_it_still_holds(judged: Done) -> None:
    stats = json.loads((judged.stage("rm") / "final" / "reward_stats.json").read_text())
    assert stats["temperature"] is not None
    for (prompt, answer), score in scores(judged, "sure").items():
        assert score == pytest.approx(1 / (1 + math.exp(-(raw(judged, prompt, answer) - stats["even"]) / stats["temperature"])), abs=1e-4)


def test_it_is_said_that_the_text_is_read(judged: Done) -> None:
    assert "best: rm has other tokens than base" in judged.said
    assert "it reads the answers as text" in judged.said


def test_a_cut_answer_is_scored_without_an_end_and_pays_for_it(judged: Done) -> None:
    rows = read(judged.stage("cut") / "rollouts.jsonl")
    assert {row["finish"] for row in rows} == {"length"}
    assert {row["score"]["parts"]["unfinished"] for row in rows} == {-1.0}


def test_a_policy_that_writes_in_another_template_is_read_in_the_reward_models_own(tmp_path: Path, tiny_folder: Path) -> None:
    """The same tokens, other markup: the reward model, which learned Vicuna's, is not shown ChatML."""
    write(tmp_path / "prompts.jsonl", prompts(2))
    write(tmp_path / "pairs.jsonl", pairs(GOOD, BAD, 8))
    engine = {"kind": "scripted", "answers": {f"q{i}": [ids(text) for text in (BAD, GOOD)] for i in range(2)}}
    asked = {"kind": "best_of_n", "policy": "base", "prompts": "./prompts.jsonl", "n": 2, "most": 2, "engine": engine, "scorer": SCORER}
    rm = {"kind": "reward_model", "init": "base", "data": "./pairs.jsonl", "epochs": 1}
    done = carry_out(tmp_path, tiny_folder, {"rm": rm, "plain": asked, "best": {**asked, "template": "chatml"}})
    stats = json.loads((done.stage("rm") / "final" / "reward_stats.json").read_text())
    for (prompt, answer), score in scores(done, "best").items():
        assert score == pytest.approx((raw(done, prompt, answer) - stats["mean"]) / stats["std"], abs=1e-4)
    assert "best: rm learned another chat template than base writes in: it reads the answers as text" in done.said
    assert "plain: rm" not in done.said


def test_a_tokenizer_that_loses_the_text_is_refused(tmp_path: Path, tiny_folder: Path, with_other_tokens: Any) -> None:
    """Its reward model cannot read one answer: the stage ends with the reason, and nothing was learned from noise."""
    write(tmp_path / "prompts.jsonl", prompts(4))
    write(tmp_path / "pairs.jsonl", pairs("e", "o", 4))
    rm = {"kind": "reward_model", "init": str(with_other_tokens({"S": None})), "data": "./pairs.jsonl", "epochs": 1}
    rl = {**RL, "steps": 1, "sampling": {"max_tokens": 4}}
    error = failure(tmp_path, tiny_folder, {"rm": rm, "x": rl})
    assert "no answer of the round could be scored" in str(error)
    notes = {row["score"]["note"] for row in read(tmp_path / "run" / "stages" / "x" / "rollouts.jsonl")}
    assert notes == {"the reward model's tokenizer loses some of the prompt's text"}
