"""The step that every algorithm shares: one gradient however it is cut, guards before the update, exact resume."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from xwin.data.batch import Batch, Sample, pack
from xwin.errors import TrainingStopped
from xwin.learning import checkpoint
from xwin.learning.learner import Learner
from xwin.learning.optim import Optim
from xwin.models.tuning import Full, LastLayers, LoRA
from xwin.objectives.base import Objective
from xwin.objectives.bradley_terry import BradleyTerry
from xwin.objectives.ppo import Ppo
from xwin.objectives.sft import Sft
from xwin.objectives.value import Value
from xwin.run.events import Mean

MakeLearner = Callable[..., Learner]
LEARNERS: list[tuple[Objective, str]] = [(Sft(), "language"), (Ppo(), "language"), (Value(), "value"), (BradleyTerry(), "score")]
kinds = pytest.mark.parametrize(("objective", "head"), LEARNERS, ids=[o.kind for o, _ in LEARNERS])
tunings = pytest.mark.parametrize("tune", [Full(), LoRA(rank=4)], ids=["full", "lora"])


def rows(objective: Objective) -> list[Sample]:
    """8 samples of very different length in 4 bonded pairs over 2 prompts, with every column the objective needs."""
    random = torch.Generator().manual_seed(0)
    out = []
    for k, length in enumerate([1, 40, 3, 7, 25, 2, 11, 5]):
        prompt = (*range(70, 90), 100 + k // 4)
        answer = tuple(torch.randint(3, 259, (length,), generator=random).tolist())
        columns: dict[str, Any] = {}
        for name in sorted(objective.needs):
            noise = torch.randn(21 + length, generator=random) * 0.3
            columns[name] = 0.0 if name == "margin" else tuple((noise - 5.5 * (name == "old_logp")).tolist())
        out.append(Sample(f"s{k}", prompt + answer, (False,) * 21 + (True,) * length, columns, bond=f"p{k // 2}"))
    return out


def gradient(learner: Learner, batches: Sequence[Batch]) -> dict[str, Tensor]:
    """What the optimizer sees in one step."""
    seen: dict[str, Tensor] = {}
    assert learner.optimizer is not None

    def look(*_: Any) -> None:
        seen.update({name: p.grad.clone() for name, p in learner.model.named_parameters() if p.grad is not None})

    handle = learner.optimizer.register_step_pre_hook(look)
    learner.step(batches)
    handle.remove()
    return seen


def parameters(learner: Learner) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in learner.model.named_parameters()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


LAYOUTS = {
    "a pair at a time": lambda r: [b for k in range(0, 8, 2) for b in pack(r[k : k + 2], tokens=200)],
    "in another order": lambda r: [b for k in (4, 0, 6, 2) for b in pack(r[k : k + 2], tokens=200)],
    "prompts shared": lambda r: pack(r, tokens=100, share=True),
    "all shared": lambda r: pack(r, tokens=400, share=True),
    "with an idle one": lambda r: pack(r, tokens=400) + pack([replace(r[0], id="idle", mask=(False,) * 22, bond=None)], tokens=400),
}


@kinds
@tunings
def test_the_gradient_does_not_know_how_the_step_was_cut(objective: Objective, head: str, tune: Any, make_learner: MakeLearner) -> None:
    samples, optim = rows(objective), Optim(max_norm=1e9)
    whole = gradient(stirred(make_learner(objective, head=head, tune=tune, optim=optim)), pack(samples, tokens=400))
    assert whole
    for name, layout in LAYOUTS.items():
        other = gradient(stirred(make_learner(objective, head=head, tune=tune, optim=optim)), layout(samples))
        assert other.keys() == whole.keys()
        for key, g in whole.items():
            assert (other[key] - g).norm() <= 1e-5 * g.norm(), (name, key)


def stirred(learner: Learner) -> Learner:
    """Adapters that are not at zero, so that both of their matrices have a gradient."""
    random = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, p in learner.model.named_parameters():
            if ".lora_" in name:
                p.copy_(torch.randn(p.shape, generator=random) * 0.05)
    return learner


def test_one_by_eight_is_eight_by_one(make_learner: MakeLearner) -> None:
    samples = [replace(s, bond=None) for s in rows(Sft())]
    cuts = ([b for s in samples for b in pack([s], tokens=100)], pack(samples, tokens=400))
    assert [len(c) for c in cuts] == [8, 1]
    one, other = (gradient(make_learner(Sft(), optim=Optim(max_norm=1e9)), batches) for batches in cuts)
    for key, g in one.items():
        assert (other[key] - g).norm() <= 1e-5 * g.norm(), key


def test_the_loss_is_the_mean_over_all_tokens_of_the_step_also_in_evaluation(make_learner: MakeLearner) -> None:
    learner, samples = make_learner(Sft()), rows(Sft())
    said = learner.forward(pack(samples, tokens=400), frozenset({"logp"}))
    expected = -sum(float(o.get("logp").sum()) for o in said) / sum(sum(s.mask) for s in samples)
    for batches in (pack(samples, tokens=400), LAYOUTS["a pair at a time"](samples)):
        before = parameters(learner)
        assert learner.evaluate(batches)["loss"].value == pytest.approx(expected, rel=1e-6)
        assert same(before, parameters(learner)), "evaluation moves nothing"
    metrics = learner.step(pack(samples, tokens=100))
    assert metrics["loss"].value == pytest.approx(expected, rel=1e-6)
    assert isinstance(metrics["loss"], Mean)
    assert metrics["loss"].count == sum(sum(s.mask) for s in samples)
    assert metrics["tokens"].value == sum(len(s.tokens) for s in samples)


@kinds
def test_learning_lowers_the_loss(objective: Objective, head: str, make_learner: MakeLearner) -> None:
    learner, batches = (
        make_learner(objective, head=head, optim=Optim(lr=3e-3, warmup=0, schedule="constant"), total=8),
        pack(rows(objective), tokens=400),
    )
    losses = [learner.step(batches)["loss"].value for _ in range(8)]
    assert losses[-1] < losses[0] - 0.01


def test_the_first_minibatch_of_ppo_has_ratios_of_one(make_learner: MakeLearner) -> None:
    """Old log-probs as the rl stage makes them: the same model, packing may differ; at a temperature of 0.7."""
    learner, samples = make_learner(Ppo()), rows(Ppo())
    old: dict[str, tuple[float, ...]] = {}
    for batch in pack(samples, tokens=100, share=True, temperature=0.7):
        (out,) = learner.forward([batch], frozenset({"logp"}))
        old |= {batch.ids[s]: tuple(out.get("logp")[batch.segment == s].tolist()) for s in batch.samples()}
    fresh = [replace(s, columns={**s.columns, "old_logp": (0.0,) * (len(s.tokens) - len(old[s.id])) + old[s.id]}) for s in samples]
    metrics = learner.step(pack(fresh, tokens=400, temperature=0.7))
    assert metrics["ratio_gap"].value < 1e-5
    assert metrics["clipped"].value == 0.0
    assert metrics["approximate_kl"].value == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_stops_before_the_update(bad: float, make_learner: MakeLearner) -> None:
    learner, samples = make_learner(Ppo(), total=3), rows(Ppo())
    learner.step(pack(samples, tokens=100))
    before, state = parameters(learner), checkpoint_of(learner)
    broken = replace(samples[3], columns={**samples[3].columns, "advantage": (bad,) * len(samples[3].tokens)})
    with pytest.raises(TrainingStopped, match="not finite; stopped before the update") as caught:
        learner.step(pack([*samples[:3], broken, *samples[4:]], tokens=100))
    assert caught.value.where == f"step 1, samples {samples[3].id}", "it is pinned to the row"
    assert same(before, parameters(learner))
    assert same(state, checkpoint_of(learner)), "the optimizer's moments have not moved either"
    assert learner.steps_done == 1
    assert all(p.grad is None for p in learner.model.parameters())
    other = make_learner(Ppo(), total=3)
    for one in (other, other, learner):
        one.step(pack(samples, tokens=100))
    assert same(parameters(learner), parameters(other)), "the next good step is as if nothing had happened"


def checkpoint_of(learner: Learner) -> dict[str, Tensor]:
    return {f"{name} {key}": x.clone() for name, moments in learner.state()["moments"].items() for key, x in moments.items()}


@kinds
def test_a_step_in_which_nothing_is_trained_is_an_error(objective: Objective, head: str, make_learner: MakeLearner) -> None:
    learner = make_learner(objective, head=head)
    before = parameters(learner)
    idle = [replace(s, mask=(False,) * len(s.tokens), bond=None) for s in rows(objective)]
    with pytest.raises(TrainingStopped, match="no token of the step is trained"):
        learner.step(pack(idle, tokens=400))
    assert same(before, parameters(learner))
    assert learner.steps_done == 0


def test_the_learning_rate_of_a_step_is_a_function_of_its_number(make_learner: MakeLearner) -> None:
    optim = Optim(lr=1e-3, warmup=0.4)
    batches = pack(rows(Sft()), tokens=400)
    learner = make_learner(Sft(), optim=optim, total=6)
    rates = [learner.step(batches)["lr"].value for _ in range(4)]
    assert rates == [optim.rate(step, 6) for step in range(4)]
    later = make_learner(Sft(), optim=optim, total=6, steps_done=3)
    assert later.step(batches)["lr"].value == rates[3], "warm-up does not begin again"


def test_the_gradient_is_scaled_down_to_the_largest_norm(make_learner: MakeLearner) -> None:
    batches = pack(rows(Sft()), tokens=400)
    free, held = (make_learner(Sft(), optim=Optim(max_norm=norm)) for norm in (1e9, 1e-3))
    wide, narrow = gradient(free, batches), gradient(held, batches)
    norm = torch.stack([g.norm() for g in wide.values()]).norm()
    for name, g in wide.items():
        torch.testing.assert_close(narrow[name], g * 1e-3 / (norm + 1e-6), rtol=1e-4, atol=1e-12)


def test_only_what_is_tuned_moves(make_learner: MakeLearner) -> None:
    for tune, moving in ((LoRA(), ".lora_"), (LastLayers(layers=1), ".layers.1.")):
        learner = stirred(make_learner(Sft(), tune=tune, optim=Optim(lr=1e-2)))
        before = parameters(learner)
        learner.step(pack(rows(Sft()), tokens=400))
        after = parameters(learner)
        assert {name for name in before if not torch.equal(before[name], after[name])} == {name for name in before if moving in name}


@kinds
@tunings
def test_going_on_from_a_checkpoint_is_bit_for_bit_going_on(
    objective: Objective, head: str, tune: Any, make_learner: MakeLearner, tmp_path: Path
) -> None:
    samples = rows(objective)
    steps = [pack(samples, tokens=100), pack(samples[:4], tokens=400), pack(samples[2:], tokens=100, share=True), pack(samples, tokens=400)]
    options: dict[str, Any] = {"head": head, "tune": tune, "optim": Optim(lr=1e-3, weight_decay=0.1), "total": 4}
    straight = make_learner(objective, **options)
    for batches in steps[:2]:
        straight.step(batches)
    path = checkpoint.save(tmp_path, 2, {"policy": straight.state()}, {"steps_done": straight.steps_done})
    resumed = make_learner(objective, seed=99, **options)
    saved = checkpoint.load(path, {"policy": resumed.state()})
    resumed.steps_done = saved["steps_done"]
    assert same(parameters(straight), parameters(resumed))
    assert same(checkpoint_of(straight), checkpoint_of(resumed))
    for batches in steps[2:]:
        first, second = straight.step(batches), resumed.step(batches)
        assert {n: m.value for n, m in first.items()} == {n: m.value for n, m in second.items()}
        assert same(parameters(straight), parameters(resumed))
        assert same(checkpoint_of(straight), checkpoint_of(resumed))


def test_moments_of_8_bits_come_back_from_a_checkpoint_as_they_were(make_learner: MakeLearner, tmp_path: Path) -> None:
    """Here on a CPU, where bitsandbytes computes them slowly."""
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install 'xwin-lm[cuda]'")
    batches, options = pack(rows(Sft()), tokens=400), {"optim": Optim(lr=1e-3, moments="8bit", weight_decay=0.1), "total": 4}
    straight, resumed = (make_learner(Sft(), seed=seed, **options) for seed in (0, 9))
    straight.step(batches)
    straight.step(batches)
    path = checkpoint.save(tmp_path, 2, {"policy": straight.state()}, {})
    checkpoint.load(path, {"policy": resumed.state()})
    resumed.steps_done = 2
    for learner in (straight, resumed):
        learner.step(batches)
        learner.step(batches)
    assert same(parameters(straight), parameters(resumed))


def test_a_checkpoint_before_the_first_step_changes_nothing(make_learner: MakeLearner, tmp_path: Path) -> None:
    batches = pack(rows(Sft()), tokens=400)
    plain, saved = make_learner(Sft()), make_learner(Sft())
    checkpoint.save(tmp_path, 0, {"policy": saved.state()}, {})
    for learner in (plain, saved):
        learner.step(batches)
    assert same(parameters(plain), parameters(saved))


def test_equal_seeds_learn_bit_for_bit_the_same(make_learner: MakeLearner) -> None:
    batches = pack(rows(Sft()), tokens=100)
    one, two = (make_learner(Sft(), tune=LoRA(), optim=Optim(lr=1e-2), total=3) for _ in range(2))
    for learner in (one, two):
        for _ in range(3):
            learner.step(batches)
    assert same(parameters(one), parameters(two))


def test_a_frozen_model_forwards_and_does_not_step(make_learner: MakeLearner, tiny_folder: Path) -> None:
    learner, batches = make_learner(), pack(rows(Sft()), tokens=100)
    assert not learner.forward(batches, frozenset({"logp"}))[0].get("logp").requires_grad
    for verb in (learner.step, learner.evaluate):
        with pytest.raises(TrainingStopped, match="frozen"):
            verb(batches)


@tunings
def test_a_published_model_is_the_one_that_was_trained(tune: Any, make_learner: MakeLearner, tiny_folder: Path, tmp_path: Path) -> None:
    from xwin.models.causal import load
    from xwin.models.tuning import Frozen

    learner, batches = make_learner(Sft(), tune=tune, optim=Optim(lr=1e-2)), pack(rows(Sft()), tokens=400)
    start = learner.forward(batches, frozenset({"logp"}))[0].get("logp")
    learner.step(batches)
    trained = learner.forward(batches, frozenset({"logp"}))[0].get("logp")
    assert (trained - start).abs().max() > 1e-3
    learner.publish(tmp_path / "out")
    again = load(tmp_path / "out", head="language", tuning=Frozen(), dtype="float32")(batches[0], frozenset({"logp"})).get("logp")
    torch.testing.assert_close(again, trained, atol=1e-5, rtol=1e-5)
    weights = learner.weights()
    assert weights.version == 1
    published = load(tmp_path / "out", head="language", tuning=Frozen(), dtype="float32").plain()
    assert weights.tensors is not None
    assert all(torch.equal(published[name], x) for name, x in weights.tensors.items())
