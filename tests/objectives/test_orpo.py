"""ORPO against numbers by hand."""

import math

import pytest
import torch

from xwin.objectives.orpo import SUREST, Orpo, log_odds, orpo

from .judged import pair, said, together


def test_log_odds_by_hand() -> None:
    """p = 0.5 -> 0; 0.8 -> log 4; 0.2 -> -log 4; 0.001 -> log(0.001 / 0.999)."""
    p = torch.tensor([0.5, 0.8, 0.2, 0.001], dtype=torch.float64)
    expected = [0.0, math.log(4), -math.log(4), math.log(0.001 / 0.999)]
    assert log_odds(p.log()).tolist() == pytest.approx(expected, abs=1e-12)


def test_the_loss_by_hand() -> None:
    """p = 0.8 against 0.5: odds ratio 4, sigmoid(log 4) = 0.8: -log 0.8 - 0.25 * log 0.8 = 0.278929."""
    loss = orpo(torch.tensor([0.8]).log(), torch.tensor([0.5]).log(), weight=0.25)
    assert loss.item() == pytest.approx(-1.25 * math.log(0.8))


def test_the_gradient_is_that_of_finite_differences() -> None:
    chosen, rejected = torch.tensor([-0.1, -0.7, -3.0], dtype=torch.float64), torch.tensor([-2.0, -0.6, -0.01], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda c, r: orpo(c, r, weight=0.3), (chosen.requires_grad_(), rejected.requires_grad_()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sure_and_hopeless_answers_are_finite_with_finite_gradients(dtype: torch.dtype) -> None:
    edge = torch.tensor([0.0, -1e-9, SUREST, -1e-4, -50.0, -500.0], dtype=dtype)
    chosen, rejected = (x.flatten().clone().requires_grad_() for x in torch.meshgrid(edge, edge, indexing="ij"))
    loss = orpo(chosen, rejected, weight=1.0)
    loss.sum().backward()
    assert loss.isfinite().all()
    for leaf in (chosen, rejected):
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()


def test_the_probability_of_an_answer_is_the_geometric_mean_over_its_tokens() -> None:
    """Chosen tokens with p = 0.9 and 0.4: sqrt(0.36) = 0.6; rejected 0.5. Odds 1.5 against 1; no reference is read."""
    batch = together(pair("x", (math.log(0.9), math.log(0.4)), (math.log(0.5),), (9.0, 9.0), (9.0,)))
    loss = Orpo(weight=0.5).loss(batch, said(batch)[0])
    assert loss.values.tolist() == pytest.approx([-math.log(0.6) - 0.5 * math.log(0.6)])  # sigmoid(log 1.5) = 0.6 as well
    assert loss.stats["nll"].value == pytest.approx(-math.log(0.6))
    assert loss.stats["score_margin"].value == pytest.approx(0.5 * math.log(1.5))
    assert loss.stats["chosen_logp"].value == pytest.approx(math.log(0.36))


def test_log_odds_near_certainty_keep_their_digits_in_fp32() -> None:
    """p = exp(-1e-5): odds 1 / (e^1e-5 - 1), whose log is 11.512920; computed as log1p(-p) it would be off in the third digit."""
    assert log_odds(torch.tensor(-1e-5)).item() == pytest.approx(-math.log(math.expm1(1e-5)), rel=1e-6)
