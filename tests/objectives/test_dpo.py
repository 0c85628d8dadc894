"""DPO against numbers by hand."""

import math

import pytest
import torch

from xwin.objectives.dpo import Dpo, dpo

from .judged import drawn, pair, said, together


def test_the_losses_by_hand() -> None:
    """beta h = 0.5 * (1.2 - (-0.8)) = 1: log(1 + e^-1) = 0.313262 as labelled, log(1 + e) = 1.313262 flipped.

    With a tenth flipped: conservative 0.9 * 0.313262 + 0.1 * 1.313262 = 0.413262; robust (0.9 * 0.313262 - 0.1 * 1.313262) / 0.8 = 0.188262.
    """
    chosen, rejected = torch.tensor([1.2], dtype=torch.float64), torch.tensor([-0.8], dtype=torch.float64)
    assert dpo(chosen, rejected, beta=0.5, flipped=0.0, smoothing="conservative").item() == pytest.approx(0.3132616875)
    assert dpo(chosen, rejected, beta=0.5, flipped=0.0, smoothing="robust").item() == pytest.approx(0.3132616875)
    assert dpo(chosen, rejected, beta=0.5, flipped=0.1, smoothing="conservative").item() == pytest.approx(0.4132616875)
    assert dpo(chosen, rejected, beta=0.5, flipped=0.1, smoothing="robust").item() == pytest.approx(0.1882616875)


def test_the_gradient_is_beta_times_the_probability_of_the_other_order() -> None:
    """d L / d chosen = -beta sigmoid(-beta h) = -0.5 * 0.268941."""
    chosen, rejected = torch.tensor([1.2], requires_grad=True), torch.tensor([-0.8], requires_grad=True)
    dpo(chosen, rejected, beta=0.5, flipped=0.0, smoothing="conservative").sum().backward()
    assert chosen.grad is not None
    assert rejected.grad is not None
    assert chosen.grad.item() == pytest.approx(-0.5 * 0.2689414214)
    assert rejected.grad.item() == pytest.approx(0.5 * 0.2689414214)


def test_the_robust_loss_is_unbiased_under_flips() -> None:
    """Averaged over labels that are flipped with the assumed probability it is the plain loss of the true labels."""
    h, zero = torch.linspace(-3, 3, 13, dtype=torch.float64), torch.zeros(13, dtype=torch.float64)
    right, wrong = (dpo(a, b, beta=1.0, flipped=0.2, smoothing="robust") for a, b in ((h, zero), (zero, h)))
    torch.testing.assert_close(0.8 * right + 0.2 * wrong, dpo(h, zero, beta=1.0, flipped=0.0, smoothing="robust"))


def test_the_conservative_loss_is_least_at_a_finite_margin() -> None:
    """Where sigmoid(beta h) = 1 - e: h = log(9) at a tenth."""
    h = torch.tensor([math.log(9)], dtype=torch.float64, requires_grad=True)
    dpo(h, torch.zeros(1, dtype=torch.float64), beta=1.0, flipped=0.1, smoothing="conservative").sum().backward()
    assert h.grad is not None
    assert h.grad.item() == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("smoothing", ["conservative", "robust"])
def test_far_log_ratios_are_finite_with_finite_gradients(smoothing) -> None:
    chosen = torch.tensor([-500.0, -50.0, 50.0, 500.0], requires_grad=True)
    loss = dpo(chosen, -chosen.detach(), beta=1.0, flipped=0.1, smoothing=smoothing)
    loss.sum().backward()
    assert loss.isfinite().all()
    assert chosen.grad is not None
    assert chosen.grad.isfinite().all()


def test_log_ratios_are_sums_over_the_answer_and_the_prompt_is_out() -> None:
    """Chosen: (-1 - 2) - (-1.5 - 2.5) = 1; rejected: -3 - (-2) = -1: h = 2, L = log(1 + e^-0.2)."""
    batch = together(pair("x", (-1.0, -2.0), (-3.0,), (-1.5, -2.5), (-2.0,)))
    out, leaf = said(batch)
    loss, w = Dpo().loss(batch, out), Dpo().weigh(batch)
    assert loss.values.tolist() == pytest.approx([math.log1p(math.exp(-0.2))])
    assert (w.weight.tolist(), w.count.item()) == ([1.0], 1)
    loss.values.sum().backward()
    assert leaf.grad is not None
    slope = 0.1 / (1 + math.exp(0.2))
    assert leaf.grad.tolist() == pytest.approx([0, 0, 0, -slope, -slope, 0, 0, 0, slope])
    assert {n: m.value for n, m in loss.stats.items() if n != "reference_kl"} == pytest.approx(
        {"accuracy": 1.0, "score_margin": 0.2, "chosen_logp": -3.0, "rejected_logp": -3.0}
    )
    k3 = [math.expm1(d) - d for d in (0.5, 0.5, -1.0)]
    assert loss.stats["reference_kl"].value == pytest.approx(sum(k3) / 3)


def test_length_normalised_log_ratios_are_means() -> None:
    """The same answers: chosen (0.5 + 0.5) / 2, rejected -1: h = 1.5."""
    batch = together(pair("x", (-1.0, -2.0), (-3.0,), (-1.5, -2.5), (-2.0,)))
    loss = Dpo(log_ratio="mean", beta=2.0).loss(batch, said(batch)[0])
    assert loss.values.tolist() == pytest.approx([math.log1p(math.exp(-3.0))])


def test_the_log_likelihood_term_is_per_token_of_the_chosen_answer() -> None:
    batch = together(pair("x", (-1.0, -2.0), (-3.0,), (-1.5, -2.5), (-2.0,)))
    with_it, plain = (Dpo(nll=weight).loss(batch, said(batch)[0]) for weight in (0.2, 0.0))
    assert (with_it.values - plain.values).tolist() == pytest.approx([0.2 * 1.5])
    assert with_it.stats["nll"].value == pytest.approx(1.5)
    assert "nll" not in plain.stats


@pytest.mark.parametrize("settings", [{}, {"flipped": 0.2}, {"flipped": 0.2, "smoothing": "robust"}, {"log_ratio": "mean"}, {"beta": 3.0}])
def test_where_policy_and_reference_are_one_the_loss_is_ln_2(settings) -> None:
    batch = together(drawn(0))
    objective = Dpo(**settings)
    same = type(batch)(**{**vars(batch), "columns": {**batch.columns, "ref_logp": batch.columns["logp"]}})
    values = objective.loss(same, said(same)[0]).values
    assert objective.start == math.log(2)
    assert values.tolist() == pytest.approx([math.log(2)] * 6)


def test_with_a_log_likelihood_term_the_start_depends_on_the_data() -> None:
    assert Dpo(nll=0.2).start is None


def test_a_log_likelihood_that_is_not_a_number_is_not_hidden() -> None:
    batch = together([*pair("x", (math.nan, -2.0), (-3.0,), (-1.5, -2.5), (-2.0,)), *pair("y", (-1.0,), (-3.0,), (-1.5,), (-2.0,))])
    out, _ = said(batch)
    assert math.isnan(Dpo(nll=1.0).loss(batch, out).stats["nll"].value)


def test_smoothing_and_margin_reach_the_objective() -> None:
    """Log-ratios 2 and -1: margin 0.3; conservative with a tenth flipped: 0.9 log(1 + e^-0.3) + 0.1 log(1 + e^0.3)."""
    batch = together(pair("p", (-1.0,), (-3.0,), (-3.0,), (-2.0,)))
    loss = Dpo(beta=0.1, flipped=0.1).loss(batch, said(batch)[0])
    assert loss.values.item() == pytest.approx(0.9 * math.log1p(math.exp(-0.3)) + 0.1 * math.log1p(math.exp(0.3)))
    assert loss.stats["score_margin"].value == pytest.approx(0.3)
