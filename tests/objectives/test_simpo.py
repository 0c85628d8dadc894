"""SimPO against numbers by hand."""

import math

import pytest
import torch

from xwin.objectives.simpo import Simpo, simpo

from .judged import pair, said, together


def test_the_loss_and_its_gradient_by_hand() -> None:
    """2 * (-1 - (-2)) - 1 = 1: log(1 + e^-1) = 0.313262, slope -2 * sigmoid(-1) = -0.537883."""
    chosen = torch.tensor([-1.0], requires_grad=True)
    loss = simpo(chosen, torch.tensor([-2.0]), beta=2.0, gamma=1.0)
    loss.sum().backward()
    assert loss.item() == pytest.approx(0.3132616875)
    assert chosen.grad is not None
    assert chosen.grad.item() == pytest.approx(-0.5378828427)


def test_far_apart_is_finite() -> None:
    chosen = torch.tensor([-500.0, 500.0], requires_grad=True)
    loss = simpo(chosen, -chosen.detach(), beta=2.0, gamma=1.0)
    loss.sum().backward()
    assert loss.tolist() == [2001.0, 0.0]
    assert chosen.grad is not None
    assert chosen.grad.tolist() == [-2.0, 0.0]


def test_the_reward_is_the_mean_log_probability_and_no_reference_is_read() -> None:
    """Chosen (-1 - 2) / 2 = -1.5, rejected -3: 2 * 1.5 - 1 = 2."""
    batch = together(pair("x", (-1.0, -2.0), (-3.0,), (9.0, 9.0), (9.0,)))
    loss = Simpo().loss(batch, said(batch)[0])
    assert loss.values.tolist() == pytest.approx([math.log1p(math.exp(-2.0))])
    assert loss.stats["score_margin"].value == pytest.approx(3.0)
    assert loss.stats["accuracy"].value == 1.0
    assert Simpo().start is None
