"""The schedule by hand, and what the optimizer is built of."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn

from xwin.errors import UserError
from xwin.learning.optim import Optim, moments


def test_a_cosine_with_warm_up_by_hand() -> None:
    """10 steps, 3 of them (ceil of 0.25 * 10) warm-up: 1/4, 2/4, 3/4, then the cosine over 7 steps from the top."""
    optim = Optim(lr=0.02, warmup=0.25, schedule="cosine")
    expected = [0.005, 0.01, 0.015] + [0.01 + 0.01 * math.cos(math.pi * k / 7) for k in range(7)]
    assert [optim.rate(step, 10) for step in range(10)] == pytest.approx(expected)


def test_a_line_and_a_constant_by_hand() -> None:
    line, flat = Optim(lr=0.1, warmup=0.2, schedule="linear"), Optim(lr=0.1, warmup=0.2, schedule="constant")
    assert [10 * line.rate(step, 10) for step in range(10)] == pytest.approx([1 / 3, 2 / 3, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8])
    assert [10 * flat.rate(step, 10) for step in range(10)] == pytest.approx([1 / 3, 2 / 3] + [1.0] * 8)


def test_a_stable_phase_by_hand() -> None:
    """10 steps: 2 of warm-up, 5 at the top, then a line to 0 over the last 3; with all of the rest to decay, it is the line."""
    optim = Optim(lr=0.1, warmup=0.2, schedule="wsd", decay=0.3)
    assert [10 * optim.rate(step, 10) for step in range(10)] == pytest.approx([1 / 3, 2 / 3, 1, 1, 1, 1, 1, 1, 2 / 3, 1 / 3])
    line, whole = Optim(lr=0.1, warmup=0.2, schedule="linear"), Optim(lr=0.1, warmup=0.2, schedule="wsd", decay=0.8)
    assert [whole.rate(step, 10) for step in range(10)] == [line.rate(step, 10) for step in range(10)]


def test_a_learning_rate_that_leaves_nothing_of_the_model_is_refused_with_the_reason() -> None:
    for rate in (1e3, 1.0, 0.11):
        with pytest.raises(ValidationError, match="must be at most 0.1, not .*AdamW moves every weight by about lr"):
            Optim(lr=rate)


def test_a_decay_that_nothing_reads_or_that_has_no_room_is_refused() -> None:
    with pytest.raises(ValidationError, match="decay is read by schedule wsd alone, and schedule is cosine"):
        Optim(decay=0.3)
    with pytest.raises(ValidationError, match="warmup and decay are 1.1 of the steps together"):
        Optim(schedule="wsd", warmup=0.5, decay=0.6)
    assert Optim.model_validate(Optim(schedule="wsd", decay=0.4).settings()) == Optim(schedule="wsd", decay=0.4)


def test_without_warm_up_the_first_step_is_at_the_top() -> None:
    assert Optim(lr=0.03, warmup=0.0).rate(0, 5) == 0.03
    assert Optim(lr=0.03, warmup=0.5).rate(0, 1) == 0.015, "a run of one step still learns"


@given(st.integers(1, 300), st.floats(0, 0.9), st.sampled_from(["constant", "linear", "cosine", "wsd"]))
def test_every_step_learns_and_none_above_the_top(total: int, warmup: float, schedule: str) -> None:
    optim = Optim(lr=0.1, warmup=warmup, schedule=schedule)  # type: ignore[arg-type]
    rates = [optim.rate(step, total) for step in range(total)]
    assert all(0 < rate <= 0.1 for rate in rates)
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


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has what the others lack")
def test_moments_of_8_bits_are_refused_where_there_is_no_cuda() -> None:
    with pytest.raises(UserError, match="needs bitsandbytes on a CUDA device") as caught:
        Optim(moments="8bit").require()
    assert caught.value.where == "optim.moments: 8bit"
    assert "pip install 'xwin-lm[cuda]'" in caught.value.fix
    Optim().require()


def test_moments_of_8_bits_follow_those_of_fp32_in_a_quarter_of_the_memory() -> None:
    """bitsandbytes computes them on a CPU, too, slowly. Two steps of a checkpoint and on are bit for bit four steps."""
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install 'xwin-lm[cuda]'")
    start, random = torch.randn(64, 128, generator=torch.Generator().manual_seed(0)), torch.Generator().manual_seed(1)
    slopes = [start + 0.3 * torch.randn(64, 128, generator=random) for _ in range(8)]
    moved = {}
    for kept in ("float32", "8bit"):
        weight = nn.Parameter(start.clone())
        optimizer = Optim(lr=1e-2, moments=kept).build([weight])
        for slope in slopes:
            weight.grad = slope
            optimizer.step()
        moved[kept] = weight.detach() - start
        size = sum(
            x.numel() * x.element_size() for name, x in moments(optimizer, weight).items() if isinstance(x, torch.Tensor) and "map" not in name
        )
        assert size < (8 if kept == "float32" else 2.5) * start.numel() + 64
    assert (moved["8bit"] - moved["float32"]).norm() < 0.1 * moved["float32"].norm()


def test_moments_that_are_made_for_a_checkpoint_change_nothing() -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install 'xwin-lm[cuda]'")
    weights = [nn.Parameter(torch.ones(64, 128)) for _ in range(2)]
    optimizers = [Optim(lr=1e-2, moments="8bit").build([weight]) for weight in weights]
    assert set(moments(optimizers[1], weights[1])) >= {"step", "state1", "state2", "absmax1", "absmax2"}
    for weight, optimizer in zip(weights, optimizers, strict=True):
        weight.grad = torch.arange(64.0 * 128).reshape(64, 128)
        optimizer.step()
    assert torch.equal(*(weight.detach() for weight in weights))
