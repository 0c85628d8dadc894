"""Packed attention against a dense mask built token by token."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor

from xwin.data.batch import Batch, Sample, pack
from xwin.models.attention import PackedPlan, _flat

LENGTHS = [1, 2, 3, 5, 8, 13, 40, 41, 90, 33, 17]


def apart() -> list[Sample]:
    random = torch.Generator().manual_seed(0)
    rows = [tuple(torch.randint(0, 99, (n,), generator=random).tolist()) for n in LENGTHS]
    return [Sample(f"s{i}", row, (False, *(True,) * (len(row) - 1))) for i, row in enumerate(rows)]


def siblings() -> list[Sample]:
    """A system text of 9 tokens; prompts of 3, 1 and 20 tokens with 1 to 4 answers of 1 to 30 tokens."""
    system, out = tuple(range(9)), []
    for p, (length, answers) in enumerate([(3, [1, 7, 30]), (1, [2]), (20, [4, 4, 1, 12])]):
        prompt = (*system, *(100 + p,) * length)
        out += [Sample(f"q{p}/{k}", prompt + (50 + k,) * n, (False,) * len(prompt) + (True,) * n) for k, n in enumerate(answers)]
    return out


def ancestors(batch: Batch, segment: int) -> Iterable[int]:
    while segment >= 0:
        yield segment
        segment = int(batch.parent[segment])


def dense(batch: Batch, q: Tensor, k: Tensor, v: Tensor, *, scale: float, window: int | None) -> Tensor:
    """Every token alone: the tokens it may see, found by going up from its segment, and plain softmax in float64."""
    heads = q.shape[1] // k.shape[1]
    out = torch.zeros_like(q, dtype=torch.float64)
    for t in range(len(batch)):
        family = set(ancestors(batch, int(batch.segment[t])))
        sees = [u for u in range(t + 1) if int(batch.segment[u]) in family]
        if window is not None:
            sees = [u for u in sees if int(batch.position[t]) - int(batch.position[u]) < window]
        for h in range(q.shape[1]):
            keys, values = k[0, h // heads, sees].double(), v[0, h // heads, sees].double()
            out[0, h, t] = (q[0, h, t].double() @ keys.T * scale).softmax(-1) @ values
    return out.transpose(1, 2)


def projections(batch: Batch, heads: int, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(1)
    return tuple(torch.randn(1, n, len(batch), 8, generator=random) for n in (heads, groups, groups))  # type: ignore[return-value]


@pytest.mark.parametrize("window", [None, 1, 4, 12])
@pytest.mark.parametrize(("heads", "groups"), [(2, 2), (4, 2), (3, 1)])
@pytest.mark.parametrize("share", [False, True])
def test_a_token_sees_its_own_past_and_its_ancestors_and_nothing_else(share: bool, heads: int, groups: int, window: int | None) -> None:
    for samples in (apart(), siblings()):
        for batch in pack(samples, tokens=160, share=share):
            q, k, v = projections(batch, heads, groups)
            mine = PackedPlan(batch).attend(0, q, k, v, scale=0.3, window=window)
            torch.testing.assert_close(mine, dense(batch, q, k, v, scale=0.3, window=window).float(), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("window", [None, 12])
@pytest.mark.parametrize("share", [False, True])
def test_gradients_are_those_of_plain_softmax(share: bool, window: int | None) -> None:
    """Rows longer than a block of queries among short ones; see `dense`."""
    long = [Sample("long", tuple(range(300)), (False, *(True,) * 299)), Sample("longer", tuple(range(9)) * 40, (False,) * 9 + (True,) * 351)]
    for samples in (apart(), siblings(), [*apart(), *long], [*siblings(), *long]):
        for batch in pack(samples, tokens=700, share=share):
            found = []
            for attend in (PackedPlan(batch).attend, lambda _, *x, batch=batch, **settings: dense(batch, *x, **settings)):
                leaves = [x.requires_grad_() for x in projections(batch, 4, 2)]
                out = attend(0, *leaves, scale=0.3, window=window)
                above = torch.randn(out.shape, generator=torch.Generator().manual_seed(2))
                found.append(torch.autograd.grad(out, leaves, above.to(out.dtype)))
            for mine, plain in zip(*found, strict=True):
                torch.testing.assert_close(mine, plain.float(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("changed", [0, -1])
@pytest.mark.parametrize("share", [False, True])
def test_another_sequence_changes_nothing_not_even_the_last_bit(share: bool, changed: int) -> None:
    batch = pack(siblings() if share else apart(), tokens=400, share=share)[0]
    q, k, v = projections(batch, 2, 1)
    victim = batch.segment == batch.samples()[changed]
    before = PackedPlan(batch).attend(0, q, k, v, scale=0.3, window=None)
    k[0, :, victim] = 1e30
    v[0, :, victim] = torch.nan
    after = PackedPlan(batch).attend(0, q, k, v, scale=0.3, window=None)
    assert torch.equal(before[0, ~victim], after[0, ~victim])
    assert after[0, victim].isnan().all()


def test_one_plan_serves_layers_with_and_without_a_window() -> None:
    batch = pack(apart(), tokens=400)[0]
    q, k, v = projections(batch, 2, 2)
    plan = PackedPlan(batch)
    for window in (None, 4, None, 4):
        mine = plan.attend(0, q, k, v, scale=0.3, window=window)
        torch.testing.assert_close(mine, dense(batch, q, k, v, scale=0.3, window=window).float(), atol=1e-6, rtol=1e-5)


def flash(q: Tensor, k: Tensor, v: Tensor, flat: Any, *, scale: float, window: int | None) -> Tensor:
    """What the kernel of GPUs is documented to compute, segment by segment: its causal mask ends with the last key. [T, H, D]"""
    out, group = torch.zeros_like(q), q.shape[1] // k.shape[1]
    for s in range(len(flat.queries) - 1):
        asks, asked = slice(*flat.queries[s : s + 2].tolist()), flat.seen[slice(*flat.keys[s : s + 2].tolist())]
        query, (key, value) = q[asks], (x[asked].repeat_interleave(group, 1) for x in (k, v))
        behind = (torch.arange(len(query)) + len(key) - len(query))[:, None] - torch.arange(len(key))
        hidden = (behind < 0) | (behind >= (window or len(key)))
        scores = torch.einsum("qhd,khd->hqk", query, key) * scale
        out[asks] = torch.einsum("hqk,khd->qhd", scores.masked_fill(hidden, -torch.inf).softmax(-1), value)
    return out


@pytest.mark.parametrize("window", [None, 1, 12])
@pytest.mark.parametrize("share", [False, True])
def test_segments_end_to_end_are_what_a_gpu_kernel_needs_to_know(share: bool, window: int | None) -> None:
    for batch in pack(siblings(), tokens=160, share=share):
        projected = projections(batch, 4, 2)
        flat = _flat(batch)
        found = flash(*(x[0].transpose(0, 1) for x in projected), flat, scale=0.3, window=window)
        expected = PackedPlan(batch).attend(0, *projected, scale=0.3, window=window)[0]
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        assert flat.longest == (int(flat.queries.diff().max()), int(flat.keys.diff().max()))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("window", [None, 12])
@pytest.mark.parametrize("share", [False, True])
def test_the_kernel_of_gpus_says_what_plain_softmax_says_gradients_too(share: bool, window: int | None) -> None:
    for batch in pack(siblings(), tokens=160, share=share):
        ends = []
        for device, dtype in (("cpu", torch.float32), ("cuda", torch.bfloat16)):
            leaves = [x.bfloat16().to(device, dtype).requires_grad_() for x in projections(batch, 4, 2)]
            out = PackedPlan(batch.to(torch.device(device))).attend(0, *leaves, scale=0.3, window=window)
            above = torch.randn(out.shape, generator=torch.Generator().manual_seed(2)).to(device, dtype)
            ends.append([x.float().cpu() for x in (out, *torch.autograd.grad(out, leaves, above))])
        for expected, found in zip(*ends, strict=True):
            assert (found - expected).norm() <= 2e-2 * expected.norm()
