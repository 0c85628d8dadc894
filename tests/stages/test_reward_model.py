"""Reward modelling: starts at ln 2, learns to rank, and says in what unit it scores."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from xwin.data.conversation import Message
from xwin.data.template import load_template
from xwin.models.heads import read_reward_stats
from xwin.run.cards import RewardCard, read_card
from xwin.stages.reward_model import paired

from .small import Done, carry_out, failure, ids, pairs, preferences, prompts, read, write

RM = {"kind": "reward_model", "init": "base", "data": "./pairs.jsonl", "optim": {"lr": 1e-3}, "tokens_per_step": 1024}


def scores(final: Path, data: Path) -> tuple[list[float], list[float]]:
    """Of chosen and of rejected answers, by transformers, one at a time."""
    model, template = AutoModelForSequenceClassification.from_pretrained(final), load_template(final, "vicuna")
    both: tuple[list[float], list[float]] = ([], [])
    for preference in preferences(data):
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
    (preference,) = preferences(data)
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


def texts(count: int, *, wrong: int = 0) -> list[dict]:
    """Pairs in which the answer with a z is the better one, but for `wrong` of them, at the end; of all lengths on both sides."""
    rows = [pairs(f"z{'a' * (1 + k % 5)}", "b" * (1 + (k * 3) % 7), 1)[0] | {"id": f"q{k}", "prompt": f"Say it {k}."} for k in range(count)]
    return [row | {"chosen": row["rejected"], "rejected": row["chosen"]} if k >= count - wrong else row for k, row in enumerate(rows)]


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Done:
    """Three heads, calibrated on held-out pairs of which one in five is labelled the wrong way round."""
    folder = tmp_path_factory.mktemp("ensemble")
    write(folder / "pairs.jsonl", texts(40))
    write(folder / "held.jsonl", texts(60, wrong=12))
    return carry_out(folder, tiny_folder, {"rm": {**RM, "heads": 3, "epochs": 2, "validation": "./held.jsonl", "eval_every": 10, "patience": None}})


def heads_of(final: Path, data: Path) -> np.ndarray:
    """[P, 2, K] raw scores of chosen and rejected answers, by transformers."""
    model, template = AutoModelForSequenceClassification.from_pretrained(final), load_template(final, "vicuna")
    found = []
    for preference in preferences(data):
        chats = [(*preference.prompt, answer) for answer in (preference.chosen, preference.rejected)]
        with torch.no_grad():
            found.append([model(torch.tensor([template.render(chat).tokens])).logits[0].tolist() for chat in chats])
    return np.array(found)


def test_an_ensemble_says_of_itself_what_transformers_says_of_it(ensemble: Done) -> None:
    """Zero, unit, offsets and accuracy from scores that transformers reads off the folder."""
    final = ensemble.stage("rm") / "final"
    stats, raw = read_reward_stats(final), heads_of(final, ensemble.path.parent / "pairs.jsonl")
    assert stats.mean == pytest.approx(raw.mean(), abs=1e-5)
    assert stats.std == pytest.approx(raw.mean(-1).std(), abs=1e-5)
    assert stats.offsets == pytest.approx(raw.mean((0, 1)) - raw.mean(), abs=1e-5)
    assert stats.even == stats.mean
    held = heads_of(final, ensemble.path.parent / "held.jsonl")
    gaps = held[:, 0] - held[:, 1]
    assert ensemble.metrics("rm")["final_accuracy"] == pytest.approx((gaps.mean(-1) > 0).mean())
    assert ensemble.metrics("rm")["validation_disagreement"] > 0
    assert gaps.std(-1).mean() > 1e-3, "the heads are not one head three times"


def test_the_temperature_is_the_one_that_makes_held_out_pairs_most_likely(ensemble: Done) -> None:
    """By the loss, from scores that transformers reads off the folder. The binned error need not fall with it."""
    final = ensemble.stage("rm") / "final"
    held = heads_of(final, ensemble.path.parent / "held.jsonl").mean(-1)
    gaps, metrics = held[:, 0] - held[:, 1], ensemble.metrics("rm")
    temperature = read_reward_stats(final).temperature
    assert temperature == metrics["temperature"]
    assert temperature is not None

    def loss(t: float) -> float:
        return float(np.mean((61 / 62) * np.logaddexp(0, -gaps / t) + (1 / 62) * np.logaddexp(0, gaps / t)))

    assert loss(temperature) < min(loss(temperature * 1.1), loss(temperature / 1.1))
    assert loss(temperature) < loss(1.0)
    assert {0 <= metrics[name] <= 0.5 for name in ("calibration_error", "calibrated_error")} == {True}


def test_the_card_counts_pairs_by_length_and_the_report_shows_it(ensemble: Done) -> None:
    """The answers' lengths in tokens are those of their letters, a space and the end: counted here from the file."""
    card = read_card(json.loads((ensemble.stage("rm") / "card.json").read_text()))
    assert isinstance(card, RewardCard)
    rows = preferences(ensemble.path.parent / "held.jsonl")
    lengths = np.array([(len(p.chosen.text) + 2, len(p.rejected.text) + 2) for p in rows])
    longest = lengths.max(1)
    assert card.length_bias is not None
    assert card.calibration is not None
    assert (card.held_out, card.answers, card.heads, card.notes) == (True, 120, 3, ())
    assert card.length_bias.matched == int((abs(lengths[:, 0] - lengths[:, 1]) <= 0.1 * longest).sum())
    assert card.length_bias.shorter == int((lengths[:, 0] < lengths[:, 1]).sum())
    wins = (lengths[:, 0] > lengths[:, 1]).mean() + 0.5 * (lengths[:, 0] == lengths[:, 1]).mean()
    assert card.length_bias.longer_wins == pytest.approx(wins) == pytest.approx(ensemble.metrics("rm")["validation_longer_wins"])
    assert sum(b.n for b in card.calibration.after) == 60
    page = (ensemble.path / "report.html").read_text()
    section = page[page.index('<section id="rewards">') :].partition("</section>")[0]
    for text in ("120 held-out answers, 3 heads", "longer wins, %", "about equally long", "confidence before, %", "Correlation of score and length"):
        assert text in section


def test_pairs_too_few_to_calibrate_are_said_and_leave_no_temperature(trained: Done) -> None:
    assert "rm: not calibrated: 6 held-out pairs are too few, it takes 32" in trained.said
    assert read_reward_stats(trained.stage("rm") / "final").temperature is None
    assert "temperature" not in trained.metrics("rm")
    assert json.loads((trained.stage("rm") / "final" / "reward_stats.json").read_text()).keys() == {"mean", "std"}


def chats_with(labels: dict[str, bool], count: int) -> list[dict]:
    """To each of `count` prompts one answer of each text, labelled."""
    return [
        {"id": f"q{k}/{text}", "messages": [{"role": "user", "content": f"Say it {k}."}, {"role": "assistant", "content": text}], "label": label}
        for k in range(count)
        for text, label in labels.items()
    ]


OUTCOME = {
    "kind": "reward_model",
    "init": "base",
    "objective": "outcome",
    "labelled": "./labels.jsonl",
    "optim": {"lr": 3e-3},
    "tokens_per_step": 1024,
    "epochs": 4,
    "patience": None,
}
LABELS = {"good.": True, "bad bad.": False}


def test_labels_teach_the_chance_of_being_right(tmp_path: Path, tiny_folder: Path) -> None:
    """The score is log-odds: the probability is above one half for the right answer alone. Length would get every pair wrong."""
    write(tmp_path / "labels.jsonl", chats_with(LABELS, 16))
    write(tmp_path / "held.jsonl", chats_with(LABELS, 20))
    done = carry_out(tmp_path, tiny_folder, {"rm": {**OUTCOME, "validation_labelled": "./held.jsonl", "eval_every": 7}})
    losses, metrics = done.curve("rm", "loss"), done.metrics("rm")
    assert losses[0] == pytest.approx(math.log(2), abs=0.05)
    assert metrics["validation_accuracy"] == metrics["final_accuracy"] == 1.0
    assert metrics["validation_labelled_right"] == 0.5
    assert metrics["final_longer_wins"] == 0.0
    final = done.stage("rm") / "final"
    stats, template = read_reward_stats(final), load_template(final, "vicuna")
    model = AutoModelForSequenceClassification.from_pretrained(final)
    assert (stats.even, stats.offsets) == (0.0, ())
    assert stats.temperature is not None
    for text, right in LABELS.items():
        chat = (Message("user", "Say it 3."), Message("assistant", text))
        with torch.no_grad():
            raw = model(torch.tensor([template.render(chat).tokens])).logits.double()
        assert (float(stats.probability(raw)[0, 0]) > 0.5) == right


def test_pairs_are_labels_too(tmp_path: Path, tiny_folder: Path) -> None:
    write(tmp_path / "pairs.jsonl", pairs("good.", "bad bad.", 16))
    stage = {key: value for key, value in OUTCOME.items() if key != "labelled"} | {"data": "./pairs.jsonl", "heads": 2}
    done = carry_out(tmp_path, tiny_folder, {"rm": stage})
    accuracy = done.curve("rm", "accuracy")
    assert accuracy[max(accuracy)] == 1.0
    assert read_reward_stats(done.stage("rm") / "final").offsets == (), "labels fix the zero of every head"


def test_labels_of_one_kind_are_an_error_before_training(tmp_path: Path, tiny_folder: Path) -> None:
    write(tmp_path / "labels.jsonl", chats_with({"z": True, "a": True}, 3))
    error = failure(tmp_path, tiny_folder, {"rm": OUTCOME})
    assert error.exit_code == 2
    assert str(error).startswith("all 6 answers are labelled right: there is nothing to tell apart")


def test_held_out_labels_of_one_kind_are_said_and_leave_no_temperature(tmp_path: Path, tiny_folder: Path) -> None:
    write(tmp_path / "labels.jsonl", chats_with({"z": True, "a": False}, 6))
    write(tmp_path / "held.jsonl", chats_with({"z": True}, 40))
    done = carry_out(tmp_path, tiny_folder, {"rm": {**OUTCOME, "epochs": 1, "validation_labelled": "./held.jsonl"}})
    assert "rm: not calibrated: all 40 held-out answers have one label" in done.said
    assert read_reward_stats(done.stage("rm") / "final").temperature is None


MISTAKES = [
    ({"heads": 0, "data": "./pairs.jsonl"}, "stages.rm.heads: must be at least 1, not 0"),
    ({"objective": "sft", "data": "./pairs.jsonl"}, "sft does not learn a score"),
    ({"labelled": "./pairs.jsonl"}, "bradley_terry compares two answers to one prompt"),
    ({}, "there is nothing to learn from"),
]


@pytest.mark.parametrize(("change", "what"), MISTAKES)
def test_what_cannot_work_is_refused_before_anything_runs(tmp_path: Path, tiny_folder: Path, change: dict, what: str) -> None:
    write(tmp_path / "pairs.jsonl", pairs("a", "b", 2))
    stage = {key: value for key, value in RM.items() if key != "data"} | change
    assert what in str(failure(tmp_path, tiny_folder, {"rm": stage}))
    assert not (tmp_path / "run" / "stages").exists()


def test_an_ensemble_cannot_go_on_from_a_model_of_other_heads(tmp_path: Path, tiny_folder: Path) -> None:
    write(tmp_path / "pairs.jsonl", pairs("a", "b", 4))
    stages = {"one": RM, "two": {**RM, "init": "one", "heads": 2}}
    assert "one: is a reward model of 1 heads, and heads is 2" in str(failure(tmp_path, tiny_folder, stages))


def test_an_ensemble_scores_in_a_recipe_and_shows_its_disagreement(tmp_path: Path, tiny_folder: Path) -> None:
    """Two stages of two heads as one scorer of best_of_n."""
    write(tmp_path / "pairs.jsonl", pairs("good.", "bad bad.", 8))
    write(tmp_path / "prompts.jsonl", prompts(3))
    scorer = {"kind": "reward_model", "model": ["a", "b"], "caution": 1.0}
    best = {"kind": "best_of_n", "policy": "base", "prompts": "./prompts.jsonl", "n": 2, "scorer": scorer, "sampling": {"max_tokens": 20}}
    best["engine"] = {"kind": "scripted", "answers": {f"q{k}": [ids("good."), ids("bad bad.")] for k in range(3)}}
    done = carry_out(tmp_path, tiny_folder, {"a": {**RM, "heads": 2, "epochs": 3}, "b": {**RM, "heads": 2, "epochs": 3}, "best": best})
    assert [row["messages"][-1]["content"] for row in read(done.stage("best") / "conversations.jsonl")] == ["good."] * 3
