"""Every worker has as many batches as every other, and what they say comes back in order."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xwin.data.batch import Batch, Outputs, Sample, pack
from xwin.distributed.deal import deal, empty
from xwin.objectives.base import Objective
from xwin.run.events import Mean
from xwin.spec import lookup, names


def batch(tokens: int, name: str) -> Batch:
    """Of one sample."""
    (made,) = pack([Sample(name, (1,) * tokens, (False,) + (True,) * (tokens - 1), {"a": 1.5, "b": (2.0,) * tokens})], tokens=tokens)
    return made


sizes = st.lists(st.integers(2, 50), max_size=20)


@settings(deadline=None)
@given(sizes, st.integers(1, 6))
def test_nothing_is_lost_and_every_share_has_the_same_number(tokens: list[int], size: int) -> None:
    batches = [batch(n, f"b{k}") for k, n in enumerate(tokens)]
    dealt = deal(batches, size)
    assert [len(share) for share in dealt.shares] == [-(-len(batches) // size)] * size
    said = [[b.ids[0] for b in share] for share in dealt.shares]
    assert sorted(name for mine in said for name in mine if name) == sorted(b.ids[0] for b in batches)
    assert dealt.collect(said) == [b.ids[0] for b in batches]
    assert sum(b.ids == ("",) for share in dealt.shares for b in share) == len(dealt.shares[0]) * size - len(batches)


@settings(deadline=None)
@given(sizes, st.integers(1, 6))
def test_no_share_is_more_than_one_batch_behind(tokens: list[int], size: int) -> None:
    dealt = deal([batch(n, f"b{k}") for k, n in enumerate(tokens)], size)
    loads = [sum(len(b) for b in share if b.ids[0]) for share in dealt.shares]
    assert max(loads) - min(loads) <= max(tokens, default=0)


def test_batches_that_meet_are_of_like_length() -> None:
    """By hand: 50 with 40, 12 with 10; who had 50 gets 10."""
    dealt = deal([batch(n, str(n)) for n in (10, 50, 12, 40)], 2)
    assert [[len(b) for b in share] for share in dealt.shares] == [[50, 10], [40, 12]]


def test_one_worker_computes_all_of_them_longest_first() -> None:
    assert deal([batch(n, str(n)) for n in (10, 50, 12)], 1).places == ((1, 2, 0),)


def test_an_empty_batch_has_every_column_and_trains_nothing() -> None:
    made = empty(batch(7, "s"))
    assert (len(made), made.ids, made.bonds, bool(made.mask.any()), made.samples(), made.pairs()) == (1, ("",), (None,), False, [], [])
    assert {name: column.tolist() for name, column in made.columns.items()} == {"a": [0.0], "b": [0.0]}
    assert (made.source.tolist(), made.starts.tolist(), made.last.tolist()) == ([-1], [0], [0])


@pytest.mark.parametrize("name", names(Objective.package))
def test_every_objective_takes_an_empty_batch(name: str) -> None:
    """One worker may have nothing to do in a step: its part of the loss counts nothing, and has a gradient all the same, of zero."""
    objective = lookup(Objective, name)()
    columns: dict[str, Any] = dict.fromkeys(objective.needs, 0.5)
    (like,) = pack([Sample("s", (1, 2, 3), (False, True, True), columns)], tokens=3)
    idle = empty(like)
    leaf = torch.full((1,), -5.0, requires_grad=True)
    out = Outputs(**{output: leaf if output != "entropy" else leaf.detach() for output in objective.reads})
    weighting = objective.weigh(idle)
    loss = objective.loss(idle, out)
    assert float(weighting.count) == 0
    total = (loss.values.masked_fill(weighting.weight == 0, 0.0) * weighting.weight).sum()
    total.backward()
    assert total.item() == 0
    assert leaf.grad is not None
    assert leaf.grad.tolist() == [0.0]
    assert all(not isinstance(measure, Mean) or measure.count == 0 for measure in loss.stats.values())
