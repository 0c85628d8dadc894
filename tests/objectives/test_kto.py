"""KTO against numbers by hand and against a second, slow implementation."""

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from xwin.data.batch import Sample, pack
from xwin.objectives.kto import Kto, kto, reference_point

from .judged import answer, drawn, said, together


def slow(rows: Sequence[Sample], zero: float, beta: float, desirable: float, undesirable: float) -> float:
    """The mean loss, spelled out: lambda - value, as in the paper."""
    losses = []
    for row in rows:
        logp, ref = row.columns["logp"], row.columns["ref_logp"]
        assert isinstance(logp, tuple)
        assert isinstance(ref, tuple)
        ratio = sum(a - b for a, b, m in zip(logp, ref, row.mask, strict=True) if m)
        if row.columns["label"]:
            losses.append(desirable - desirable / (1 + math.exp(-beta * (ratio - zero))))
        else:
            losses.append(undesirable - undesirable / (1 + math.exp(-beta * (zero - ratio))))
    return math.fsum(losses) / len(losses)


def labelled(seed: int, zero: float) -> list[Sample]:
    """12 answers, two in three good."""
    rows = [replace(s, bond=None) for s in drawn(seed)]
    return [replace(s, columns={**s.columns, "label": float(i % 3 > 0), "reference_point": zero}) for i, s in enumerate(rows)]


def test_the_losses_by_hand() -> None:
    """Good, r = 3, z0 = 1, beta = 0.5: 1 - sigmoid(1) = 0.268941. Bad, the same: 1 - sigmoid(-1) = 0.731059. Weights 2 and 3."""
    loss = kto(torch.tensor([3.0, 3.0]), torch.tensor([1.0, 1.0]), torch.tensor([True, False]), beta=0.5, weights=(2.0, 3.0))
    assert loss.tolist() == pytest.approx([2 * 0.2689414214, 3 * 0.7310585786])


def test_the_gradient_by_hand() -> None:
    """-+ beta sigmoid'(1) = -+ 0.5 * 0.196612."""
    ratio = torch.tensor([3.0, 3.0], requires_grad=True)
    kto(ratio, torch.ones(2), torch.tensor([True, False]), beta=0.5, weights=(1.0, 1.0)).sum().backward()
    assert ratio.grad is not None
    assert ratio.grad.tolist() == pytest.approx([-0.5 * 0.1966119332, 0.5 * 0.1966119332])


def test_at_the_reference_point_the_loss_is_half_the_weight() -> None:
    assert kto(torch.ones(1), torch.ones(1), torch.tensor([True]), beta=9.0, weights=(3.0, 1.0)).item() == 1.5
    assert (Kto().start, Kto(desirable=2.0, undesirable=2.0).start, Kto(desirable=2.0).start) == (0.5, 1.0, None)


def test_far_log_ratios_are_finite_with_finite_gradients() -> None:
    ratio = torch.tensor([-1000.0, -50.0, 50.0, 1000.0]).repeat(2).requires_grad_()
    loss = kto(ratio, torch.zeros(8), torch.arange(8) < 4, beta=1.0, weights=(1.0, 1.0))
    loss.sum().backward()
    assert loss.isfinite().all()
    assert ((loss >= 0) & (loss <= 1)).all()
    assert ratio.grad is not None
    assert ratio.grad.isfinite().all()


@pytest.mark.parametrize("zero", [0.0, 0.7])
@pytest.mark.parametrize(("desirable", "undesirable"), [(1.0, 1.0), (0.5, 2.0)])
def test_the_mean_loss_is_that_of_the_slow_implementation(zero: float, desirable: float, undesirable: float) -> None:
    rows = labelled(3, zero)
    objective = Kto(beta=0.3, desirable=desirable, undesirable=undesirable)
    batch = together(rows)
    loss, w = objective.loss(batch, said(batch)[0]), objective.weigh(batch)
    found = float((loss.values.detach() * w.weight).sum() / w.count)
    assert found == pytest.approx(slow(rows, zero, 0.3, desirable, undesirable), rel=1e-6)


def test_the_reference_point_is_a_mean_that_is_not_below_zero() -> None:
    assert reference_point(torch.tensor([3.0, -1.0, 4.0])) == 2.0
    assert reference_point(torch.tensor([-3.0, 1.0])) == 0.0
    assert reference_point(torch.tensor([-3.0, 5.0], requires_grad=True)) == 1.0


def test_metrics_are_of_good_and_of_bad_answers() -> None:
    """Good: log-ratio 2, above z0 = 1. Bad: 3 and 0, of which the second is on the right side: two of three."""
    rows = [
        answer("a", (-1.0,), (-3.0,), None, label=1.0, reference_point=1.0),
        answer("b", (-2.0, -2.0), (-4.0, -3.0), None, label=0.0, reference_point=1.0),
        answer("c", (-1.0,), (-1.0,), None, label=0.0, reference_point=1.0),
    ]
    batch = together(rows)
    stats = Kto().loss(batch, said(batch)[0]).stats
    found = {n: m.value for n, m in stats.items() if n != "reference_kl"}
    expected = {"accuracy": 2 / 3, "kl": 1.0, "chosen_score": 0.2, "rejected_score": 0.15, "chosen_logp": -1.0, "rejected_logp": -2.5}
    assert found == pytest.approx(expected)


def test_a_batch_of_one_kind_says_nothing_of_the_other() -> None:
    batch = together([answer("a", (-1.0,), (-3.0,), None, label=1.0, reference_point=0.0)])
    assert {n for n in Kto().loss(batch, said(batch)[0]).stats if n.startswith("rejected")} == set()


def test_a_shared_prompt_is_no_answer() -> None:
    """Segments that are only prompts weigh nothing and are not counted."""
    (batch,) = pack(labelled(0, 0.0), tokens=4096, share=True)
    w = Kto().weigh(batch)
    assert len(batch.ids) > 12
    assert w.count.item() == 12
    assert [bool(x) for x in w.weight] == [bool(name) for name in batch.ids]
