"""Preference learning: starts at ln 2, widens margins with every objective, goes on exactly, and asks the reference once."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from xwin.data.batch import Sample, pack
from xwin.data.conversation import preference_from_json
from xwin.data.template import Template, load_template
from xwin.errors import DataError, Interrupted, TrainingStopped
from xwin.learning.learner import Learner
from xwin.learning.optim import Optim
from xwin.models.tuning import Full, LoRA
from xwin.objectives._preference import PreferenceObjective
from xwin.objectives.base import Objective
from xwin.objectives.dpo import Dpo
from xwin.objectives.kto import Kto
from xwin.run.signals import StopFlag
from xwin.seeds import generator
from xwin.spec import lookup
from xwin.stages._context import Context
from xwin.stages._preference import Judged, from_preferences, listen, partners, recall, remember
from xwin.stages.base import Stage

from .small import Done, carry_out, chats, failure, pairs, write

PREFER = {"kind": "preference", "init": "base", "data": "./pairs.jsonl", "optim": {"lr": 1e-3}, "tokens_per_step": 700}
OBJECTIVES: dict[str, dict[str, Any]] = {
    "dpo": {"kind": "dpo"},
    "cdpo": {"kind": "dpo", "flipped": 0.1},
    "robust": {"kind": "dpo", "flipped": 0.1, "smoothing": "robust"},
    "length-normalised": {"kind": "dpo", "log_ratio": "mean", "beta": 2.0},
    "dpo with nll": {"kind": "dpo", "nll": 0.2},
    "ipo": {"kind": "ipo"},
    "kto": {"kind": "kto"},
    "orpo": {"kind": "orpo"},
    "simpo": {"kind": "simpo"},
}
MakeLearner = Callable[..., Learner]


def prefer(folder: Path, model: Path, *sets: str, seed: int = 0, **settings: Any) -> Done:
    write(folder / "pairs.jsonl", pairs("good.", "bad bad.", 8))
    write(folder / "held.jsonl", pairs("good.", "bad bad.", 3))
    return carry_out(folder, model, {"prefer": {**PREFER, **settings}}, *sets, seed=seed)


def margin(done: Done) -> list[float]:
    """The difference of the implicit rewards of good and bad answers, step by step."""
    found = done.curve("prefer", "score_margin")
    if not found:
        chosen, rejected = (done.curve("prefer", f"{side}_score") for side in ("chosen", "rejected"))
        found = {step: chosen[step] - rejected[step] for step in chosen.keys() & rejected.keys()}
    return [found[step] for step in sorted(found)]


def answer_logp(folder: Path, template: Template, row: dict[str, Any]) -> list[float]:
    """Log-probs of the chosen and the rejected answer as sums, by transformers."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    found = []
    for sample in from_preferences(template, [preference_from_json(row, "row")], bonded=True):
        with torch.no_grad():
            logp = model(torch.tensor([sample.tokens])).logits[0].log_softmax(-1)
        found.append(math.fsum(float(logp[t - 1, sample.tokens[t]]) for t in range(sample.start, len(sample.tokens))))
    return found


def judged(objective: PreferenceObjective, template: Template, reference: Learner, count: int = 6) -> Judged:
    """Good and bad answers to a few prompts, read by a reference, as the objective needs them."""
    preferences = [preference_from_json(row, "row") for row in pairs("good.", "bad bad.", count)]
    by_itself = "label" in objective.needs
    rows = list(from_preferences(template, preferences, bonded=not by_itself))
    return Judged(rows, partners(rows, 0) if by_itself else ()).heard(reference, [range(len(rows))], 8192)


def other(learner: Learner) -> Learner:
    """The same model with weights that say of unseen answers that they are less likely."""
    with torch.no_grad():
        for parameter in learner.model.parameters():
            parameter.mul_(1.3)
    return learner


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_lowers_its_loss_and_widens_the_margin(make_learner: MakeLearner, tiny_template: Template, name: str) -> None:
    objective = Objective.choose(OBJECTIVES[name])
    assert isinstance(objective, PreferenceObjective)
    answers = judged(objective, tiny_template, make_learner())
    policy = make_learner(objective, optim=Optim(lr=2e-3, schedule="constant", warmup=0.0), total=8)
    said = [{n: m.value for n, m in policy.step(answers.batches(policy, range(12), 4096)).items()} for _ in range(8)]
    first, last = said[0], said[-1]
    margins = [x["score_margin"] if "score_margin" in x else x["chosen_score"] - x["rejected_score"] for x in (first, last)]
    assert last["loss"] < first["loss"] - 0.02
    assert margins[1] > margins[0] + 0.01
    assert last["accuracy"] == 1.0


@pytest.mark.parametrize("tune", [Full(), LoRA(rank=4)], ids=lambda t: t.kind)
@pytest.mark.parametrize("name", ["dpo", "cdpo", "robust", "length-normalised", "ipo", "kto"])
def test_the_first_loss_is_that_of_a_policy_that_is_its_reference(
    make_learner: MakeLearner, tiny_template: Template, name: str, tune: Full | LoRA
) -> None:
    """ln 2 for DPO; (1 / (2 tau))^2 = 25 for IPO; a half for KTO. Adapters start as nothing."""
    objective = Objective.choose(OBJECTIVES[name])
    assert isinstance(objective, PreferenceObjective)
    answers = judged(objective, tiny_template, make_learner())
    policy = make_learner(objective, tune=tune)
    found = {n: m.value for n, m in policy.evaluate(answers.batches(policy, range(12), 700)).items()}
    assert found["loss"] == pytest.approx({"ipo": 25.0, "kto": 0.5}.get(name, math.log(2)), abs=1e-4)
    assert objective.start == pytest.approx(found["loss"], abs=1e-4)
    assert found["reference_kl"] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("name", ["dpo", "kto"])
def test_batches_of_any_size_teach_the_same(make_learner: MakeLearner, tiny_template: Template, name: str) -> None:
    """Also with KTO, whose reference point is an average over the step, here above zero."""
    objective = Objective.choose({"kind": name, "beta": 0.5})
    assert isinstance(objective, PreferenceObjective)
    answers = judged(objective, tiny_template, other(make_learner()))
    gradients = []
    for tokens in (300, 8192):
        policy = make_learner(objective)
        batches = answers.batches(policy, range(12), tokens)
        policy._backward(objective, batches)
        gradients.append(torch.cat([p.grad.flatten() for p in policy.model.parameters() if p.grad is not None]))
        assert (len(batches) > 1) == (tokens == 300)
    assert float(gradients[0].norm()) > 0
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-5 * float(gradients[1].abs().max()), rtol=1e-3)


def test_the_published_model_has_the_loss_that_was_measured(tmp_path: Path, tiny_folder: Path) -> None:
    """-log sigmoid(beta h) of the held-out pairs, from the log-probs that transformers gives for the two folders."""
    done = prefer(tmp_path, tiny_folder, objective={"kind": "dpo", "beta": 0.5}, validation="./held.jsonl", eval_every=2, epochs=2)
    final, template = done.stage("prefer") / "final", load_template(tiny_folder, "vicuna")
    losses = []
    for row in pairs("good.", "bad bad.", 3):
        policy, reference = (answer_logp(folder, template, row) for folder in (final, tiny_folder))
        h = (policy[0] - reference[0]) - (policy[1] - reference[1])
        losses.append(math.log1p(math.exp(-0.5 * h)))
    curve = done.curve("prefer", "validation_loss")
    assert sum(losses) / 3 == pytest.approx(min(curve.values()), abs=1e-4)
    assert done.metrics("prefer")["best_step"] == min(curve, key=lambda step: curve[step])


def test_kto_learns_from_labels(tmp_path: Path, tiny_folder: Path) -> None:
    rows = [{**row, "label": i % 2 == 0} for i, row in enumerate(chats(["good.", "bad bad."] * 4))]
    write(tmp_path / "labels.jsonl", rows)
    done = carry_out(tmp_path, tiny_folder, {"prefer": {**PREFER, "data": [], "labelled": "./labels.jsonl", "objective": "kto", "epochs": 4}})
    assert margin(done)[-1] > margin(done)[0] + 0.01


def test_another_reference_moves_the_first_loss(tmp_path: Path, tiny_folder: Path) -> None:
    """A model that was trained towards the rejected answers: measured from it the policy starts with a margin."""
    write(tmp_path / "pairs.jsonl", pairs("good.", "bad bad.", 8))
    write(tmp_path / "swapped.jsonl", pairs("bad bad.", "good.", 8))
    swapped = {**PREFER, "data": "./swapped.jsonl", "epochs": 2}
    done = carry_out(tmp_path, tiny_folder, {"swapped": swapped, "prefer": {**PREFER, "reference": "swapped"}})
    assert done.curve("prefer", "score_margin")[0] > 0.05
    assert done.curve("prefer", "loss")[0] < math.log(2) - 0.02


def test_the_reference_of_adapters_is_where_they_started_and_no_second_copy(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Started from a stage that trained adapters itself: from its result, not from the model below it. So the first loss is ln 2."""
    lora = {"kind": "lora", "rank": 4}
    write(tmp_path / "chat.jsonl", chats(["good."] * 8))
    write(tmp_path / "pairs.jsonl", pairs("good.", "bad bad.", 4))
    sft = {"kind": "sft", "init": "base", "data": "./chat.jsonl", "optim": {"lr": 5e-3}, "epochs": 3, "tune": lora}
    monkeypatch.delattr(Context, "frozen")
    done = carry_out(tmp_path, tiny_folder, {"sft": sft, "prefer": {**PREFER, "init": "sft", "tune": lora, "tokens_per_step": 9000}})
    assert done.curve("prefer", "loss")[0] == pytest.approx(math.log(2), abs=1e-5)
    assert done.curve("prefer", "reference_kl")[0] == pytest.approx(0.0, abs=1e-7)
    template = load_template(tiny_folder, "vicuna")
    expected, base = (
        sum(answer_logp(folder, template, row)[0] for row in pairs("good.", "bad bad.", 4)) / 4
        for folder in (done.stage("sft") / "final", tiny_folder)
    )
    assert done.curve("prefer", "chosen_logp")[0] == pytest.approx(expected, abs=1e-3)
    assert abs(expected - base) > 1


@pytest.mark.slow
def test_equal_runs_are_equal_and_seeds_differ(tmp_path: Path, tiny_folder: Path) -> None:
    found = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        (tmp_path / name).mkdir()
        done = prefer(tmp_path / name, tiny_folder, objective={"kind": "kto"}, seed=seed)
        found.append((done.stage("prefer") / "final" / "model.safetensors").read_bytes())
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize("kind", [pytest.param("dpo", marks=pytest.mark.slow), "kto"])
def test_a_stopped_stage_goes_on_exactly_and_does_not_ask_the_reference_again(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Stopped after its third step, as Ctrl-C would, and started again."""
    settings = {"objective": {"kind": kind}, "validation": "./held.jsonl", "eval_every": 2, "epochs": 2, "patience": None}
    (tmp_path / "straight").mkdir()
    straight = prefer(tmp_path / "straight", tiny_folder, **settings)
    halted = tmp_path / "halted"
    halted.mkdir()
    stage = halted / "run" / "stages" / "prefer"

    def obey(flag: StopFlag) -> None:
        if (stage / "checkpoints" / "step-000003").exists():
            raise Interrupted(2)

    with monkeypatch.context() as patch:
        patch.setattr(StopFlag, "obey", obey)
        with pytest.raises(Interrupted):
            prefer(halted, tiny_folder, **settings, checkpoint_every=0)
    remembered = stage / "checkpoints" / "reference.safetensors"
    assert remembered.is_file()
    done = prefer(halted, tiny_folder, **settings, checkpoint_every=0)
    assert "prefer: going on from step 3" in done.said
    assert "the reference reads" not in done.said
    for metric in ("loss", "validation_loss", "grad_norm", "kl" if kind == "kto" else "score_margin"):
        assert done.curve("prefer", metric) == straight.curve("prefer", metric)
    first, second = (load_file(d.stage("prefer") / "final" / "model.safetensors") for d in (straight, done))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not remembered.exists(), "it goes with the checkpoints"


def test_the_reference_reads_each_answer_once(make_learner: MakeLearner) -> None:
    """What it says does not depend on the parts it is asked in, and is what a policy with the same weights says."""
    draw = generator(0, "rows")
    rows = [Sample(f"{i}", tuple(int(t) for t in draw.integers(3, 259, 8 + i)), (False,) * 4 + (True,) * (4 + i)) for i in range(5)]
    reference = make_learner()
    one = listen(reference, rows.__getitem__, [[0, 3], [3, 1, 0], [4, 2]], count=5, tokens=64)
    other = listen(reference, rows.__getitem__, [range(5)], count=5, tokens=16)
    assert one.ends.tolist() == [4, 9, 15, 22, 30]
    torch.testing.assert_close(one.values, other.values, atol=1e-5, rtol=0)
    (batch,) = pack([one.add_to(row, i) for i, row in enumerate(rows)], tokens=64)
    (out,) = reference.forward([batch], frozenset({"logp"}))
    torch.testing.assert_close(batch.column("ref_logp").masked_fill(~batch.mask, 0.0), out.get("logp"), atol=1e-5, rtol=0)


def test_partners_have_other_prompts_and_each_answer_is_used_once() -> None:
    random = generator(3, "prompts")
    for seed in range(20):
        kinds = [int(k) for k in random.integers(0, 5, 24)]
        rows = [Sample(f"{i}", (k, 9, 100 + i), (False, False, True)) for i, k in enumerate(kinds)]
        if max(map(kinds.count, kinds)) * 2 > len(rows):
            continue
        found = partners(rows, seed)
        assert sorted(found) == list(range(24))
        assert all(kinds[i] != kinds[j] for i, j in enumerate(found))
        assert found == partners(rows, seed)
    assert partners(rows, 0) != partners(rows, 1)


def test_without_enough_prompts_there_is_no_reference_point() -> None:
    rows = [Sample(f"{i}", (k, 9, 100 + i), (False, False, True)) for i, k in enumerate((1, 1, 2))]
    with pytest.raises(DataError, match="2 of 3 answers are to one prompt"):
        partners(rows, 0)


def test_a_mismatched_sample_is_a_prompt_with_the_answer_of_another() -> None:
    rows = [Sample("a", (1, 2, 3, 4), (False, False, True, True)), Sample("b", (5, 6, 7), (False, True, True))]
    found = Judged(rows, (1, 0)).mismatched(0, 8192)
    assert (found.tokens, found.mask) == ((1, 2, 6, 7), (False, False, True, True))


def test_the_reference_point_does_not_depend_on_the_batches(make_learner: MakeLearner, tiny_template: Template) -> None:
    """It is the mean over all mismatched answers, here against a second, slow pass over one at a time; every batch has the same number."""
    policy, reference = make_learner(Kto()), other(make_learner())
    answers = judged(Kto(), tiny_template, reference, 3)
    found = []
    for tokens in (250, 500, 8192):
        batches = answers.batches(policy, range(6), tokens)
        columns = torch.cat([b.column("reference_point")[b.samples()] for b in batches])
        assert len(set(columns.tolist())) == 1
        found.append(columns[0].item())
    assert found == pytest.approx([found[0]] * 3, abs=1e-4)
    gaps = []
    for place in range(6):
        (batch,) = pack([answers.mismatched(place, 8192)], tokens=8192)
        said = [float(who.forward([batch], frozenset({"logp"}))[0].get("logp").sum()) for who in (policy, reference)]
        gaps.append(said[0] - said[1])
    assert sum(gaps) / 6 > 0.1
    assert found[0] == pytest.approx(sum(gaps) / 6, abs=1e-3)


def test_a_pair_that_comes_twice_in_a_step_is_two_pairs(make_learner: MakeLearner, tiny_template: Template) -> None:
    answers = judged(Dpo(), tiny_template, make_learner(), 2)
    policy = make_learner(Dpo())
    (batch,) = answers.batches(policy, [0, 1, 2, 3, 0, 1], 8192)
    assert len(batch.pairs()) == 3
    assert Dpo().weigh(batch).count.item() == 3


def test_labels_become_columns(tiny_template: Template) -> None:
    preference = preference_from_json(pairs("ab", "c", 1)[0], "row")
    chosen, rejected = from_preferences(tiny_template, [preference], bonded=True)
    assert (chosen.columns, rejected.columns) == ({"label": 1.0}, {"label": 0.0})
    assert chosen.bond == rejected.bond is not None
    assert chosen.tokens[: chosen.start] == rejected.tokens[: rejected.start] == tiny_template.prompt(preference.prompt)
    assert all(s.bond is None for s in from_preferences(tiny_template, [preference], bonded=False))


def test_rows_without_a_label_or_an_answer_are_named(tmp_path: Path, tiny_folder: Path) -> None:
    for rows, what in (
        (chats(["yes", "no"]), "conversation q0: has no label"),
        ([{"id": "q7", "messages": [{"role": "user", "content": "Say it."}], "label": True}], "conversation q7: does not end with an answer"),
    ):
        write(tmp_path / "labels.jsonl", rows)
        error = failure(tmp_path, tiny_folder, {"prefer": {**PREFER, "data": [], "labelled": "./labels.jsonl", "objective": "kto"}})
        assert error.exit_code == 2
        assert what in str(error)


def test_rows_that_fit_no_batch_are_named_or_dropped(tmp_path: Path, tiny_folder: Path) -> None:
    write(tmp_path / "pairs.jsonl", [*pairs("good.", "bad bad.", 2), {**pairs("long " * 60, "b", 1)[0], "id": "big"}])
    short = {**PREFER, "tokens_per_batch": 480}
    assert "big/chosen" in str(failure(tmp_path, tiny_folder, {"prefer": short}))
    done = carry_out(tmp_path, tiny_folder, {"prefer": {**short, "too_long": "drop", "tokens_per_step": 9000}})
    assert len(done.curve("prefer", "loss")) == 1
    assert "prefer: 1 rows longer than 480 tokens dropped" in done.said
    none = failure(tmp_path, tiny_folder, {"prefer": {**short, "tokens_per_batch": 64, "too_long": "drop"}})
    assert "no row is short enough for a batch" in str(none)


def test_a_wrong_reference_is_noticed_before_anything_is_trained(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here the reference's numbers are running sums, as a mistake in the column would make them."""
    add = Judged.recalled

    def shifted(answers: Judged, name: str, tensors: dict[str, torch.Tensor]) -> Judged:
        return add(answers, name, {key: value.cumsum(0) if key.endswith("values") else value for key, value in tensors.items()})

    monkeypatch.setattr(Judged, "recalled", shifted)
    write(tmp_path / "pairs.jsonl", pairs("good.", "bad bad.", 8))
    error = failure(tmp_path, tiny_folder, {"prefer": PREFER})
    assert isinstance(error, TrainingStopped)
    assert "it must be 0.6931" in str(error)


def test_what_was_remembered_comes_back_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "there" / "reference.safetensors"
    assert recall(path) is None
    tensors = {"a.ends": torch.tensor([1, 3]), "a.values": torch.tensor([0.5, -1.0, 2.0]), "b.values": torch.zeros(0)}
    remember(path, tensors)
    found = recall(path)
    assert found is not None
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    whole = path.read_bytes()
    path.write_bytes(whole[:-4])
    assert recall(path) is None
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert recall(path) is None


def problems(**settings: Any) -> list[str]:
    """The fields that the stage's own check names."""
    stage = lookup(Stage, "preference").model_validate({"init": "base", **settings})
    return [field for field, _, _ in stage.check()]


def test_what_does_not_fit_together_is_found_before_anything_is_loaded() -> None:
    assert problems(data="pairs") == []
    assert problems(labelled="labels", objective="kto") == []
    assert problems() == [""]
    assert problems(data="pairs", objective="sft") == ["objective"]
    assert problems(data="pairs", objective="ppo") == ["objective"]
    assert problems(data="pairs", objective="bradley_terry") == ["objective"]
    assert problems(data="pairs", labelled="labels", validation_labelled="labels") == ["labelled", "validation_labelled"]
    assert problems(data="pairs", objective="simpo", reference="base") == ["reference"]
    assert problems(data="pairs", reference="base") == []


def test_the_default_loss_is_that_of_the_paper() -> None:
    assert Dpo() == Dpo(beta=0.1, log_ratio="sum", flipped=0.0, nll=0.0)
