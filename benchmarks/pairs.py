"""What the benchmarks of pairs share: real preferences as bonded samples, and how they are dealt to optimizer steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from benchmarks.smollm2 import STEP, folder, lines

FILES = ("preference/ultrafeedback", "preference/hh_helpful", "preference/webgpt", "preference/alpacaeval_gpt4")

LONGEST = 1024
"""Tokens of a pair, the prompt counted with each answer."""

Pair = tuple[Any, Any]


def pairs(split: str, each: int) -> list[Pair]:
    """(chosen, rejected) of rows of at most LONGEST tokens in all, as our template writes them."""
    from xwin.data.conversation import preference_from_json
    from xwin.data.template import load_template
    from xwin.stages._samples import both

    rows = lines([f"{name}.{split}" for name in FILES], each)
    told = [preference_from_json({key: row[key] for key in ("prompt", "chosen", "rejected")}, str(i)) for i, row in enumerate(rows)]
    found = ((chosen, rejected) for _, chosen, rejected in both(load_template(folder(), "vicuna"), told))
    return [(c, r) for c, r in found if len(c.tokens) + len(r.tokens) <= LONGEST]


def count(quick: bool) -> int:  # noqa: FBT001 - the one setting of every side
    """Optimizer steps."""
    return 3 if quick else 7


def cuts_of(rows: Sequence[Pair], total: int) -> list[range]:
    """Pairs of each step: equally many, as trainers count them, and so many that a step has about STEP tokens."""
    each = round(STEP * len(rows) / sum(len(c.tokens) + len(r.tokens) for c, r in rows))
    return [range(i * each, (i + 1) * each) for i in range(total)]


def batches_of(rows: Sequence[Pair], cuts: Sequence[range]) -> Iterator[tuple[list[Any], int]]:
    """Our batches of each step, prompts shared, and its pairs."""
    from xwin.data.batch import pack

    for cut in cuts:
        yield pack([replace(s, columns={"margin": 0.0}) for i in cut for s in rows[i]], tokens=STEP, share=True), len(cut)
