"""GAE by hand and against a plain double loop; rewards, KL and whitening of whole rounds."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from xwin.credit.base import prices, to_sample
from xwin.credit.gae import Gae, gae
from xwin.data.conversation import Conversation, Message
from xwin.data.rollout import Finish, Group, Rollout, Score

NUMBERS = st.floats(-5, 5)
SHARES = st.sampled_from([0.0, 0.3, 0.95, 1.0])


def t(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def test_advantages_by_hand() -> None:
    """Rewards 0, 0, 1; values 0.5, 0.6, 0.7; gamma 1, lambda 0.5: deltas 0.1, 0.1, 0.3; A = 0.1 + 0.5 * 0.25, 0.1 + 0.5 * 0.3, 0.3."""
    advantages = gae(t(0, 0, 1), t(0.5, 0.6, 0.7), gamma=1.0, lam=0.5, bootstrap=0.0)
    torch.testing.assert_close(advantages, t(0.225, 0.25, 0.3))


def test_a_discount_and_a_bootstrap_by_hand() -> None:
    """gamma 0.5, lambda 0.5, value 2 after the end: deltas 1 + 0.5 * 4 - 2 = 1 and 3 + 0.5 * 2 - 4 = 0; A = 1 + 0.25 * 0, 0."""
    torch.testing.assert_close(gae(t(1, 3), t(2, 4), gamma=0.5, lam=0.5, bootstrap=2.0), t(1, 0))


@settings(deadline=None)
@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=12), SHARES, SHARES, NUMBERS)
def test_gae_is_the_double_loop_of_its_definition(steps: list[tuple[float, float]], gamma: float, lam: float, bootstrap: float) -> None:
    """Equation 16: A_t = sum over l of (gamma lambda)^l delta_{t+l}."""
    rewards, values = [r for r, _ in steps], [v for _, v in steps] + [bootstrap]
    slow = []
    for at in range(len(steps)):
        total = 0.0
        for k in range(at, len(steps)):
            total += (gamma * lam) ** (k - at) * (rewards[k] + gamma * values[k + 1] - values[k])
        slow.append(total)
    fast = gae(t(*rewards), t(*values[:-1]), gamma=gamma, lam=lam, bootstrap=bootstrap)
    torch.testing.assert_close(fast, t(*slow), atol=1e-9, rtol=1e-9)


@settings(deadline=None)
@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=12))
def test_lambda_1_is_the_return_minus_the_value_and_lambda_0_one_step(steps: list[tuple[float, float]]) -> None:
    rewards, values = t(*(r for r, _ in steps)), t(*(v for _, v in steps))
    to_go = rewards.flip(0).cumsum(0).flip(0)
    torch.testing.assert_close(gae(rewards, values, gamma=1.0, lam=1.0, bootstrap=0.0), to_go - values)
    following = torch.cat([values[1:], t(0.0)])
    torch.testing.assert_close(gae(rewards, values, gamma=1.0, lam=0.0, bootstrap=0.0), rewards + following - values)


def rollout(name: str, sample: int, length: int, score: float, finish: Finish = "stop") -> Rollout:
    return Rollout(name, sample, 0, (1, 2, 3), tuple(range(10, 10 + length)), (-1.0,) * length, finish, Score(score))


def group(*rollouts: Rollout) -> Group:
    return Group(Conversation(rollouts[0].prompt_id, (Message("user", "x"),)), rollouts, ("",) * len(rollouts))


def test_the_score_lands_on_the_last_token_and_each_token_pays_for_its_kl() -> None:
    """Price 0.1. Answer a: log ratios 1, -2, 3, score 5: rewards -0.1, 0.2, 4.7. Answer b: 2 and score -1: reward -1.2.

    With values 0 and lambda 1 the returns are the sums to go: 4.8, 4.9, 4.7 and -1.2. k1 may be negative: it is not cut at 0.
    """
    groups = [group(rollout("q", 0, 3, 5.0), rollout("q", 1, 1, -1.0))]
    columns = {"old_logp": [(-1.0, -3.0, -0.5), (-1.0,)], "ref_logp": [(-2.0, -1.0, -3.5), (-3.0,)], "value": [(0.0,) * 3, (0.0,)]}
    credited = Gae(lam=1.0).assign(groups, columns, kl_coef=0.1)
    first, second = credited.samples
    assert first.columns["returns"] == pytest.approx((0, 0, 0, 4.8, 4.9, 4.7))
    assert second.columns["returns"] == pytest.approx((0, 0, 0, -1.2))
    total, count = credited.stats["advantage"]
    assert (total, count) == pytest.approx((4.8 + 4.9 + 4.7 - 1.2, 4))


def test_without_a_price_the_reference_does_not_matter() -> None:
    groups = [group(rollout("q", 0, 3, 5.0))]
    columns = {"old_logp": [(-1.0, -3.0, -0.5)], "ref_logp": [(-9.0, -9.0, -9.0)], "value": [(0.5, 0.6, 0.7)]}
    (sample,) = Gae(lam=1.0).assign(groups, columns, kl_coef=0.0).samples
    assert sample.columns["returns"] == pytest.approx((0, 0, 0, 5, 5, 5))
    assert sample.columns["value"] == (0, 0, 0, 0.5, 0.6, 0.7)
    assert sample.columns["old_logp"] == (0, 0, 0, -1.0, -3.0, -0.5)


def test_returns_are_advantages_before_whitening_plus_values() -> None:
    """Rewards 0, 0, 1 and values 0.5, 0.6, 0.7 with lambda 0.5: advantages 0.225, 0.25, 0.3 by hand."""
    columns = {"old_logp": [(-1.0,) * 3], "ref_logp": [(-1.0,) * 3], "value": [(0.5, 0.6, 0.7)]}
    (sample,) = Gae(lam=0.5).assign([group(rollout("q", 0, 3, 1.0))], columns, kl_coef=0.1).samples
    assert sample.columns["returns"] == pytest.approx((0, 0, 0, 0.725, 0.85, 1.0))
    assert sample.columns["advantage"] == pytest.approx((0, 0, 0, *((a - 0.775 / 3) / 0.0311805 for a in (0.225, 0.25, 0.3))), rel=1e-4)


def test_advantages_are_whitened_over_all_tokens_of_the_round_and_the_prompt_is_out() -> None:
    random = torch.Generator().manual_seed(0)
    groups = [group(rollout(f"q{p}", 0, 3 + p, float(p)), rollout(f"q{p}", 1, 9 - p, -1.0, "length")) for p in range(4)]
    rows = [r for g in groups for r in g.rollouts]
    columns = {n: [tuple(torch.randn(len(r.completion), generator=random).tolist()) for r in rows] for n in ("old_logp", "ref_logp", "value")}
    samples = Gae().assign(groups, columns, kl_coef=0.05).samples
    assert [s.id for s in samples] == [f"{r.prompt_id}/{r.sample}" for r in rows]
    trained = t(*(a for s in samples for a, m in zip(s.columns["advantage"], s.mask, strict=True) if m))  # type: ignore[arg-type]
    assert len(trained) == sum(len(r.completion) for r in rows)
    assert trained.mean().item() == pytest.approx(0.0, abs=1e-9)
    assert trained.var(unbiased=False).item() == pytest.approx(1.0, abs=1e-6)
    for sample, r in zip(samples, rows, strict=True):
        assert sample.tokens == r.prompt + r.completion
        assert sample.mask == (False,) * 3 + (True,) * len(r.completion)
        assert set(sample.columns) == Gae.gives
        assert all(not any(column[:3]) for column in sample.columns.values())  # type: ignore[index]


def test_a_rollouts_columns_are_zero_over_its_prompt() -> None:
    sample = to_sample(rollout("q", 2, 2, 0.0), {"x": (0.5, -0.5)})
    assert (sample.id, sample.tokens, sample.mask) == ("q/2", (1, 2, 3, 10, 11), (False, False, False, True, True))
    assert sample.columns == {"x": (0.0, 0.0, 0.0, 0.5, -0.5)}


def test_without_a_reference_nothing_is_paid() -> None:
    columns = {"old_logp": [(-1.0, -3.0)], "value": [(0.0, 0.0)]}
    (sample,) = Gae(lam=1.0).assign([group(rollout("q", 0, 2, 5.0))], columns, kl_coef=0.3).samples
    assert sample.columns["returns"] == pytest.approx((0, 0, 0, 5, 5))


def test_an_engine_that_differs_is_corrected_in_the_advantage_and_not_in_the_return() -> None:
    """The engine wrote -1 for each token; the learner says -1 and -4: weights 1 and e^-3, the second below 0.5 and masked."""
    columns = {"old_logp": [(-1.0, -4.0)], "value": [(1.0, 0.0)]}
    plain, masked = (Gae.model_validate(s).assign([group(rollout("q", 0, 2, 5.0))], columns, 0.0) for s in ({}, {"correction": {"kind": "mask"}}))
    assert masked.samples[0].columns["returns"] == plain.samples[0].columns["returns"]
    first, second = plain.samples[0].columns["advantage"][3:], masked.samples[0].columns["advantage"][3:]  # type: ignore[index]
    assert second == (first[0], 0.0)
    assert first[1] != 0.0
    assert masked.stats["importance_weight"] == (1.0, 2)


def test_the_price_of_kl_by_each_estimator_by_hand() -> None:
    """log pi_old - log ref = 1, -2: k1 itself; k2 0.5, 2; k3 e^-1 - 1 + 1 = 0.367879, e^2 - 1 - 2 = 4.389056. Price 0.1, score 5, values 0."""
    columns = {"old_logp": [(-1.0, -3.0)], "ref_logp": [(-2.0, -1.0)], "value": [(0.0, 0.0)]}
    expected = {"k1": (-0.1, 0.2), "k2": (-0.05, -0.2), "k3": (-0.0367879, -0.4389056)}
    for estimator, (first, second) in expected.items():
        (sample,) = Gae(lam=1.0).assign([group(rollout("q", 0, 2, 5.0))], columns, 0.1, estimator).samples  # type: ignore[arg-type]
        assert sample.columns["returns"] == pytest.approx((0, 0, 0, 5 + first + second, 5 + second), rel=1e-6)


def test_k3_of_a_token_that_the_reference_finds_far_more_likely_is_bounded() -> None:
    """k3 grows like e^gap; from 20 nats on the gap counts as 20: e^20 - 1 - 20."""
    columns = {"old_logp": [(-60.0,)], "ref_logp": [(-1.0,)]}
    (price,) = prices([group(rollout("q", 0, 1, 0.0))], columns, 1.0, "k3")
    assert price.item() == pytest.approx(math.expm1(20) - 20)
    (price,) = prices([group(rollout("q", 0, 1, 0.0))], columns, 1.0)
    assert price.item() == -59.0
