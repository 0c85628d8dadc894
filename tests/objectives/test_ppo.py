"""PPO against numbers by hand."""

import math

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from xwin.data.batch import Outputs, Sample, pack
from xwin.objectives._clip import bounds, is_clipped
from xwin.objectives.ppo import Ppo, ppo

ROWS = [  # ratio, advantage, loss and its gradient in logp without and with a dual clip of 3; clip 0.2
    (1.0, 1.0, -1.0, -1.0, -1.0, -1.0),
    (1.0, -2.0, 2.0, 2.0, 2.0, 2.0),
    (1.5, 1.0, -1.2, 0.0, -1.2, 0.0),  # already more likely than 1 + clip: no more reward
    (0.5, 1.0, -0.5, -0.5, -0.5, -0.5),  # good and less likely: no clip on this side
    (1.5, -1.0, 1.5, 1.5, 1.5, 1.5),  # bad and more likely: no clip on this side
    (0.5, -1.0, 0.8, 0.0, 0.8, 0.0),  # already less likely than 1 - clip
    (5.0, -2.0, 10.0, 10.0, 6.0, 0.0),  # the second clip: at most 3 * 2
    (5.0, 2.0, -2.4, 0.0, -2.4, 0.0),
    (1.1, 1.0, -1.1, -1.1, -1.1, -1.1),
    (0.9, -1.0, 0.9, 0.9, 0.9, 0.9),
    (7.0, 0.0, 0.0, 0.0, 0.0, 0.0),
]


def rows() -> tuple[Tensor, Tensor, Tensor]:
    """(logp with gradient, old_logp, advantage)"""
    table = torch.tensor(ROWS, dtype=torch.float64)
    old = torch.linspace(-3, -1, len(ROWS), dtype=torch.float64)
    return (old + table[:, 0].log()).requires_grad_(), old, table[:, 1]


@pytest.mark.parametrize("dual", [None, 3.0])
def test_losses_and_gradients_by_hand(dual: float | None) -> None:
    logp, old, advantage = rows()
    loss = ppo(logp, old, advantage, clip=0.2, dual_clip=dual)
    loss.sum().backward()
    value, slope = (2, 3) if dual is None else (4, 5)
    assert loss.tolist() == pytest.approx([row[value] for row in ROWS])
    assert logp.grad is not None
    assert logp.grad.tolist() == pytest.approx([row[slope] for row in ROWS])


def test_on_policy_the_gradient_is_minus_the_advantage() -> None:
    old = torch.linspace(-9, -0.01, 50)
    logp, advantage = old.clone().requires_grad_(), torch.linspace(-3, 3, 50)
    ppo(logp, old, advantage, clip=0.2, dual_clip=3.0).sum().backward()
    assert torch.equal(logp.grad, -advantage)  # type: ignore[arg-type]


@pytest.mark.parametrize("dual", [None, 3.0])
def test_far_ratios_are_finite_with_finite_gradients(dual: float | None) -> None:
    gap = torch.tensor([-1000.0, -50.0, 50.0, 1000.0]).repeat(2).requires_grad_()
    loss = ppo(gap, torch.zeros(8), torch.tensor([1.0] * 4 + [-1.0] * 4), clip=0.2, dual_clip=dual)
    loss.sum().backward()
    assert loss.isfinite().all()
    assert gap.grad is not None
    assert gap.grad.isfinite().all()
    assert dual is None or loss.abs().max() <= 3


def test_metrics_are_over_the_mask() -> None:
    """Four trained tokens with ratios 1.5, 0.5, 1.5, 1 and advantages 1, 1, -1, 1: one of four is clipped; the prompt's 99 are not seen."""
    sample = Sample("a", (1, 2, 3, 4, 5), (False, True, True, True, True), {"old_logp": (9.0, -1, -1, -1, -1), "advantage": (99.0, 1, 1, -1, 1)})
    (batch,) = pack([sample], tokens=8)
    ratios = torch.tensor([math.e**99, 1.5, 0.5, 1.5, 1.0])
    out = Outputs(logp=ratios.log() - 1, entropy=torch.tensor([99.0, 1, 2, 3, 2]))
    stats = Ppo().loss(batch, out).stats
    assert stats["clipped"].value == 0.25
    assert stats["entropy"].value == 2.0
    assert stats["ratio_gap"].value == pytest.approx(math.log(2))
    k3 = [r - 1 - math.log(r) for r in (1.5, 0.5, 1.5, 1.0)]
    assert stats["approximate_kl"].value == pytest.approx(sum(k3) / 4, rel=1e-5)


def test_two_slacks_by_hand() -> None:
    """Slack 0.1 below and 0.4 above: a good token counts up to 1.4, a bad one is cut below 0.9."""
    ratio = torch.tensor([1.35, 1.5, 0.85, 0.95], dtype=torch.float64)
    advantage = torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=torch.float64)
    logp = ratio.log().requires_grad_()
    loss = ppo(logp, torch.zeros(4, dtype=torch.float64), advantage, clip=(0.1, 0.4), dual_clip=None)
    loss.sum().backward()
    assert loss.tolist() == pytest.approx([-1.35, -1.4, 0.9, 0.95])
    assert logp.grad is not None
    assert logp.grad.tolist() == pytest.approx([-1.35, 0.0, 0.0, 0.95])


def test_one_slack_is_both() -> None:
    assert bounds(0.2) == bounds((0.2, 0.2)) == (0.8, 1.2)
    assert bounds((0.2, 0.28)) == (0.8, 1.28)
    logp, old, advantage = rows()
    both = ppo(logp, old, advantage, clip=(0.2, 0.2), dual_clip=3.0)
    assert torch.equal(ppo(logp, old, advantage, clip=0.2, dual_clip=3.0), both)


def test_the_settings_say_one_slack_or_two() -> None:
    assert Ppo().settings() == {"clip": 0.2, "dual_clip": 3.0}
    assert Ppo.model_validate({"clip": [0.2, 0.28]}).clip == (0.2, 0.28)
    for wrong in (0, [0.2], [0.2, 0], [0.1, 0.2, 0.3]):
        with pytest.raises(ValidationError):
            Ppo.model_validate({"clip": wrong})


def test_clipped_counts_what_has_lost_its_gradient() -> None:
    """Slacks 0.1 and 0.4: of ratios 1.35, 1.5 (good) and 0.85, 0.95 (bad), the second and the third."""
    logp = torch.tensor([0.0, 1.35, 1.5, 0.85, 0.95]).log()
    sample = Sample("a", (1, 2, 3, 4, 5), (False, True, True, True, True), {"old_logp": (0.0,) * 5, "advantage": (0.0, 1, 1, -1, -1)})
    (batch,) = pack([sample], tokens=8)
    stats = Ppo(clip=(0.1, 0.4)).loss(batch, Outputs(logp=logp.masked_fill(~batch.mask, 0.0), entropy=torch.ones(5))).stats
    assert stats["clipped"].value == 0.5


def test_clipped_counts_bad_tokens_beyond_the_second_clip() -> None:
    """Ratios 4, 2 and 4 of two bad tokens and a good one: beyond the second clip of 3 lies the first, beyond the first clip the last."""
    sample = Sample("a", (1, 2, 3, 4), (False, True, True, True), {"old_logp": (0.0,) * 4, "advantage": (0.0, -1, -1, 1)})
    (batch,) = pack([sample], tokens=8)
    logp = torch.tensor([1.0, 4.0, 2.0, 4.0]).log().requires_grad_()
    for dual_clip, share in ((3.0, 2 / 3), (None, 1 / 3)):
        loss = Ppo(dual_clip=dual_clip).loss(batch, Outputs(logp=logp, entropy=torch.ones(4)))
        (grad,) = torch.autograd.grad(loss.values[1:].sum(), logp)
        assert loss.stats["clipped"].value == pytest.approx(share)
        assert int((grad[1:] == 0).sum()) == round(share * 3)


def test_a_good_token_below_and_a_bad_one_above_are_not_clipped() -> None:
    """Ratios 0.5 and 1.5 with slack 0.2: a good one below and a bad one above keep their gradient, however small the advantage."""
    ratio = torch.tensor([0.5, 0.5, 1.5, 1.5])
    assert is_clipped(ratio, torch.tensor([0.5, -0.5, 0.5, -0.5]), 0.2).tolist() == [False, True, True, False]


def test_the_share_that_is_clipped_is_a_metric() -> None:
    """Good tokens whose log-ratios are 0.5 and 0: the first is above 1.2."""
    columns = {"old_logp": (0.0, -1.5, -1.0), "advantage": (0.0, 1.0, 1.0)}
    (batch,) = pack([Sample("a", (1, 2, 3), (False, True, True), columns)], tokens=8)
    assert Ppo().loss(batch, Outputs(logp=torch.tensor([0.0, -1.0, -1.0]), entropy=torch.ones(3))).stats["clipped"].value == 0.5
