"""Reward modelling: starts at ln 2, learns to rank, and says in what unit it scores."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from xwin.data.conversation import read_preferences
from xwin.data.template import load_template
from xwin.models.heads import read_reward_stats
from xwin.stages.reward_model import paired

from .small import Done, carry_out, failure, pairs, write

RM = {"kind": "reward_model", "init": "base", "data": "./pairs.jsonl", "optim": {"lr": 1e-3}, "tokens_per_step": 1024}


def scores(final: Path, data: Path) -> tuple[list[float], list[float]]:
    """Of chosen and of rejected answers, by transformers, one at a time."""
    model, template = AutoModelForSequenceClassification.from_pretrained(final), load_template(final, "vicuna")
    both: tuple[list[float], list[float]] = ([], [])
    for preference in read_preferences(data):
        for answer, found in zip((preference.chosen, preference.rejected), both, strict=True):
            with torch.no_grad():
                found.append(float(model(torch.tensor([template.render((*preference.prompt, answer)).tokens])).logits[0, 0]))
    return both


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Done:
    folder = tmp_path_factory.mktemp("rm")
    write(folder / "pairs.jsonl", pairs("good.", "bad bad.", 16))
    write(folder / "held.jsonl", pairs("good.", "bad bad.", 6))
    return carry_out(folder, tiny_folder, {"rm": {**RM, "validation": "./held.jsonl", "eval_every": 2, "epochs": 3}})


def test_the_first_loss_is_ln_2_and_the_last_ranks_every_pair(trained: Done) -> None:
    losses, accuracy = trained.curve("rm", "loss"), trained.curve("rm", "accuracy")
    assert losses[0] == pytest.approx(math.log(2), abs=0.05)
    assert losses[max(losses)] < 0.5 * losses[0]
    assert accuracy[max(accuracy)] == 1.0
    held = trained.curve("rm", "validation_loss")
    assert held[max(held)] < 0.5 * math.log(2)
    assert trained.metrics("rm")["validation_accuracy"] == 1.0


def test_transformers_gives_the_scores_that_were_trained(trained: Done) -> None:
    """The published loss on held-out pairs, -log sigmoid(chosen - rejected), from scores that transformers reads off the folder."""
    chosen, rejected = scores(trained.stage("rm") / "final", trained.path.parent / "held.jsonl")
    curve = trained.curve("rm", "validation_loss")
    mean = np.mean([math.log1p(math.exp(r - c)) for c, r in zip(chosen, rejected, strict=True)])
    assert mean == pytest.approx(min(curve.values()), abs=1e-5)


def test_the_unit_is_the_spread_over_the_training_answers(trained: Done) -> None:
    final = trained.stage("rm") / "final"
    both = [x for side in scores(final, trained.path.parent / "pairs.jsonl") for x in side]
    stats = read_reward_stats(final)
    assert (stats.mean, stats.std) == (pytest.approx(np.mean(both), abs=1e-5), pytest.approx(np.std(both), abs=1e-5))
    assert abs(stats.mean) > 1e-3
    assert stats.std > 1e-2


def test_two_samples_of_a_pair_share_the_prompt_and_carry_the_margin(tmp_path: Path, tiny_folder: Path) -> None:
    data = write(tmp_path / "pairs.jsonl", [{**pairs("ab", "c", 1)[0], "margin": 0.5}])
    template = load_template(tiny_folder, "vicuna")
    (preference,) = read_preferences(data)
    chosen, rejected = paired(template, [preference])
    prompt = template.prompt(preference.prompt)
    assert chosen.tokens[: len(prompt)] == rejected.tokens[: len(prompt)] == prompt
    assert (chosen.start, rejected.start) == (len(prompt), len(prompt))
    assert chosen.tokens[len(prompt) :] == (*(3 + b for b in b" ab"), 2)
    assert chosen.bond == rejected.bond
    assert chosen.id != rejected.id
    assert (chosen.columns, rejected.columns) == ({"margin": 0.5}, {"margin": 0.5})


def test_a_pair_that_fits_no_batch_is_named(tmp_path: Path, tiny_folder: Path) -> None:
    write(tmp_path / "pairs.jsonl", [*pairs("a", "b", 1), {**pairs("long " * 30, "b", 1)[0], "id": "big"}])
    error = failure(tmp_path, tiny_folder, {"rm": {**RM, "tokens_per_batch": 500}})
    assert error.exit_code == 2
    assert str(error).startswith("1:big/chosen, 1:big/rejected: ")
    assert "tokens, but a batch holds 500" in str(error)
