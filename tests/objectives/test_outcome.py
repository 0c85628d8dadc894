"""The outcome objective against numbers by hand and torch's own binary cross-entropy."""

import math

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from xwin.data.batch import Outputs, Sample, pack
from xwin.objectives.outcome import Outcome, outcome


def answers(labels: list[float]) -> list[Sample]:
    return [Sample(f"a{k}", (1, 2, 3), (False, True, True), {"label": label}) for k, label in enumerate(labels)]


def test_the_loss_by_hand() -> None:
    """A score of 2 is log-odds: right costs log(1 + e^-2) = 0.126928, wrong log(1 + e^2) = 2.126928; a score of 0 costs ln 2 either way."""
    loss = outcome(torch.tensor([2.0, 2.0, 0.0, 0.0]), torch.tensor([1.0, 0.0, 1.0, 0.0]))
    assert loss.tolist() == pytest.approx([0.126928, 2.126928, math.log(2), math.log(2)], abs=1e-6)


def test_loss_and_gradient_are_those_of_torch() -> None:
    random = torch.Generator().manual_seed(3)
    mine = (torch.randn(40, generator=random) * 5).requires_grad_()
    theirs = mine.detach().clone().requires_grad_()
    right = (torch.rand(40, generator=random) > 0.5).float()
    loss, expected = outcome(mine, right), binary_cross_entropy_with_logits(theirs, right, reduction="none")
    torch.testing.assert_close(loss, expected)
    loss.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(mine.grad, theirs.grad)


def test_far_scores_are_finite_with_a_finite_gradient() -> None:
    score = torch.tensor([-300.0, 300.0], requires_grad=True)
    loss = outcome(score, torch.tensor([1.0, 1.0]))
    loss.sum().backward()
    assert loss.tolist() == [300.0, 0.0]
    assert score.grad is not None
    assert score.grad.tolist() == [-1.0, 0.0]


def test_every_answer_counts_once_and_the_base_rate_stands_beside_the_accuracy() -> None:
    (batch,) = pack(answers([1.0, 1.0, 0.0, 1.0]), tokens=32)
    by_name = {"a0": 1.0, "a1": -0.5, "a2": -1.0, "a3": 2.0}
    score = torch.tensor([by_name[name] for name in batch.ids])
    loss, w = Outcome().loss(batch, Outputs(score=score)), Outcome().weigh(batch)
    assert (w.weight.tolist(), w.count.item()) == ([1.0] * 4, 4)
    assert loss.stats["accuracy"].value == 0.75
    assert loss.stats["labelled_right"].value == 0.75
    assert Outcome().start == pytest.approx(math.log(2))


def test_each_head_of_an_ensemble_has_the_loss_that_it_would_have_alone() -> None:
    (batch,) = pack(answers([1.0, 0.0]), tokens=32)
    score = torch.tensor([[1.0, 3.0], [0.0, -2.0]])
    loss = Outcome().loss(batch, Outputs(score=score))
    alone = [Outcome().loss(batch, Outputs(score=score[:, k])).values for k in range(2)]
    torch.testing.assert_close(loss.values, (alone[0] + alone[1]) / 2)
    assert loss.stats["disagreement"].value == pytest.approx(1.0), "both answers have heads two apart"
