"""Supervised fine-tuning: the loss falls, what is held out decides what is kept, and what is kept is a plain Hugging Face folder."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from xwin.data.batch import pack
from xwin.data.template import load_template, samples
from xwin.distributed.world import World
from xwin.learning.learner import Learner
from xwin.models.causal import load
from xwin.models.tuning import Full
from xwin.objectives.sft import Sft as CrossEntropy

from .small import carry_out, chats, conversations, failure, write

SFT = {"kind": "sft", "init": "base", "data": "./chat.jsonl", "optim": {"lr": 5e-3}, "tokens_per_step": 1024}
HELD = {**SFT, "validation": "./held.jsonl", "eval_every": 1}


def loss(folder: Path, data: Path) -> float:
    """Mean loss per trained token of a folder, read anew."""
    template = load_template(folder, "vicuna")
    learner = Learner(load(folder, head="language", tuning=Full(), dtype="float32"), folder, World.alone(), CrossEntropy())
    return learner.evaluate(pack(list(samples(template, conversations(data))), tokens=4096))["loss"].value


def test_validation_loss_falls_and_the_best_step_is_published(tmp_path: Path, tiny_folder: Path) -> None:
    """Held-out answers are of two kinds, one of them the opposite of what is trained, so the loss falls and then rises."""
    write(tmp_path / "chat.jsonl", chats(["yes yes"] * 24))
    held = write(tmp_path / "held.jsonl", chats(["yes yes", "no no"] * 4))
    done = carry_out(tmp_path, tiny_folder, {"sft": {**HELD, "epochs": 8, "patience": None}})
    curve = done.curve("sft", "validation_loss")
    best = min(curve, key=lambda step: curve[step])
    final = done.stage("sft") / "final"
    assert 0 < best < max(curve)
    assert curve[best] < 0.8 * curve[0]
    assert done.metrics("sft")["best_step"] == best
    assert loss(final, held) == pytest.approx(curve[best], abs=1e-5)
    assert loss(final, held) < curve[max(curve)] - 0.01


def test_training_ends_when_patience_is_out(tmp_path: Path, tiny_folder: Path) -> None:
    write(tmp_path / "chat.jsonl", chats(["yes yes"] * 24))
    held = write(tmp_path / "held.jsonl", chats(["yes yes", "no no"] * 4))
    done = carry_out(tmp_path, tiny_folder, {"sft": {**HELD, "epochs": 8, "patience": 2}})
    curve = done.curve("sft", "validation_loss")
    best = min(curve, key=lambda step: curve[step])
    assert max(curve) == best + 2
    assert f"sft: stopped early at step {best + 2}: the best was step {best}" in done.said
    assert loss(done.stage("sft") / "final", held) == pytest.approx(curve[best], abs=1e-5)


def test_without_validation_the_last_step_is_published(tmp_path: Path, tiny_folder: Path) -> None:
    data = write(tmp_path / "chat.jsonl", chats(["yes yes"] * 12))
    done = carry_out(tmp_path, tiny_folder, {"sft": {**SFT, "epochs": 3, "optim": {"lr": 1e-3}}})
    curve = done.curve("sft", "loss")
    assert loss(done.stage("sft") / "final", data) < curve[max(curve)] < curve[0]
    assert "best_step" not in done.metrics("sft")
    assert not (done.stage("sft") / "checkpoints").exists()


def test_the_first_loss_is_that_of_transformers(tmp_path: Path, tiny_folder: Path) -> None:
    """Mean over the trained tokens of all rows: those of the answers and the end of each turn."""
    data = write(tmp_path / "chat.jsonl", chats(["yes", "a longer answer", "no."]))
    done = carry_out(tmp_path, tiny_folder, {"sft": {**SFT, "epochs": 1, "tokens_per_step": 4096}})
    template, model = load_template(tiny_folder, "vicuna"), AutoModelForCausalLM.from_pretrained(tiny_folder)
    total, count = 0.0, 0
    for row in samples(template, conversations(data)):
        with torch.no_grad():
            logp = model(torch.tensor([row.tokens])).logits[0].log_softmax(-1)
        found = [-float(logp[t - 1, row.tokens[t]]) for t in range(1, len(row.tokens)) if row.mask[t]]
        total, count = total + math.fsum(found), count + len(found)
    assert count == sum(len(text) + 2 for text in ("yes", "a longer answer", "no."))  # the space before it and the end token
    assert done.curve("sft", "loss") == {0: pytest.approx(total / count, abs=1e-5)}


def test_several_sources_are_one_set_of_rows(tmp_path: Path, tiny_folder: Path) -> None:
    write(tmp_path / "chat.jsonl", chats(["yes"] * 2))
    write(tmp_path / "more.jsonl", chats(["no"] * 3))
    done = carry_out(tmp_path, tiny_folder, {"sft": {**SFT, "data": ["./chat.jsonl", "./more.jsonl"], "epochs": 1, "tokens_per_step": 16}})
    assert len(done.curve("sft", "loss")) == 5


def test_the_published_tokenizer_speaks_vicuna(tmp_path: Path, tiny_folder: Path) -> None:
    write(tmp_path / "chat.jsonl", chats(["yes"]))
    final = carry_out(tmp_path, tiny_folder, {"sft": {**SFT, "epochs": 1}}).stage("sft") / "final"
    tokenizer = AutoTokenizer.from_pretrained(final)
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": "A"}]
    assert tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == "S USER: A ASSISTANT:"
    assert AutoModelForCausalLM.from_pretrained(final).config.architectures == ["LlamaForCausalLM"]


def test_adapters_move_the_linear_layers_alone_and_are_merged(tmp_path: Path, tiny_folder: Path) -> None:
    write(tmp_path / "chat.jsonl", chats(["yes"] * 8))
    done = carry_out(tmp_path, tiny_folder, {"sft": {**SFT, "epochs": 2, "tune": {"kind": "lora", "rank": 4}}})
    before, after = (load_file(folder / "model.safetensors") for folder in (tiny_folder, done.stage("sft") / "final"))
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if name.endswith("_proj.weight")}


def test_equal_runs_are_equal_and_seeds_differ(tmp_path: Path, tiny_folder: Path) -> None:
    found = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "chat.jsonl", chats(["yes", "no", "maybe", "never"] * 3))
        done = carry_out(tmp_path / name, tiny_folder, {"sft": {**SFT, "epochs": 2, "tokens_per_step": 512}}, seed=seed)
        found.append((done.stage("sft") / "final" / "model.safetensors").read_bytes())
    assert found[0] == found[1] != found[2]


def test_a_row_that_fits_no_batch_is_named(tmp_path: Path, tiny_folder: Path) -> None:
    write(tmp_path / "chat.jsonl", chats(["yes", "long " * 40]))
    error = failure(tmp_path, tiny_folder, {"sft": {**SFT, "tokens_per_batch": 256}})
    assert error.exit_code == 2
    assert "q1: " in str(error)
    assert "raise tokens_per_batch" in str(error)


def test_a_guard_stops_the_stage_and_nothing_is_published(tmp_path: Path, tiny_folder: Path) -> None:
    write(tmp_path / "chat.jsonl", chats(["yes"] * 12))
    guards = [{"metric": "grad_norm", "above": 1e-9, "for": 2}]
    error = failure(tmp_path, tiny_folder, {"sft": {**SFT, "epochs": 2, "guards": guards}})
    assert error.exit_code == 1
    assert "stages.sft, step 1: grad_norm is" in str(error)
    manifest = json.loads((tmp_path / "run" / "stages" / "sft" / "manifest.json").read_text())
    assert manifest["status"] == "running"
    assert [row["step"] for row in map(json.loads, (tmp_path / "run" / "stages" / "sft" / "alarms.jsonl").read_text().splitlines())] == [1]


def test_a_wrong_number_of_weights_is_a_mistake_of_the_recipe(tmp_path: Path, tiny_folder: Path) -> None:
    write(tmp_path / "chat.jsonl", chats(["yes"]))
    error = failure(tmp_path, tiny_folder, {"sft": {**SFT, "weights": [1.0, 2.0]}})
    assert "2 weights for 1 sources" in str(error)


def test_a_source_of_which_nothing_is_short_enough_is_named(tmp_path: Path, tiny_folder: Path) -> None:
    write(tmp_path / "chat.jsonl", chats(["yes"]))
    write(tmp_path / "long.jsonl", chats(["long " * 60]))
    sft = {**SFT, "data": ["./chat.jsonl", "./long.jsonl"], "tokens_per_batch": 256, "too_long": "drop"}
    error = failure(tmp_path, tiny_folder, {"sft": sft})
    assert str(tmp_path / "long.jsonl") in str(error)
    assert "no row is short enough" in str(error)


def test_long_rows_are_dropped_or_cut_and_counted(tmp_path: Path, tiny_folder: Path) -> None:
    write(tmp_path / "chat.jsonl", chats(["yes", "long " * 60, "no"]))
    sft = {**SFT, "epochs": 1, "tokens_per_step": 256, "tokens_per_batch": 256}
    dropped = carry_out(tmp_path, tiny_folder, {"sft": {**sft, "too_long": "drop"}})
    steps = len(dropped.curve("sft", "loss"))
    assert dropped.metrics("sft")["rows_dropped"] == 1
    assert "1 rows longer than 256 tokens dropped" in dropped.said
    cut = carry_out(tmp_path, tiny_folder, {"sft": {**sft, "too_long": "truncate"}})
    assert cut.metrics("sft")["rows_truncated"] == 1
    assert len(cut.curve("sft", "loss")) == steps + 1


def test_the_template_that_is_taught_is_the_one_that_is_published(tmp_path: Path, tiny_folder: Path) -> None:
    write(tmp_path / "chat.jsonl", chats(["yes"]))
    final = carry_out(tmp_path, tiny_folder, {"sft": {**SFT, "epochs": 1, "template": "zephyr"}}).stage("sft") / "final"
    text = AutoTokenizer.from_pretrained(final).apply_chat_template([{"role": "user", "content": "A"}], tokenize=False, add_generation_prompt=True)
    assert "<|user|>" in text
    assert text.endswith("<|assistant|>\n")
