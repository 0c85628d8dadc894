"""Seeds: functions of what is drawn."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xwin.seeds import derive, generator, permutation, uniforms

PARTS = st.lists(st.one_of(st.text(max_size=8), st.integers(-5, 2**70)), max_size=4)


def test_derive_is_the_documented_digest() -> None:
    """A second spelling: blake2b of length-prefixed, typed parts, the top 63 bits of its little-endian 8 bytes."""
    parts = [b"int:17", b"str:ppo", b"int:3"]
    message = b"".join(len(p).to_bytes(4, "little") + p for p in parts)
    assert derive(17, "ppo", 3) == int.from_bytes(hashlib.blake2b(message, digest_size=8).digest(), "little") >> 1


def test_derived_seeds_never_change() -> None:
    """Pinned: a change here changes every run ever made."""
    assert derive(0) == 1887154467326967967
    assert derive(17, "ppo", "rollout", 3, "q7", 0) == 166713454622606903


@given(st.integers(0, 2**63), PARTS, PARTS)
def test_different_paths_have_different_seeds(root: int, one: list, two: list) -> None:
    same = [(type(x), x) for x in one] == [(type(x), x) for x in two]
    assert (derive(root, *one) == derive(root, *two)) is same
    assert 0 <= derive(root, *one) < 2**63


def test_names_and_numbers_and_joins_are_told_apart() -> None:
    assert len({derive(1, 1), derive(1, "1"), derive(1, "ab"), derive(1, "a", "b"), derive(1), derive(2)}) == 6


@given(st.integers(0, 200), st.integers(0, 2**40))
def test_a_permutation_holds_every_index_once(n: int, root: int) -> None:
    order = permutation(n, root, "epoch", 0)
    assert sorted(order) == list(range(n))
    assert order == permutation(n, root, "epoch", 0)
    assert n < 20 or order != permutation(n, root, "epoch", 1)


def test_generators_of_one_path_draw_the_same() -> None:
    assert generator(3, "a").random(5).tolist() == generator(3, "a").random(5).tolist()
    assert generator(3, "a").random(5).tolist() != generator(3, "b").random(5).tolist()


def test_uniforms_are_splitmix64() -> None:
    """The published outputs of splitmix64 for seed 1234567 (Vigna's reference code)."""
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    drawn = uniforms(np.full(5, 1234567, dtype=np.uint64), np.arange(5, dtype=np.uint64))
    assert drawn.tolist() == [(z >> 11) / 2**53 for z in published]


def test_uniforms_depend_on_seed_and_position_alone() -> None:
    seeds = np.array([derive(0, "x", i) for i in range(64)], dtype=np.uint64)
    position = np.arange(64, dtype=np.uint64) % np.uint64(7)
    together = uniforms(seeds, position)
    alone = [uniforms(seeds[i : i + 1], position[i : i + 1]).item() for i in range(64)]
    assert together.tolist() == alone


@pytest.mark.parametrize("axis", ["seed", "position"])
def test_uniforms_are_uniform(axis: str) -> None:
    """100 bins of 20000 draws: chi-squared with 99 degrees of freedom stays below 160 (p = 1e-4)."""
    many, zeros = np.arange(20000, dtype=np.uint64), np.zeros(20000, dtype=np.uint64)
    drawn = uniforms(many, zeros) if axis == "seed" else uniforms(zeros, many)
    counts = np.histogram(drawn, bins=100, range=(0, 1))[0]
    assert counts.sum() == 20000
    assert ((counts - 200) ** 2 / 200).sum() < 160
