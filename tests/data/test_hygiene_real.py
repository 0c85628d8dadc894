"""Overlap on real data: GSM8K test questions planted in the Alpaca rows."""

import gzip
import json
import os
import string
from collections.abc import Callable
from pathlib import Path

import pytest

from xwin.data.conversation import Conversation, Message, conversation_from_json
from xwin.data.hygiene import exact_duplicates, near_duplicates, overlaps, text_index
from xwin.seeds import permutation

DATA = Path(os.environ.get("XWIN_TEST_DATA") or Path(__file__).parents[3] / "shared/data")
PLANTED = 100


def read(name: str) -> list[dict]:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"needs {path}; set XWIN_TEST_DATA")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def without_punctuation(text: str) -> str:
    return text.translate(str.maketrans("", "", string.punctuation))


PARAPHRASES: list[Callable[[str], str]] = [
    str.upper,
    str.title,
    lambda text: "  ".join(text.split()) + " ...",
    lambda text: text.replace(" ", "\n", 5).replace(".", " ;"),
    lambda text: without_punctuation(text).lower(),
    lambda text: text.replace(",", "").replace("'", "\N{RIGHT SINGLE QUOTATION MARK}").replace("?", " ?!"),
    lambda text: f'"{text.swapcase()}"'.replace(" ", "\t"),
]


@pytest.fixture(scope="module")
def questions() -> list[str]:
    return [row["question"] for row in read("gsm8k/test.jsonl.gz")]


@pytest.fixture(scope="module")
def alpaca() -> list[Conversation]:
    return [conversation_from_json(row, f"alpaca:{i}") for i, row in enumerate(read("train/sft/alpaca.train.jsonl.gz"))]


def planted(rows: list[Conversation], texts: list[str], seed: int) -> tuple[list[Conversation], set[int]]:
    """The rows with `texts` as prompts at drawn places, and those places."""
    count = len(rows) + len(texts)
    places = set(permutation(count, seed)[: len(texts)])
    extra, rest = iter(texts), iter(rows)
    mixed = [
        Conversation(f"planted{i}", (Message("user", next(extra)), Message("assistant", "It is 42."))) if i in places else next(rest)
        for i in range(count)
    ]
    return mixed, places


def test_planted_questions_are_found_also_when_case_punctuation_and_spacing_differ(alpaca: list[Conversation], questions: list[str]) -> None:
    order = permutation(len(questions), 0, "plant")
    verbatim = [questions[i] for i in order[:PLANTED]]
    changed = [PARAPHRASES[i % len(PARAPHRASES)](questions[at]) for i, at in enumerate(order[PLANTED : 2 * PLANTED])]
    rows, places = planted(alpaca, verbatim + changed, 1)
    found = {hit.row for hit in overlaps(rows, text_index("gsm8k", questions))}
    said = {row.messages[0].text: i for i, row in enumerate(rows) if i in places}
    assert all(said[text] in found for text in verbatim)
    assert sum(said[text] in found for text in changed) >= 95
    assert len(found - places) <= 5


def test_planted_rows_are_duplicates_of_the_first(alpaca: list[Conversation], questions: list[str]) -> None:
    """Half the Alpaca rows do: near duplicates take seconds."""
    rows = alpaca[:3000]
    before = {d.row for d in exact_duplicates(rows)}
    copies = [Conversation(f"copy{i}", tuple(Message(m.role, m.text.upper()) for m in rows[i * 7].messages)) for i in range(PLANTED)]
    mixed = [*rows, *copies]
    expected = set(range(len(rows), len(mixed)))
    assert {d.row for d in exact_duplicates(mixed)} == before | expected
    near = {d.row: d for d in near_duplicates(mixed, 0.8)}
    assert expected <= near.keys()
    assert all(d.of < d.row for d in near.values())
