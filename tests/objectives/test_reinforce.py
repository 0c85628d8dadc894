"""REINFORCE against numbers by hand."""

import pytest
import torch

from xwin.data.batch import Outputs, Sample, pack
from xwin.objectives.reinforce import Reinforce, reinforce


def test_losses_and_gradients_by_hand() -> None:
    logp = torch.tensor([-1.0, -0.5, -2.0]).requires_grad_()
    loss = reinforce(logp, torch.tensor([2.0, -1.0, 0.0]))
    loss.sum().backward()
    assert loss.tolist() == [2.0, -0.5, 0.0]
    assert logp.grad is not None
    assert logp.grad.tolist() == [-2.0, 1.0, 0.0]


def test_the_mean_gradient_over_all_actions_is_that_of_the_expected_reward() -> None:
    """A softmax policy over four actions with rewards 1, 0, 3, -2: the score-function estimate, summed by probability, is exact."""
    logits = torch.tensor([0.2, -0.3, 0.5, 0.0], dtype=torch.float64).requires_grad_()
    rewards = torch.tensor([1.0, 0.0, 3.0, -2.0], dtype=torch.float64)
    logp = logits.log_softmax(0)
    (exact,) = torch.autograd.grad(-(logp.exp() * rewards).sum(), logits, retain_graph=True)
    (found,) = torch.autograd.grad((logp.exp().detach() * reinforce(logp, rewards)).sum(), logits)
    torch.testing.assert_close(found, exact)


def test_the_weighting_decides_how_answers_share_a_step() -> None:
    samples = [Sample(name, (1, *range(5, 5 + n)), (False,) + (True,) * n, {"advantage": (0.0,) + (1.0,) * n}) for name, n in (("a", 1), ("b", 3))]
    (batch,) = pack(samples, tokens=20)
    out = Outputs(logp=torch.full((len(batch),), -1.0), entropy=torch.ones(len(batch)))
    losses = []
    for settings in ({}, {"weighting": {"kind": "sequence_mean"}}, {"weighting": {"kind": "fixed_length", "tokens": 8}}):
        objective = Reinforce.model_validate(settings)
        weighting = objective.weigh(batch)
        losses.append(((objective.loss(batch, out).values * weighting.weight).sum() / weighting.count).item())
    assert losses == pytest.approx([4 / 4, (1 + 1) / 2, (1 / 8 + 3 / 8) / 2])


def test_its_metric_is_the_entropy_of_trained_tokens() -> None:
    (batch,) = pack([Sample("a", (1, 5, 6), (False, True, True), {"advantage": (0.0, 1.0, 1.0)})], tokens=20)
    stats = Reinforce().loss(batch, Outputs(logp=torch.full((3,), -1.0), entropy=torch.tensor([9.0, 1.0, 2.0]))).stats
    assert {name: m.value for name, m in stats.items()} == {"entropy": 1.5}
