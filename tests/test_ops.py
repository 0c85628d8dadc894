"""Small math against hand-made numbers and slow spellings."""

import math

import pytest
import torch
from torch import Tensor

from xwin.ops import _logits, kl_k1, kl_k2, kl_k3, masked_mean, masked_variance, token_logp, uniform_logp, whiten


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_masked_mean_and_variance_see_only_the_mask() -> None:
    """By hand: 1, 2, 6 have mean 3 and population variance (4 + 1 + 9) / 3."""
    x = torch.tensor([1.0, math.nan, 2.0, math.inf, 6.0])
    mask = torch.tensor([True, False, True, False, True])
    assert masked_mean(x, mask).item() == 3.0
    assert masked_variance(x, mask).item() == pytest.approx(14 / 3)
    assert masked_mean(x, torch.zeros(5, dtype=torch.bool)).item() == 0.0


def test_whitened_numbers_have_mean_0_and_variance_1_over_the_mask() -> None:
    x, mask = drawn(1000) * 7 + 3, drawn(1000, seed=1) > 0
    white = whiten(x.masked_fill(~mask, math.nan), mask)
    assert white[mask].mean().item() == pytest.approx(0.0, abs=1e-6)
    assert white[mask].var(unbiased=False).item() == pytest.approx(1.0, abs=1e-5)
    assert (white[~mask] == 0).all()


def test_whitening_by_hand() -> None:
    """1, 2, 6: mean 3, spread sqrt(14 / 3)."""
    x = torch.tensor([1.0, 99.0, 2.0, 6.0])
    white = whiten(x, torch.tensor([True, False, True, True]))
    spread = math.sqrt(14 / 3)
    torch.testing.assert_close(white, torch.tensor([-2 / spread, 0.0, -1 / spread, 3 / spread]))


def test_whitening_equal_numbers_is_finite() -> None:
    white = whiten(torch.full((5,), 2.5), torch.ones(5, dtype=torch.bool))
    assert white.abs().max().item() == 0.0


def test_kl_estimates_by_hand() -> None:
    """pi = 0.5, ref = 0.25: log ratio ln 2; k1 = ln 2, k2 = ln(2)^2 / 2, k3 = 0.5 - 1 + ln 2."""
    logp, ref = torch.tensor([0.5]).log(), torch.tensor([0.25]).log()
    two = math.log(2)
    assert kl_k1(logp, ref).item() == pytest.approx(two)
    assert kl_k2(logp, ref).item() == pytest.approx(two**2 / 2)
    assert kl_k3(logp, ref).item() == pytest.approx(0.5 - 1 + two)
    assert kl_k1(ref, logp).item() == pytest.approx(-two), "not clamped at 0"


def test_kl_gradients_by_hand() -> None:
    """d/dlogp: k1 gives 1, k2 the log ratio, k3 gives 1 - ref / pi."""
    for estimate, gradient in ((kl_k1, 1.0), (kl_k2, math.log(2)), (kl_k3, 0.5)):
        logp = torch.tensor([0.5]).log().requires_grad_()
        estimate(logp, torch.tensor([0.25]).log()).sum().backward()
        assert logp.grad is not None
        assert logp.grad.item() == pytest.approx(gradient)


def test_k1_and_k3_are_unbiased_and_the_gradient_of_k2_is_that_of_the_kl() -> None:
    """Exact expectations over a distribution of 7 outcomes, in float64."""
    logits, ref = drawn(7).double().requires_grad_(), drawn(7, seed=1).double().log_softmax(0)
    logp = logits.log_softmax(0)
    kl = (logp.exp() * (logp - ref)).sum()
    (exact,) = torch.autograd.grad(kl, logits, retain_graph=True)
    p = logp.detach().exp()
    for estimate in (kl_k1, kl_k3):
        torch.testing.assert_close((p * estimate(logp, ref)).sum(), kl)
    for estimate, right in ((kl_k1, False), (kl_k2, True), (kl_k3, False)):
        (gradient,) = torch.autograd.grad((p * estimate(logp, ref)).sum(), logits, retain_graph=True)
        assert torch.allclose(gradient, exact) is right, estimate.__name__


def test_k3_is_never_negative_and_finite_far_away() -> None:
    gap = torch.linspace(-50, 50, 1001)
    values = kl_k3(gap, torch.zeros(()))
    assert values.isfinite().all()
    assert (values >= 0).all()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
@pytest.mark.parametrize("trained", ["hidden", "hidden and weight and bias", "weight and bias", "hidden and bias", "bias"])
def test_token_logp_is_log_softmax_at_the_temperature(temperature: float, chunk: int, trained: str) -> None:
    hidden, weight, bias = drawn(7, 5), drawn(11, 5, seed=1), drawn(11, seed=2)
    leaves = [leaf for name, leaf in (("hidden", hidden), ("weight", weight), ("bias", bias)) if name in trained]
    for leaf in leaves:
        leaf.requires_grad_()
    tokens = torch.tensor([0, 10, 3, 3, 5, 7, 1])
    logp, entropy = token_logp(hidden, weight, bias, tokens, temperature=temperature, entropy=True, chunk=11 * chunk)
    whole = ((hidden @ weight.T + bias) / temperature).log_softmax(-1)
    torch.testing.assert_close(logp, whole[torch.arange(7), tokens], atol=1e-6, rtol=1e-6)
    assert entropy is not None
    torch.testing.assert_close(entropy, torch.distributions.Categorical(logits=whole.detach()).entropy(), atol=1e-5, rtol=1e-5)
    assert not entropy.requires_grad
    upstream = drawn(7, seed=3)
    mine = torch.autograd.grad(logp, leaves, upstream)
    plain = torch.autograd.grad(whole[torch.arange(7), tokens], leaves, upstream)
    for a, b in zip(mine, plain, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("trained", ["hidden", "hidden and head"])
def test_uniform_logp_is_the_mean_of_log_softmax(temperature: float, biased: bool, trained: str) -> None:
    hidden, weight, bias = drawn(7, 5), drawn(11, 5, seed=1), drawn(11, seed=2) if biased else None
    leaves = [x for x in ((hidden,) if trained == "hidden" else (hidden, weight, bias)) if x is not None]
    for leaf in leaves:
        leaf.requires_grad_()
    tokens = torch.tensor([0, 10, 3, 3, 5, 7, 1])
    logp, _ = token_logp(hidden, weight, bias, tokens, temperature=temperature, chunk=33)
    found = uniform_logp(logp, hidden, weight, bias, tokens, temperature=temperature)
    logits = hidden @ weight.T if bias is None else hidden @ weight.T + bias
    whole = (logits / temperature).log_softmax(-1).mean(-1)
    torch.testing.assert_close(found, whole, atol=1e-5, rtol=1e-6)
    upstream = drawn(7, seed=3)
    for a, b in zip(torch.autograd.grad(found, leaves, upstream), torch.autograd.grad(whole, leaves, upstream), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_token_logp_computes_in_fp32_also_under_autocast() -> None:
    hidden, weight = drawn(4, 64).bfloat16(), drawn(300, 64, seed=1).bfloat16()
    tokens = torch.tensor([0, 5, 7, 299])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logp, _ = token_logp(hidden, weight, None, tokens, temperature=1.0, chunk=600)
    exact = (hidden.double() @ weight.double().T).log_softmax(-1)[torch.arange(4), tokens]
    assert logp.dtype == torch.float32
    torch.testing.assert_close(logp.double(), exact, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("trained", [True, False], ids=["head trained", "head frozen"])
def test_token_logp_of_nothing_still_has_a_gradient_of_zero(trained: bool) -> None:
    hidden, weight = torch.zeros(0, 5, requires_grad=True), drawn(11, 5).requires_grad_(trained)
    logp, entropy = token_logp(hidden, weight, None, torch.zeros(0, dtype=torch.long), temperature=1.0, entropy=True)
    assert entropy is not None
    assert logp.shape == entropy.shape == (0,)
    logp.sum().backward()


def test_entropy_is_formed_on_request_alone() -> None:
    hidden, weight = drawn(4, 5), drawn(11, 5, seed=1)
    assert token_logp(hidden, weight, None, torch.arange(4), temperature=1.0)[1] is None


@pytest.mark.parametrize("biased", [True, False], ids=["biased", "without a bias"])
@pytest.mark.parametrize("trained", [True, False], ids=["head trained", "head frozen"])
def test_gradients_by_products_in_bf16_keep_the_log_probability_and_are_near_the_exact_ones(trained: bool, biased: bool) -> None:
    tokens = torch.arange(40) * 7
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        hidden, weight = drawn(40, 64).requires_grad_(), (drawn(300, 64, seed=1) * 0.3).requires_grad_(trained)
        bias = drawn(300, seed=3).requires_grad_(trained) if biased else None
        logp, _ = token_logp(hidden, weight, bias, tokens, temperature=0.8, dtype=dtype, chunk=300 * 16)
        leaves = [leaf for leaf in (hidden, weight, bias) if leaf is not None and leaf.requires_grad]
        found.append([logp.detach(), *torch.autograd.grad(logp, leaves, drawn(40, seed=2))])
    (exact, *slopes), (rounded, *rounded_slopes) = found
    assert torch.equal(exact, rounded)
    for a, b in zip(slopes, rounded_slopes, strict=True):
        assert a.dtype == b.dtype == torch.float32
        assert 0 < (a - b).norm() < 0.01 * a.norm()


def test_logits_are_the_same_by_the_other_way_to_form_them() -> None:
    """On a CPU double precision takes the way that a GPU takes."""
    hidden, weight, bias = drawn(4, 5), drawn(11, 5, seed=1), drawn(11, seed=2)
    exact = _logits(hidden.double(), weight.double(), bias.double())
    torch.testing.assert_close(exact, hidden.double() @ weight.double().T + bias.double())
    torch.testing.assert_close(_logits(hidden, weight, bias).double(), exact, atol=1e-5, rtol=1e-5)


def test_the_mean_of_one_element_is_that_element() -> None:
    assert masked_mean(torch.tensor([4.0, 9.0]), torch.tensor([True, False])).item() == 4.0
