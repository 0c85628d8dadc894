"""What must hold for every objective in the folder; a new file is found by itself.

The model is a table here: for every sample a leaf of numbers per token (or one score), from which the Outputs of any packing are read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from xwin.data.batch import Batch, Outputs, Sample, pack
from xwin.objectives.base import Objective
from xwin.run.events import Mean, Measure, merged
from xwin.spec import lookup, names

VARIANTS: dict[str, list[dict[str, Any]]] = {
    "bradley_terry": [{"flipped": 0.1, "margin_scale": 1.0}],
    "grpo": [
        {"clip": 0.1, "weighting": {"kind": "sequence_mean"}, "kl": {"coef": 0.1, "estimator": "k1"}},
        {"weighting": {"kind": "fixed_length", "tokens": 7}, "kl": {"coef": 0.1, "estimator": "k2"}},
        {"kl": {"coef": 0.1, "estimator": "k3"}},
        {"kl": {"coef": 0.1, "estimator": "k3", "gradient": "estimator"}},
        {"weighting": {"kind": "sequence_mean"}},
        {"weighting": {"kind": "fixed_length", "tokens": 7}},
    ],
    "ppo": [{"clip": [0.1, 0.4], "dual_clip": None}],
    "reinforce": [{"weighting": {"kind": "sequence_mean"}}],
    "dpo": [{"flipped": 0.1}, {"flipped": 0.1, "smoothing": "robust"}, {"log_ratio": "mean", "nll": 0.2}],
    "ipo": [{"log_ratio": "mean"}],
    "kto": [{"desirable": 0.5, "undesirable": 2.0}],
    "sft": [{"weighting": "sequence_mean"}, {"label_smoothing": 0.1}],
}
"""Other settings that the laws must hold for."""
OBJECTIVES = [lookup(Objective, name)(**settings) for name in names(Objective.package) for settings in [{}, *VARIANTS.get(name, [])]]
SURROGATES = [o for o in OBJECTIVES if "advantage" in o.needs and "ref_logp" not in o.needs and o.kind != "gspo"]
"""Policy gradients of single tokens."""
PER_SEQUENCE = {"margin", "label", "reference_point"}
every = pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: o.kind)


def rows(objective: Objective, *, gap: float = 0.3, seed: int = 0) -> list[Sample]:
    """12 samples in 6 bonded pairs over 3 prompts, holes in some masks, every column the objective needs."""
    random = torch.Generator().manual_seed(seed)
    out = []
    for k in range(12):
        length, prompt = 2 + 3 * (k % 4), (1, 2, 3, 4, 5, 6, 7, 8, 9, 10 + k // 4)
        answer = tuple(torch.randint(20, 90, (length,), generator=random).tolist())
        mask = [False] * 10 + [True] * length
        if k % 3 == 0:
            mask[11] = False
        total = len(prompt + answer)
        scalars = {"label": 1.0 - k % 2}
        columns = {
            n: scalars.get(n, 0.5) if n in PER_SEQUENCE else tuple((torch.randn(total, generator=random) * gap).tolist())
            for n in sorted(objective.needs)
        }
        out.append(Sample(f"s{k}", prompt + answer, tuple(mask), columns, bond=f"p{k // 2}"))
    return out


@dataclass
class Table:
    """A model that is a table of leaves: name -> sample id -> numbers."""

    samples: Sequence[Sample]
    dtype: torch.dtype = torch.float32
    scale: float = 1.0
    leaves: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        random = torch.Generator().manual_seed(7)
        for name in ("logp", "entropy", "value", "score", "uniform"):
            sizes = {s.id: 1 if name == "score" else len(s.tokens) for s in self.samples}
            rows = {key: torch.randn(n, generator=random, dtype=torch.float64) * self.scale for key, n in sizes.items()}
            rows = {key: -row.abs() for key, row in rows.items()} if name == "logp" else rows  # a probability is at most 1
            self.leaves[name] = {key: row.to(self.dtype).requires_grad_(name != "entropy") for key, row in rows.items()}

    def __call__(self, batch: Batch) -> Outputs:
        said = {}
        for name, leaf in self.leaves.items():
            per_token = name != "score"
            whole = torch.zeros(len(batch) if per_token else len(batch.ids), dtype=self.dtype)
            for s in batch.samples():
                where = (batch.segment == s).nonzero().squeeze(1) if per_token else torch.tensor([s])
                numbers = leaf[batch.ids[s]]
                whole = whole.index_copy(0, where, numbers[len(numbers) - len(where) :])
            said[name] = whole.masked_fill(~batch.mask, 0.0) if per_token else whole
        return Outputs(**said)

    def gradients(self) -> dict[tuple[str, str], Tensor]:
        rows = ((name, key, leaf) for name, some in self.leaves.items() for key, leaf in some.items() if leaf.requires_grad)
        return {(name, key): torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for name, key, leaf in rows}


@dataclass(frozen=True)
class Learned:
    loss: float
    gradients: dict[tuple[str, str], Tensor]
    stats: dict[str, Measure]


def learn(objective: Objective, table: Table, batches: Sequence[Batch]) -> Learned:
    """The Learner's sum over one step, without a model or an optimizer."""
    weights = [objective.weigh(b) for b in batches]
    count = torch.stack([w.count for w in weights]).sum()
    loss, stats = 0.0, {}
    for batch, w in zip(batches, weights, strict=True):
        said = objective.loss(batch, table(batch))
        assert said.values.shape == w.weight.shape
        total = (said.values.masked_fill(w.weight == 0, 0.0) * w.weight).sum() / count
        total.backward()
        loss, stats = loss + total.item(), merged(stats, said.stats)
    return Learned(loss, table.gradients(), stats)


def wide(batch: Batch) -> Batch:
    return replace(batch, columns={name: column.double() for name, column in batch.columns.items()})


LAYOUTS: dict[str, Callable[[list[Sample]], list[Batch]]] = {
    "a pair at a time": lambda r: [b for k in range(0, 12, 2) for b in pack(r[k : k + 2], tokens=500)],
    "in another order": lambda r: pack([s for k in range(10, -2, -2) for s in r[k : k + 2]], tokens=500),
    "packed small": lambda r: pack(r, tokens=60),
    "prompts shared": lambda r: pack(r, tokens=70, share=True),
    "all shared": lambda r: pack(r, tokens=500, share=True),
}


@every
@pytest.mark.parametrize("layout", LAYOUTS)
def test_loss_gradient_and_metrics_do_not_know_the_packing(objective: Objective, layout: str) -> None:
    samples = rows(objective)
    whole = learn(objective, Table(samples), pack(samples, tokens=500))
    other = learn(objective, Table(samples), LAYOUTS[layout](samples))
    assert any(g.any() for g in whole.gradients.values()), "there is something to learn"
    assert other.loss == pytest.approx(whole.loss, rel=1e-5)
    for key, gradient in whole.gradients.items():
        torch.testing.assert_close(other.gradients[key], gradient, atol=1e-7, rtol=1e-5)
    assert {n: m.value for n, m in other.stats.items()} == pytest.approx({n: m.value for n, m in whole.stats.items()}, rel=1e-5)
    assert {n: m.count for n, m in other.stats.items() if isinstance(m, Mean)} == {n: m.count for n, m in whole.stats.items() if isinstance(m, Mean)}


@every
def test_what_is_masked_has_no_gradient_and_may_hold_anything(objective: Objective) -> None:
    samples = rows(objective)
    table = Table(samples)
    clean = learn(objective, table, pack(samples, tokens=500))
    for sample in samples:
        masked = ~torch.tensor(sample.mask)
        for name in ("logp", "value", "uniform"):
            assert not clean.gradients[name, sample.id][masked].any()
    for poison in (torch.nan, torch.inf, 1e30):
        (batch,) = pack(samples, tokens=500)
        dirty = {n: c if n in PER_SEQUENCE else c.masked_fill(~batch.mask, poison) for n, c in batch.columns.items()}
        again = learn(objective, Table(samples), [replace(batch, columns=dirty)])
        assert again.loss == pytest.approx(clean.loss)
        for key, gradient in clean.gradients.items():
            torch.testing.assert_close(again.gradients[key], gradient)
        assert {n: m.value for n, m in again.stats.items()} == pytest.approx({n: m.value for n, m in clean.stats.items()})


@every
def test_a_micro_batch_without_anything_trained_adds_nothing(objective: Objective) -> None:
    samples = rows(objective)
    idle = [replace(s, id=f"idle {s.id}", mask=(False,) * len(s.tokens), bond=None) for s in samples[:2]]
    batches, more = pack(samples, tokens=500), pack(idle, tokens=500)
    assert objective.weigh(more[0]).count.item() == 0
    without = learn(objective, Table([*samples, *idle]), batches)
    with_it = learn(objective, Table([*samples, *idle]), [*batches, *more])
    assert with_it.loss == without.loss
    for (name, key), gradient in with_it.gradients.items():
        assert torch.equal(gradient, without.gradients[name, key])
    assert {n: m.value for n, m in with_it.stats.items()} == {n: m.value for n, m in without.stats.items()}


@every
@pytest.mark.parametrize("gap", [-50.0, 50.0])
def test_far_apart_is_finite(objective: Objective, gap: float) -> None:
    """Log-ratios (and values, and scores) 50 away from what the columns say, with advantages of both signs."""
    samples = rows(objective)
    table = Table(samples)
    with torch.no_grad():
        for name in ("logp", "value", "score", "uniform"):
            for i, s in enumerate(samples):
                old = s.columns.get({"logp": "old_logp", "value": "value"}.get(name, ""), 0.0)
                away = torch.tensor(old) + gap if isinstance(old, tuple) else torch.full_like(table.leaves[name][s.id], gap)
                table.leaves[name][s.id].copy_(away if name != "score" else away * (i % 2))
    found = learn(objective, table, pack(samples, tokens=500))
    assert all(g.isfinite().all() for g in found.gradients.values())
    assert torch.tensor(found.loss).isfinite()
    assert all(torch.tensor(m.value).isfinite() for m in found.stats.values())


@dataclass(frozen=True)
class Witness(Batch):
    """A batch that remembers which columns were read."""

    read: set[str] = field(default_factory=set)

    def column(self, name: str) -> Tensor:
        self.read.add(name)
        return super().column(name)


@dataclass(frozen=True)
class Listener(Outputs):
    """Outputs that remember which were read."""

    read: set[str] = field(default_factory=set)

    def __getattribute__(self, name: str) -> object:
        if name in {"logp", "entropy", "value", "score", "uniform"}:
            object.__getattribute__(self, "read").add(name)
        return super().__getattribute__(name)


@every
def test_it_reads_the_columns_and_outputs_it_declares_and_no_others(objective: Objective) -> None:
    samples = rows(objective)
    (batch,) = pack(samples, tokens=500)
    said = Table(samples)(batch)
    witness = Witness(**vars_of(batch))
    listener = Listener(**{n: getattr(said, n) for n in objective.reads})
    listener.read.clear()
    objective.weigh(witness)
    objective.loss(witness, listener)
    assert witness.read == set(objective.needs)
    assert listener.read == set(objective.reads)


def vars_of(batch: Batch) -> dict:
    return {name: getattr(batch, name) for name in ("tokens", "position", "segment", "mask", "parent", "ids", "bonds", "columns", "temperature")}


@pytest.mark.parametrize("objective", SURROGATES, ids=lambda o: o.kind)
def test_on_policy_the_gradient_is_minus_the_advantage_of_each_token(objective: Objective) -> None:
    samples = rows(objective)
    table = Table(samples)
    with torch.no_grad():
        for s in samples:
            if "old_logp" in objective.needs:  # else any policy is the one that sampled
                table.leaves["logp"][s.id].copy_(torch.tensor(s.columns["old_logp"]))
    batches = pack(samples, tokens=70, share=True)
    gradients = learn(objective, table, batches).gradients
    (whole,) = pack(samples, tokens=500)
    weighting = objective.weigh(whole)
    for segment in whole.samples():
        mine = whole.segment == segment
        expected = (-whole.column("advantage") * weighting.weight / weighting.count)[mine]
        torch.testing.assert_close(gradients["logp", whole.ids[segment]], expected)


@every
def test_float32_agrees_with_float64(objective: Objective) -> None:
    samples = rows(objective)
    batches = pack(samples, tokens=70)
    single = learn(objective, Table(samples), batches)
    double = learn(objective, Table(samples, dtype=torch.float64), [wide(b) for b in batches])
    assert single.loss == pytest.approx(double.loss, rel=1e-5)
    for key, gradient in double.gradients.items():
        torch.testing.assert_close(single.gradients[key].double(), gradient, atol=1e-7, rtol=1e-5)


@every
def test_the_loss_does_not_change_its_inputs(objective: Objective) -> None:
    samples = rows(objective)
    (batch,) = pack(samples, tokens=500)
    before = {name: column.clone() for name, column in batch.columns.items()}
    learn(objective, Table(samples), [batch])
    assert all(torch.equal(batch.columns[name], before[name]) for name in before)
