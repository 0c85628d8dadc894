"""On-policy distillation: by hand, and its gradient against that of the exact reverse KL."""

import pytest
import torch

from xwin.credit.distil import Distil
from xwin.data.conversation import Conversation, Message
from xwin.data.rollout import Group, Rollout


def group(*lengths: int) -> Group:
    rollouts = tuple(Rollout("q", k, 0, (1, 2), tuple(range(10, 10 + n)), (-1.0,) * n, "stop") for k, n in enumerate(lengths))
    return Group(Conversation("q", (Message("user", "?"),)), rollouts, ("",) * len(rollouts))


def test_a_token_is_taught_how_much_more_likely_the_teacher_finds_it_by_hand() -> None:
    """log teacher - log student: -0.5 + 1 = 0.5; -3 + 0.25 = -2.75; and 0 where they agree. No score is needed."""
    credited = Distil().assign([group(2, 1)], {"old_logp": [(-1.0, -0.25), (-2.0,)], "ref_logp": [(-0.5, -3.0), (-2.0,)]}, 0.0)
    assert credited.samples[0].columns["advantage"] == pytest.approx((0, 0, 0.5, -2.75))
    assert credited.samples[1].columns["advantage"] == pytest.approx((0, 0, 0.0))
    assert credited.stats == {"advantage": (pytest.approx(-2.25), 3)}


def test_a_price_is_not_paid_on_top() -> None:
    columns = {"old_logp": [(-1.0,)], "ref_logp": [(-3.0,)]}
    assert Distil().assign([group(1)], columns, 5.0, "k3") == Distil().assign([group(1)], columns, 0.0)


def test_an_engine_that_differs_is_corrected_for() -> None:
    """The learner finds the token e^0.5 times as likely as the engine did: 1.6487 x (-2 - -0.5)."""
    credit = Distil.model_validate({"correction": {"kind": "truncate", "cap": 2.0}})
    credited = credit.assign([group(1)], {"old_logp": [(-0.5,)], "ref_logp": [(-2.0,)]}, 0.0)
    assert credited.samples[0].columns["advantage"] == pytest.approx((0, 0, 1.6487213 * -1.5))
    assert credited.stats["advantage"] == pytest.approx((-1.5, 1))


def test_in_the_mean_the_gradient_is_that_of_the_reverse_kl() -> None:
    """Over all tokens of a small vocabulary: sum of pi A d log pi is minus the gradient of sum pi log(pi / teacher), exactly."""
    logits = torch.tensor([0.3, -0.4, 1.1, 0.0], dtype=torch.float64).requires_grad_()
    teacher = torch.tensor([-0.5, 0.2, 0.3, 0.8], dtype=torch.float64).log_softmax(0)
    logp = logits.log_softmax(0)
    (exact,) = torch.autograd.grad((logp.exp() * (logp - teacher)).sum(), logits, retain_graph=True)
    rollouts = tuple(Rollout("q", k, 0, (1,), (k,), (0.0,), "stop") for k in range(4))
    columns = {"old_logp": [(float(x),) for x in logp.detach()], "ref_logp": [(float(x),) for x in teacher]}
    found = Distil().assign([Group(Conversation("q", (Message("user", "?"),)), rollouts, ("",) * 4)], columns, 0.0)
    advantage = torch.tensor([s.columns["advantage"][1] for s in found.samples], dtype=torch.float64)  # type: ignore[index]
    (taught,) = torch.autograd.grad(-(logp.detach().exp() * advantage * logp).sum(), logits)
    torch.testing.assert_close(taught, exact)
