"""CISPO against numbers by hand."""

import math

import pytest
import torch

from xwin.data.batch import Outputs, Sample, pack
from xwin.objectives.cispo import Cispo, cispo


def test_losses_and_gradients_by_hand() -> None:
    """Weights 1, e^2 capped to 5, 1, e^-1: losses 1, 10, -0.2, -0.368 * 3; the gradient is -weight * advantage, never 0 for the cap."""
    logp = torch.tensor([-1.0, -2.0, -0.1, -3.0], dtype=torch.float64).requires_grad_()
    old = torch.tensor([-1.0, -4.0, -0.1, -2.0], dtype=torch.float64)
    advantage = torch.tensor([1.0, 1.0, -2.0, -1.0], dtype=torch.float64)
    loss = cispo(logp, old, advantage, ratio_cap=5.0)
    loss.sum().backward()
    assert loss.tolist() == pytest.approx([1.0, 10.0, -0.2, -3 * math.exp(-1)])
    assert logp.grad is not None
    assert logp.grad.tolist() == pytest.approx([-1.0, -5.0, 2.0, math.exp(-1)])


def test_a_cap_that_binds_changes_the_loss_and_is_counted() -> None:
    columns = {"old_logp": (0.0, -4.0, -1.0), "advantage": (0.0, 1.0, 1.0)}
    (batch,) = pack([Sample("a", (1, 2, 3), (False, True, True), columns)], tokens=8)
    out = Outputs(logp=torch.tensor([0.0, -2.0, -1.0]), entropy=torch.ones(3))
    free, bound = (Cispo(ratio_cap=cap).loss(batch, out) for cap in (10.0, 2.0))
    assert free.values.tolist() == pytest.approx([0.0, 2 * math.exp(2), 1.0])
    assert bound.values.tolist() == pytest.approx([0.0, 4.0, 1.0])
    assert (free.stats["clipped"].value, bound.stats["clipped"].value) == (0.0, 0.5)
