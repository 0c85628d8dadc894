"""Whether training data holds the questions of an evaluation: word runs that both have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, chain

from xwin.data.conversation import Conversation, Preference
from xwin.data.hygiene import Hit, overlaps, text_index
from xwin.run.statistics import proportion
from xwin.suites.base import Row


def overlap_rows(questions: Mapping[str, Sequence[str]], training: Mapping[str, Iterable[Conversation | Preference]]) -> list[Row]:
    """The share of each set's questions that some row of the training data repeats: 13 words in a row, a shorter question as a whole.

    Args:
        questions: name of the set -> its questions.
        training: name of the data -> its rows. Without any there is nothing to say, and no row.

    Returns:
        A row per set; its note says in which data they were found, and the first words.
    """
    asked = {name: texts for name, texts in questions.items() if texts}
    if not asked or not training:
        return []
    index = text_index("questions", chain.from_iterable(asked.values()))
    hits = {source: overlaps(rows, index) for source, rows in training.items()}  # every row is read once, whatever is asked
    ends = accumulate(map(len, asked.values()))
    return [_row(name, range(end - len(texts), end), hits) for (name, texts), end in zip(asked.items(), ends, strict=True)]


def _row(name: str, numbers: range, hits: Mapping[str, Sequence[Hit]]) -> Row:
    """Of the set whose questions have these numbers."""
    mine = {source: [hit for hit in found if hit.text in numbers] for source, found in hits.items()}
    found = {hit.text for each in mine.values() for hit in each}
    return Row.of("training data", f"overlap/{name}", proportion(len(found), len(numbers)), note="; ".join(_said(mine)) or "none")


def _said(hits: Mapping[str, Sequence[Hit]]) -> list[str]:
    """Of each source that repeats something: how much, and an example."""
    return [
        f"{len({h.text for h in mine})} in {len({h.row for h in mine})} rows of {source}, as row {mine[0].row + 1}: {mine[0].words}"
        for source, mine in hits.items()
        if mine
    ]
