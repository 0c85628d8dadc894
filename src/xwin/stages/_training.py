"""What every training stage has in common: settings, and how rows become optimizer steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from annotated_types import Ge

from xwin.data.batch import Sample
from xwin.learning.optim import Optim
from xwin.models.tuning import Full, Tuning
from xwin.run.guards import Guard
from xwin.seeds import permutation
from xwin.stages.base import Stage


class Training(Stage):
    """Settings of every stage that trains."""

    optim: Optim = Optim()
    """How the parameters move."""

    tune: Tuning = Full()
    """Which parameters are trained."""

    tokens_per_batch: Annotated[int, Ge(16)] = 2048
    """Longest packed batch, tokens. Bounds memory; does not change the result."""

    checkpoint_every: Annotated[float, Ge(0)] = 120.0
    """Seconds between checkpoints; 0 writes one after every step."""

    guards: tuple[Guard, ...] = ()
    """What to watch beside what is always watched."""


def cut(rows: Sequence[Sample], *, tokens: int, epochs: int, seed: int) -> list[list[Sample]]:
    """The rows of each optimizer step, a function of (rows, seed) alone: every epoch in its own order, cut where a step would pass `tokens`.

    Bonded rows (a pair) stay in one step and in order.

    Args:
        rows: what is trained.
        tokens: of one step, prompts included; a single row or bond may be longer.
        epochs: times each row is seen.
        seed: of the order.
    """
    units: list[list[Sample]] = []
    bonds: dict[str, list[Sample]] = {}
    for row in rows:
        if row.bond is not None and row.bond in bonds:
            bonds[row.bond].append(row)
            continue
        units.append([row])
        if row.bond is not None:
            bonds[row.bond] = units[-1]
    steps: list[list[Sample]] = []
    for epoch in range(epochs):
        used = tokens + 1
        for index in permutation(len(units), seed, "order", epoch):
            size = sum(len(s.tokens) for s in units[index])
            if used + size > tokens:
                steps.append([])
                used = 0
            steps[-1] += units[index]
            used += size
    return steps
