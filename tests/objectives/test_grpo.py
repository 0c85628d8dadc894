"""GRPO by hand, and against a second, plain implementation that knows no batch: loops over answers and tokens, and finite differences."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from xwin.data.batch import Batch, Outputs, Sample, pack
from xwin.objectives._kl import kl_loss
from xwin.objectives._weighting import FixedLength, SequenceMean, TokenMean
from xwin.objectives.grpo import Grpo

PUBLISHED = {"weighting": {"kind": "sequence_mean"}, "clip": 0.2, "kl": {"coef": 0.04, "estimator": "k3", "gradient": "estimator"}}
SETTINGS = [
    {},
    PUBLISHED,
    {"weighting": {"kind": "fixed_length", "tokens": 9}, "clip": 0.1},
    {"kl": {"coef": 0.3, "estimator": "k1"}},
    {"kl": {"coef": 0.3, "estimator": "k2"}},
    {"kl": {"coef": 0.3, "estimator": "k3"}},
    {"kl": {"coef": 0.3, "estimator": "k2", "gradient": "estimator"}},
]


@dataclass(frozen=True)
class Judged:
    """One answer: its numbers per token, over a prompt of three tokens."""

    logp: list[float]
    old: list[float]
    ref: list[float]
    advantage: float

    def sample(self, name: str) -> Sample:
        size = len(self.logp)
        columns = {"old_logp": self.old, "ref_logp": self.ref, "advantage": [self.advantage] * size}
        padded = {name: (0.0,) * 3 + tuple(row) for name, row in columns.items()}
        return Sample(name, (1, 2, 3, *range(10, 10 + size)), (False,) * 3 + (True,) * size, padded)


def answers(seed: int = 0) -> list[Judged]:
    """Five answers of 1 to 7 tokens, off policy enough that some tokens are clipped on either side."""
    random = torch.Generator().manual_seed(seed)
    found = []
    for size, advantage in ((3, 1.2), (7, -0.8), (1, 0.5), (4, -0.1), (5, 0.9)):
        logp, old, ref = (-(0.3 + torch.rand(size, generator=random, dtype=torch.float64)) for _ in range(3))
        found.append(Judged(logp.tolist(), old.tolist(), ref.tolist(), advantage))
    return found


def slow(rows: Sequence[Judged], objective: Grpo, start: Sequence[Sequence[float]] | None = None) -> float:
    """The loss of a step by its definition. `start`: where detached weights are taken, when not at the rows themselves."""
    low, high = objective.clip if isinstance(objective.clip, tuple) else (objective.clip, objective.clip)
    total = tokens = 0.0
    for i, row in enumerate(rows):
        mine = 0.0
        for t, (p, q, f) in enumerate(zip(row.logp, row.old, row.ref, strict=True)):
            r = math.exp(p - q)
            mine -= min(r * row.advantage, min(max(r, 1 - low), 1 + high) * row.advantage)
            if objective.kl:
                k = {"k1": p - f, "k2": (p - f) ** 2 / 2, "k3": math.exp(f - p) - 1 - (f - p)}[objective.kl.estimator]
                if objective.kl.gradient == "reverse_kl":
                    k *= math.exp((start[i][t] if start and objective.kl.estimator == "k2" else p) - q)
                mine += objective.kl.coef * k
        share = {"token_mean": 1.0, "sequence_mean": 1 / len(row.logp)}
        total += mine * (1 / objective.weighting.tokens if isinstance(objective.weighting, FixedLength) else share[objective.weighting.kind])
        tokens += len(row.logp)
    return total / (tokens if isinstance(objective.weighting, TokenMean) else len(rows))


def slope(rows: Sequence[Judged], objective: Grpo, i: int, t: int) -> float:
    """Central difference in one log-probability."""
    start, step, sides = [row.logp for row in rows], 1e-6, []
    for sign in (1, -1):
        moved = [Judged(list(row.logp), row.old, row.ref, row.advantage) for row in rows]
        moved[i].logp[t] += sign * step
        sides.append(slow(moved, objective, start))
    return (sides[0] - sides[1]) / (2 * step)


def fast(rows: Sequence[Judged], objective: Grpo, batches: Sequence[Batch]) -> tuple[float, list[Tensor]]:
    """The Learner's sum over a step: loss and the gradient of each answer's log-probs."""
    leaves = {f"a{i}": torch.tensor([0.0] * 3 + row.logp, dtype=torch.float64).requires_grad_() for i, row in enumerate(rows)}
    count = torch.stack([objective.weigh(b).count for b in batches]).sum()
    loss = 0.0
    for batch in batches:
        wide = Batch(**{**vars_of(batch), "columns": {n: c.double() for n, c in batch.columns.items()}})
        logp = torch.zeros(len(batch), dtype=torch.float64)
        for s in batch.samples():
            where = (batch.segment == s).nonzero().squeeze(1)
            logp = logp.index_copy(0, where, leaves[batch.ids[s]][-len(where) :])
        values = objective.loss(wide, Outputs(logp=logp, entropy=torch.ones_like(logp))).values
        total = (values.masked_fill(~batch.mask, 0.0) * objective.weigh(batch).weight).sum() / count
        total.backward()
        loss += total.item()
    grads = [leaf.grad for leaf in leaves.values()]
    return loss, [g[3:] for g in grads if g is not None]


def vars_of(batch: Batch) -> dict:
    return {name: getattr(batch, name) for name in ("tokens", "position", "segment", "mask", "parent", "ids", "bonds", "temperature")}


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("layout", [{"tokens": 200}, {"tokens": 14}, {"tokens": 200, "share": True}], ids=str)
def test_loss_and_gradient_are_those_of_plain_loops_however_the_answers_are_packed(settings: dict, layout: dict) -> None:
    rows, objective = answers(), Grpo.model_validate(settings)
    batches = pack([row.sample(f"a{i}") for i, row in enumerate(rows)], **layout)
    loss, gradients = fast(rows, objective, batches)
    assert loss == pytest.approx(slow(rows, objective), rel=1e-6)  # columns are fp32
    for i, gradient in enumerate(gradients):
        assert gradient.tolist() == pytest.approx([slope(rows, objective, i, t) for t in range(len(gradient))], abs=1e-6)


def batch_of(lengths: Sequence[int]) -> Batch:
    """Answers of these lengths to one prompt of three tokens, shared."""
    (batch,) = pack([Judged([-1.0] * n, [-1.0] * n, [-1.0] * n, 1.0).sample(f"a{n}") for n in lengths], tokens=200, share=True)
    return batch


def test_weightings_by_hand() -> None:
    """Answers of 2 and 5 tokens: each token 1 of 7; a half and a fifth of 2 answers; a tenth of 2 answers."""
    batch = batch_of([2, 5])
    order = [int(batch.ids[s][1:]) for s in batch.segment[batch.mask].tolist()]
    token, sequence, fixed = (w.weigh(batch) for w in (TokenMean(), SequenceMean(), FixedLength(tokens=10)))
    assert (token.weight[batch.mask].tolist(), token.count.item()) == ([1.0] * 7, 7)
    assert (sequence.weight[batch.mask].tolist(), sequence.count.item()) == (pytest.approx([1 / n for n in order]), 2)
    assert (fixed.weight[batch.mask].tolist(), fixed.count.item()) == (pytest.approx([0.1] * 7), 2)
    for found in (token, sequence, fixed):
        assert not found.weight[~batch.mask].any()


def test_kl_in_the_loss_by_hand() -> None:
    """log pi = -1, log ref = -1.5, on policy: k1 = 0.5, k2 = 0.125, k3 = e^-0.5 - 1 + 0.5. Gradients: of reverse KL 0.5, for k1 1.5.

    The estimators' own: k2 0.5, k3 1 - e^-0.5 = 0.393.
    """
    old, ref = torch.tensor([-1.0], dtype=torch.float64), torch.tensor([-1.5], dtype=torch.float64)
    k3 = math.exp(-0.5) - 0.5
    expected = {
        ("k1", True): (0.5, 1.5),
        ("k2", True): (0.125, 0.5),
        ("k3", True): (k3, 0.5),
        ("k2", False): (0.125, 0.5),
        ("k3", False): (k3, 1 - math.exp(-0.5)),
    }
    for (estimator, weighted), (value, gradient) in expected.items():
        logp = old.clone().requires_grad_()
        term = kl_loss(logp, old, ref, estimator=estimator, weighted=weighted)  # type: ignore[arg-type]
        term.sum().backward()
        assert term.item() == pytest.approx(value)
        assert logp.grad is not None
        assert logp.grad.item() == pytest.approx(gradient)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_weighted_by_the_ratio_every_estimator_has_the_gradient_of_reverse_kl(estimator: str) -> None:
    """Over all actions of a small softmax policy, sampled from another one: the mean gradient is that of sum p log(p / q), exactly."""
    logits = torch.tensor([0.3, -0.4, 1.1, 0.0], dtype=torch.float64).requires_grad_()
    old = torch.tensor([0.9, 0.1, -0.2, 0.4], dtype=torch.float64).log_softmax(0)
    ref = torch.tensor([-0.5, 0.2, 0.3, 0.8], dtype=torch.float64).log_softmax(0)
    logp = logits.log_softmax(0)
    (exact,) = torch.autograd.grad((logp.exp() * (logp - ref)).sum(), logits, retain_graph=True)
    terms = kl_loss(logp, old, ref, estimator=estimator, weighted=True)  # type: ignore[arg-type]
    (found,) = torch.autograd.grad((old.exp() * terms).sum(), logits)
    torch.testing.assert_close(found, exact)


def test_the_gradient_of_k1_alone_is_noise_and_refused() -> None:
    logits = torch.tensor([0.3, -0.4, 1.1], dtype=torch.float64).requires_grad_()
    logp = logits.log_softmax(0)
    terms = kl_loss(logp, logp.detach(), torch.zeros(3, dtype=torch.float64), estimator="k1", weighted=False)
    (found,) = torch.autograd.grad((logp.exp().detach() * terms).sum(), logits)
    torch.testing.assert_close(found, torch.zeros(3, dtype=torch.float64), atol=1e-12, rtol=0)
    with pytest.raises(ValidationError, match="noise"):
        Grpo.model_validate({"kl": {"estimator": "k1", "gradient": "estimator"}})


def test_the_reference_is_needed_only_with_kl() -> None:
    assert Grpo().needs == {"old_logp", "advantage"}
    assert Grpo.model_validate(PUBLISHED).needs == {"old_logp", "advantage", "ref_logp"}


def test_metrics_by_hand() -> None:
    """Two trained tokens, log-ratios 0.5 (good, clipped above 1.28) and 0: one of two clipped; k3 to the reference 0 and e^-1 + 1 - 1."""
    columns = {"old_logp": (9.0, -1.5, -1.0), "ref_logp": (9.0, -1.0, -2.0), "advantage": (9.0, 1.0, 1.0)}
    (batch,) = pack([Sample("a", (1, 2, 3), (False, True, True), columns)], tokens=8)
    out = Outputs(logp=torch.tensor([0.0, -1.0, -1.0]), entropy=torch.tensor([9.0, 1.0, 3.0]))
    stats = Grpo.model_validate({"kl": {"estimator": "k3", "gradient": "estimator"}}).loss(batch, out).stats
    assert stats["clipped"].value == 0.5
    assert stats["entropy"].value == 2.0
    assert stats["ratio_gap"].value == 0.5
    assert stats["kl_loss"].value == pytest.approx(math.exp(-1) / 2)
