"""How long rows are, part by part: the histograms of a data card."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from xwin.data.conversation import Conversation, Preference
from xwin.run.cards import Lengths

UNIT = "characters"


def parts(item: Conversation | Preference) -> dict[str, int]:
    """Characters of the prompt and of each answer.  Example: {"prompt": 120, "chosen": 300, "rejected": 280}"""
    prompt = {"prompt": sum(len(m.text) for m in item.prompt)}
    if isinstance(item, Preference):
        return prompt | {"chosen": len(item.chosen.text), "rejected": len(item.rejected.text)}
    return prompt if len(item.prompt) == len(item.messages) else prompt | {"answer": len(item.messages[-1].text)}


def characters(item: Conversation | Preference) -> int:
    """Of all its messages."""
    return sum(parts(item).values())


def lengths(items: Iterable[Conversation | Preference]) -> tuple[Lengths, ...]:
    """A histogram of each part that some row has, in characters."""
    found: dict[str, list[int]] = {}
    for item in items:
        for part, length in parts(item).items():
            found.setdefault(part, []).append(length)
    return tuple(summed_up(part, UNIT, np.array(values)) for part, values in found.items())


def summed_up(part: str, unit: str, values: NDArray[np.int64]) -> Lengths:
    """A histogram whose bins grow by half an octave, and what people ask first of lengths.

    Args:
        part: what was measured.
        unit: of the values.
        values: [n] at least one.
    """
    edges = edges_around(int(values.min()), int(values.max()))
    counts, _ = np.histogram(values, bins=np.array(edges))
    median, p95 = (float(x) for x in np.quantile(values, [0.5, 0.95]))
    return Lengths(part, unit, edges, tuple(counts.tolist()), float(values.mean()), median, p95, float(values.max()))


def edges_around(shortest: int, longest: int) -> tuple[int, ...]:
    """Edges half an octave apart (4, 6, 8, 11, 16, 23, 32 ...), from a power of two (or 0) that is not above `shortest` to one above `longest`."""
    first = shortest.bit_length() - 1
    edges = [0] if shortest == 0 else [1 << first]
    half_octaves = range(2 * max(first, 0) + bool(shortest), 2 * longest.bit_length() + 2)
    edges += [edge for edge in dict.fromkeys(round(2 ** (half / 2)) for half in half_octaves) if edge > edges[0]]
    end = next(i for i, edge in enumerate(edges) if edge > longest)
    return tuple(edges[: end + 1])
