"""The schedule by hand, and what the optimizer is built of."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from xwin.learning.optim import Optim


def test_a_cosine_with_warm_up_by_hand() -> None:
    """10 steps, 3 of them (ceil of 0.25 * 10) warm-up: 1/4, 2/4, 3/4, then the cosine over 7 steps from the top."""
    optim = Optim(lr=2.0, warmup=0.25, schedule="cosine")
    expected = [0.5, 1.0, 1.5] + [1 + math.cos(math.pi * k / 7) for k in range(7)]
    assert [optim.rate(step, 10) for step in range(10)] == pytest.approx(expected)


def test_a_line_and_a_constant_by_hand() -> None:
    line, flat = Optim(lr=1.0, warmup=0.2, schedule="linear"), Optim(lr=1.0, warmup=0.2, schedule="constant")
    assert [line.rate(step, 10) for step in range(10)] == pytest.approx([1 / 3, 2 / 3, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8])
    assert [flat.rate(step, 10) for step in range(10)] == pytest.approx([1 / 3, 2 / 3] + [1.0] * 8)


def test_without_warm_up_the_first_step_is_at_the_top() -> None:
    assert Optim(lr=3.0, warmup=0.0).rate(0, 5) == 3.0
    assert Optim(lr=3.0, warmup=0.5).rate(0, 1) == 1.5, "a run of one step still learns"


@given(st.integers(1, 300), st.floats(0, 0.99), st.sampled_from(["constant", "linear", "cosine"]))
def test_every_step_learns_and_none_above_the_top(total: int, warmup: float, schedule: str) -> None:
    optim = Optim(lr=1.0, warmup=warmup, schedule=schedule)  # type: ignore[arg-type]
    rates = [optim.rate(step, total) for step in range(total)]
    assert all(0 < rate <= 1.0 for rate in rates)
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)


def test_matrices_decay_and_vectors_do_not_and_frozen_ones_are_left_out() -> None:
    layer, frozen = nn.Linear(3, 2), nn.Linear(3, 2).requires_grad_(requires_grad=False)
    optimizer = Optim(weight_decay=0.1, beta1=0.8, beta2=0.9).build([*layer.parameters(), *frozen.parameters()])
    assert [(g["params"], g["weight_decay"], g["betas"]) for g in optimizer.param_groups] == [
        ([layer.weight], 0.1, (0.8, 0.9)),
        ([layer.bias], 0.0, (0.8, 0.9)),
    ]


def test_a_step_of_adamw_by_hand() -> None:
    """First step: the bias-corrected moments are g and g^2, so w moves by lr * sign(g), after shrinking by lr * decay."""
    weight = nn.Parameter(torch.tensor([[1.0, -2.0]]))
    optimizer = Optim(lr=0.1, weight_decay=0.5).build([weight])
    weight.grad = torch.tensor([[0.3, -7.0]])
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.tensor([[1.0 * 0.95 - 0.1, -2.0 * 0.95 + 0.1]]))
