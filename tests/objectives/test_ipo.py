"""IPO against numbers by hand."""

import pytest
import torch

from xwin.objectives.ipo import Ipo, ipo

from .judged import pair, said, together


def test_the_loss_and_its_gradient_by_hand() -> None:
    """h = 2, target 1 / (2 * 0.25) = 2 -> 0; h = 3 -> 1 with slope 2; h = -1 -> 9 with slope -6."""
    chosen = torch.tensor([1.0, 2.0, -1.0], requires_grad=True)
    loss = ipo(chosen, torch.tensor([-1.0, -1.0, 0.0]), tau=0.25)
    loss.sum().backward()
    assert loss.tolist() == [0.0, 1.0, 9.0]
    assert chosen.grad is not None
    assert chosen.grad.tolist() == [0.0, 2.0, -6.0]


def test_log_ratios_are_sums_as_in_the_paper_or_means() -> None:
    """Log-ratios per token: chosen 0.5, 0.5; rejected -1. Sums: h = 2, (2 - 5)^2 = 9. Means: h = 1.5, 3.5^2 = 12.25."""
    batch = together(pair("x", (-1.0, -2.0), (-3.0,), (-1.5, -2.5), (-2.0,)))
    assert Ipo().loss(batch, said(batch)[0]).values.tolist() == pytest.approx([9.0])
    assert Ipo(log_ratio="mean").loss(batch, said(batch)[0]).values.tolist() == pytest.approx([12.25])
    stats = Ipo().loss(batch, said(batch)[0]).stats
    assert stats["score_margin"].value == pytest.approx(0.1 * 2)
    assert stats["accuracy"].value == 1.0


def test_the_loss_at_the_start_is_the_squared_target() -> None:
    assert Ipo(tau=0.1).start == pytest.approx(25.0)
    assert ipo(torch.zeros(1), torch.zeros(1), tau=0.1).item() == pytest.approx(25.0)


def test_the_margin_is_a_metric_in_reward_units() -> None:
    """Log-ratios 2 and -1, tau 0.1: 0.3."""
    batch = together(pair("p", (-1.0,), (-3.0,), (-3.0,), (-2.0,)))
    assert Ipo(tau=0.1).loss(batch, said(batch)[0]).stats["score_margin"].value == pytest.approx(0.3)
