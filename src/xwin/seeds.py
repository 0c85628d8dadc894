"""Every random draw has a seed that is a function of what is drawn, so nothing about randomness has to be stored.

Example: derive(17, "ppo", "rollout", 3, "q7", 0) is the seed of sample 0 of prompt q7 at step 3, on any machine, in any order.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray


def derive(root: int, *path: str | int) -> int:
    """The seed of the draw that `path` names.

    Args:
        root: the recipe's seed, or a seed derived before.
        path: what is drawn: names and indices. 1 and "1" are different.

    Returns:
        An integer in [0, 2^63).
    """
    digest = hashlib.blake2b(digest_size=8)
    for part in (root, *path):
        text = f"{type(part).__name__}:{part}".encode()
        digest.update(len(text).to_bytes(4, "little") + text)
    return int.from_bytes(digest.digest(), "little") >> 1


def generator(root: int, *path: str | int) -> np.random.Generator:
    """A NumPy generator seeded by `derive(root, *path)`."""
    return np.random.Generator(np.random.Philox(derive(root, *path)))


def order(n: int, root: int, *path: str | int) -> NDArray[np.int64]:
    """[n] a permutation of range(n) that is a function of the path alone; 8 bytes a number, for many."""
    return generator(root, *path).permutation(n)


def permutation(n: int, root: int, *path: str | int) -> list[int]:
    """`order` as plain numbers."""
    return order(n, root, *path).tolist()


def uniforms(seeds: np.ndarray, position: np.ndarray) -> np.ndarray:
    """One uniform number per (seed, position): counter-based, so no state and no order.

    splitmix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators", the finaliser of section 4) on
    seed + position * golden gamma.

    Args:
        seeds: [B] uint64.
        position: [B] uint64, index of the draw.

    Returns:
        [B] float64 in [0, 1).
    """
    with np.errstate(over="ignore"):
        z = seeds.astype(np.uint64) + (position.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(11)).astype(np.float64) * 2.0**-53
