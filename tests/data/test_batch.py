"""Packing: its laws over random samples, and the layout by hand."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xwin.data.batch import Batch, MissingColumn, Outputs, Sample, pack, unpack
from xwin.errors import DataError

F, T = False, True
STARTS = [(1, 2, 3, 4, 5, 6, 7, 8, 9, 9), (1, 2, 3, 4, 5, 6, 7, 8), (1, 2, 3, 4, 5, 6, 7, 8, 9, 7, 7), (5, 5), (6,), ()]
"""Prompts that share much, little or nothing, so that siblings and common prefixes happen often."""


@st.composite
def sample_lists(draw: st.DrawFn) -> list[Sample]:
    """Samples with shared prompts, holes in their masks, bonds of one to three members (also of different prompts), and two columns."""
    out = []
    for i in range(draw(st.integers(1, 10))):
        prompt = draw(st.sampled_from(STARTS))
        rest = tuple(draw(st.lists(st.integers(0, 3), min_size=0 if prompt else 1, max_size=8)))
        tokens = prompt + rest
        mask = [F] * len(prompt) + [draw(st.booleans()) for _ in rest]
        mask[0] = F
        bond = draw(st.sampled_from([None, None, "b0", "b1"]))
        per_token = tuple(float(1000 * i + t) for t in range(len(tokens)))
        out.append(Sample(f"s{i}", tokens, tuple(mask), {"per_token": per_token, "per_sequence": float(i)}, bond))
    return out


def path(batch: Batch, segment: int) -> list[int]:
    """Indices of the tokens of a segment and, before them, of its ancestors."""
    parent = int(batch.parent[segment])
    before = path(batch, parent) if parent >= 0 else []
    return before + (batch.segment == segment).nonzero().squeeze(1).tolist()


def layout(batches: list[Batch]) -> list:
    return [(b.tokens.tolist(), b.position.tolist(), b.segment.tolist(), b.mask.tolist(), b.parent.tolist(), b.ids, b.bonds) for b in batches]


def needed(samples: list[Sample]) -> int:
    """The smallest budget that every sample and bond fits without sharing."""
    bonds: Counter[str] = Counter()
    for s in samples:
        bonds[s.bond or f"alone {s.id}"] += len(s.tokens)
    return max(bonds.values())


@settings(max_examples=300, deadline=None)
@given(sample_lists(), st.integers(0, 30), st.booleans())
def test_packing_loses_nothing_and_splits_nothing_and_keeps_the_budget(samples: list[Sample], spare: int, share: bool) -> None:
    budget = needed(samples) + spare
    batches = pack(samples, tokens=budget, share=share)
    assert all(0 < len(b) <= budget for b in batches)
    assert Counter(name for b in batches for name in b.ids if name) == Counter(s.id for s in samples)
    by_name = {s.id: s for s in samples}
    for batch in batches:
        for s in batch.samples():
            sample, index = by_name[batch.ids[s]], path(batch, s)
            assert batch.tokens[index].tolist() == list(sample.tokens)
            assert batch.position[index].tolist() == list(range(len(sample.tokens)))
            assert batch.mask[index].tolist() == list(sample.mask)
            assert batch.bonds[s] == sample.bond
            assert not batch.mask[index[: sample.start]].any()
            assert batch.source[index].tolist() == [-1, *index[:-1]], "each token is predicted from the one before it"
        unnamed = [s for s, name in enumerate(batch.ids) if not name]
        assert not batch.mask[torch.isin(batch.segment, torch.tensor(unnamed))].any(), "what is shared is not trained"
        assert sum(m for s in batch.samples() for m in by_name[batch.ids[s]].mask) == int(batch.mask.sum()), "each trained token is there once"


@settings(max_examples=200, deadline=None)
@given(sample_lists(), st.integers(0, 30), st.booleans())
def test_bonded_samples_stay_together_and_in_order(samples: list[Sample], spare: int, share: bool) -> None:
    for name in ("b0", "b1"):
        bonded = [s.id for s in samples if s.bond == name]
        found = [[b.ids[s] for s in range(len(b.ids)) if b.bonds[s] == name] for b in pack(samples, tokens=needed(samples) + spare, share=share)]
        assert [row for row in found if row] == ([bonded] if bonded else [])


@settings(max_examples=200, deadline=None)
@given(sample_lists(), st.integers(0, 30), st.booleans())
def test_columns_land_on_their_tokens_and_unpack_gives_them_back(samples: list[Sample], spare: int, share: bool) -> None:
    for batch in pack(samples, tokens=needed(samples) + spare, share=share):
        by_name = {s.id: s for s in samples}
        found = unpack(batch, batch.column("per_token"))
        assert set(found) == {batch.ids[s] for s in batch.samples()}
        for s in batch.samples():
            sample = by_name[batch.ids[s]]
            own = found[sample.id]
            assert own == sample.columns["per_token"][len(sample.tokens) - len(own) :]  # type: ignore[index]
            assert len(own) >= len(sample.tokens) - sample.start, "every trained token is the sample's own"
            assert batch.column("per_sequence")[s].item() == sample.columns["per_sequence"]
            if not share:
                assert own == sample.columns["per_token"]


@settings(max_examples=100, deadline=None)
@given(sample_lists(), st.integers(0, 30), st.booleans())
def test_packing_is_deterministic(samples: list[Sample], spare: int, share: bool) -> None:
    budget = needed(samples) + spare
    assert layout(pack(samples, tokens=budget, share=share)) == layout(pack(list(samples), tokens=budget, share=share))


@settings(max_examples=100, deadline=None)
@given(sample_lists(), st.integers(0, 30))
def test_sharing_never_needs_more_tokens(samples: list[Sample], spare: int) -> None:
    budget = needed(samples) + spare
    shared, apart = (sum(len(b) for b in pack(samples, tokens=budget, share=share)) for share in (True, False))
    assert shared <= apart == sum(len(s.tokens) for s in samples)


@settings(max_examples=100, deadline=None)
@given(sample_lists(), st.booleans())
def test_what_does_not_fit_is_an_error_that_names_it(samples: list[Sample], share: bool) -> None:
    longest = max(samples, key=lambda s: len(s.tokens))
    with pytest.raises(DataError, match="do not fit a batch"):
        pack(samples, tokens=len(longest.tokens) - 1, share=share)


def test_two_sequences_by_hand() -> None:
    a = Sample("a", (1, 5, 9, 42, 2), (F, F, F, T, T), {"advantage": 0.5, "old_logp": (0.0, 0.0, 0.0, -0.3, -0.1)})
    b = Sample("b", (7, 8), (F, T), {"advantage": -1.0})
    (batch,) = pack([b, a], tokens=7, temperature=0.7)
    assert batch.tokens.tolist() == [1, 5, 9, 42, 2, 7, 8], "the longest first"
    assert batch.position.tolist() == [0, 1, 2, 3, 4, 0, 1]
    assert batch.segment.tolist() == [0, 0, 0, 0, 0, 1, 1]
    assert batch.mask.tolist() == [F, F, F, T, T, F, T]
    assert batch.parent.tolist() == [-1, -1]
    assert batch.ids == ("a", "b")
    assert batch.source.tolist() == [-1, 0, 1, 2, 3, -1, 5]
    assert (batch.starts.tolist(), batch.lengths.tolist(), batch.last.tolist()) == ([0, 5], [5, 2], [4, 6])
    torch.testing.assert_close(batch.column("old_logp"), torch.tensor([0.0, 0.0, 0.0, -0.3, -0.1, 0.0, 0.0]))
    assert batch.column("advantage").tolist() == [0.5, -1.0]
    assert batch.per_token(batch.column("advantage")).tolist() == [0.5] * 5 + [-1.0] * 2
    assert batch.per_sequence(torch.tensor([9.0, 9, 9, 1, 2, 9, 4])).tolist() == [3.0, 4.0], "trained tokens only"
    assert batch.temperature == 0.7
    assert len(pack([b, a], tokens=6)) == 2


def test_a_shared_system_text_and_a_shared_prompt_by_hand() -> None:
    """System of 8 tokens, two answers to the prompt (8 tokens, 20, 21), one answer to the prompt (8 tokens, 30)."""
    system = tuple(range(8))
    a = Sample("q/0", (*system, 20, 21, 50, 51), (F,) * 10 + (T, T))
    b = Sample("q/1", (*system, 20, 21, 60), (F,) * 10 + (T,))
    c = Sample("r/0", (*system, 30, 70), (F,) * 9 + (T,))
    (batch,) = pack([a, b, c], tokens=15, share=True)
    assert batch.tokens.tolist() == [*system, 20, 21, 50, 51, 60, 30, 70]
    assert batch.position.tolist() == [*range(8), 8, 9, 10, 11, 10, 8, 9]
    assert batch.segment.tolist() == [0] * 8 + [1, 1, 2, 2, 3, 4, 4]
    assert batch.parent.tolist() == [-1, 0, 1, 1, 0]
    assert batch.ids == ("", "", "q/0", "q/1", "r/0")
    assert batch.source.tolist() == [-1, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 9, 7, 13]
    assert batch.mask.tolist() == [F] * 10 + [T, T, T, F, T]
    assert batch.samples() == [2, 3, 4]


def test_a_pair_with_different_prompts_is_not_shared_and_keeps_the_budget() -> None:
    chosen = Sample("c", (1, 2, 3, 4), (F, F, F, T), bond="p")
    rejected = Sample("r", (5, 6, 7, 8), (F, T, T, T), bond="p")
    with pytest.raises(DataError, match="8 tokens do not fit a batch of 7"):
        pack([chosen, rejected], tokens=7, share=True)
    (batch,) = pack([chosen, rejected], tokens=8, share=True)
    assert batch.ids == ("c", "r")
    assert batch.pairs() == [(0, 1)]


def test_the_first_token_of_a_sequence_cannot_be_trained() -> None:
    with pytest.raises(DataError, match="nothing predicts it"):
        pack([Sample("a", (1, 2), (T, T))], tokens=8)


def test_a_column_is_per_token_or_per_sequence_in_all_samples() -> None:
    one, other = Sample("a", (1, 2), (F, T), {"x": 1.0}), Sample("b", (1, 2), (F, T), {"x": (0.0, 1.0)})
    with pytest.raises(DataError, match="per token in some samples and per sequence in others"):
        pack([one, other], tokens=8)


def test_a_missing_column_or_output_says_what_to_do() -> None:
    (batch,) = pack([Sample("a", (1, 2), (F, T))], tokens=8)
    with pytest.raises(MissingColumn, match="no column 'old_logp'"):
        batch.column("old_logp")
    with pytest.raises(MissingColumn, match="'value' was not computed"):
        Outputs().get("value")


def test_a_batch_moves_to_a_device_whole() -> None:
    (batch,) = pack([Sample("a", (1, 2), (F, T), {"x": 1.0}, "p"), Sample("b", (1, 3), (F, T), {"x": 2.0}, "p")], tokens=8, temperature=0.5)
    moved = batch.to(torch.device("cpu"))
    assert layout([moved]) == layout([batch])
    assert moved.temperature == 0.5
    assert moved.column("x").tolist() == [1.0, 2.0]
    assert (moved.pairs(), batch.to(torch.device("meta")).tokens.device.type) == ([(0, 1)], "meta")


def test_packing_nothing_gives_no_batch() -> None:
    assert pack([], tokens=8, share=True) == []
