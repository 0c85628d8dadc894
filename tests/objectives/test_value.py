"""The critic's objective against numbers by hand."""

import pytest
import torch

from xwin.data.batch import Outputs, Sample, pack
from xwin.objectives.value import Value, explained_variance, value_loss

ROWS = [  # value, old value, return, loss and gradient with a clip of 0.2, loss and gradient without
    (0.9, 1.0, 2.0, 0.605, -1.1, 0.605, -1.1),  # moved little: plain squared error
    (1.5, 1.0, 2.0, 0.32, 0.0, 0.125, -0.5),  # moved 0.5 towards the return: counted as 1.2, no gradient
    (3.0, 1.0, 1.1, 1.805, 1.9, 1.805, 1.9),  # moved past the return: the larger error pulls it back
    (0.5, 1.0, 2.0, 1.125, -1.5, 1.125, -1.5),  # moved away from the return: the larger error pulls it back
    (0.2, 1.0, -1.0, 1.62, 0.0, 0.72, 1.2),
]


@pytest.mark.parametrize("clip", [0.2, None])
def test_losses_and_gradients_by_hand(clip: float | None) -> None:
    table = torch.tensor(ROWS, dtype=torch.float64)
    value = table[:, 0].clone().requires_grad_()
    loss = value_loss(value, table[:, 1], table[:, 2], clip=clip)
    loss.sum().backward()
    first, second = (3, 4) if clip else (5, 6)
    torch.testing.assert_close(loss.detach(), table[:, first])
    torch.testing.assert_close(value.grad, table[:, second])


def test_the_objective_reads_the_rollouts_values_and_counts_over_the_mask() -> None:
    """Trained tokens moved by 0.1 and 0.5: half are beyond the clip of 0.2; mean loss (0.605 + 0.32) / 2."""
    columns = {"value": (7.0, 1.0, 1.0), "returns": (9.0, 2.0, 2.0)}
    (batch,) = pack([Sample("a", (1, 2, 3), (False, True, True), columns)], tokens=8)
    loss = Value().loss(batch, Outputs(value=torch.tensor([0.0, 0.9, 1.5])))
    assert loss.stats["value_clipped"].value == 0.5
    assert loss.stats["value_loss"].value == pytest.approx((0.605 + 0.32) / 2)
    assert Value(clip=None).loss(batch, Outputs(value=torch.tensor([0.0, 0.9, 1.5]))).stats["value_clipped"].value == 0.0


def test_explained_variance_by_hand() -> None:
    """Returns 0, 1, 2, 3 vary by 1.25; errors 0, 0, 1, 1 vary by 0.25: 1 - 0.2."""
    returns = torch.tensor([0.0, 1.0, 2.0, 3.0, 99.0])
    mask = torch.tensor([True, True, True, True, False])
    value = torch.tensor([0.0, 1.0, 1.0, 2.0, 0.0])
    assert explained_variance(value, returns, mask).item() == pytest.approx(0.8)
    assert explained_variance(returns, returns, mask).item() == 1.0
    assert explained_variance(returns - 5, returns, mask).item() == 1.0, "a constant is not variance"
    assert explained_variance(torch.zeros(5), returns, mask).item() == 0.0
    assert explained_variance(-returns, returns, mask).item() == pytest.approx(-3.0)
    assert explained_variance(value, torch.ones(5), mask).item() == 0.0


def test_the_variance_explained_of_small_returns_is_a_share_too() -> None:
    """Returns +-0.001 about values that are half as far: 1 - 0.25 = 0.75; a return that does not vary has nothing to explain."""
    returns, everywhere = torch.tensor([0.001, -0.001, 0.001, -0.001]), torch.ones(4, dtype=torch.bool)
    assert explained_variance(returns / 2, returns, everywhere).item() == pytest.approx(0.75)
    assert explained_variance(returns, torch.full((4,), 3.0), everywhere).item() == 0.0
