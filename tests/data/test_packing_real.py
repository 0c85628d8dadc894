"""Packs of real lengths are full: at least 97 % of the token budget is used, nothing is lost, nothing is split."""

import gzip
import json

import pytest
from data.published import DATA

from xwin.data.batch import Sample, pack

BUDGET = 2048


def lengths(name: str) -> list[list[int]]:
    """Tokens of each unit, at four characters a token: one number for a chat, two for a pair. The template's words are 50 tokens more."""
    path = DATA.parent / "train" / name
    if not path.is_file():
        pytest.skip(f"real data are not here: {path}")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    units = []
    for row in rows:
        if "messages" in row:
            units.append([50 + sum(len(m["content"]) for m in row["messages"]) // 4])
        else:
            prompt = sum(len(m["content"]) for m in row["prompt"]) // 4
            units.append([50 + prompt + len(row[side][0]["content"]) // 4 for side in ("chosen", "rejected")])
    return [unit for unit in units if sum(unit) <= BUDGET]


@pytest.mark.parametrize("name", ["sft/alpaca.train.jsonl.gz", "sft/hh_multiturn.train.jsonl.gz", "preference/hh_helpful.train.jsonl.gz"])
def test_packs_of_real_lengths_are_full(name: str) -> None:
    units = lengths(name)
    samples = [
        Sample(f"{i}/{k}", (1,) * n, (False, *(True,) * (n - 1)), bond=str(i) if len(unit) > 1 else None)
        for i, unit in enumerate(units)
        for k, n in enumerate(unit)
    ]
    batches = pack(samples, tokens=BUDGET)
    assert sum(map(len, batches)) == sum(map(sum, units))
    assert max(map(len, batches)) <= BUDGET
    assert sum(map(len, batches)) / (BUDGET * len(batches)) >= 0.97
    if len(units[0]) > 1:
        assert sum(len(batch.pairs()) for batch in batches) == len(units)
