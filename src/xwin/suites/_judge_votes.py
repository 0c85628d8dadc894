"""Pairs that people or judges were asked about before, read from the public sets: who voted for which output.

PandaLM's test set (github.com/WeOpenML/PandaLM): three annotators and the verdicts of judges. LLMBar (arXiv:2310.07641): one label, and each judge's
votes in both orders. AlpacaFarm's pairs judged again by one judge under several seeds (votes {judge_seedN: 1 or 2}).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from xwin.errors import DataError
from xwin.scorers._asking import quiet
from xwin.scorers._pairwise import ChatJudge, Judgement, Judging, Pair
from xwin.suites._records import Record, records

Vote = int
"""1 or 2 = that output is better; 0 = equal."""
Repeats = Literal["once", "orders", "seeds"]
"""What a judge's votes on one pair are: a single one; the outputs as they are and swapped; or one per seed."""
SEED = re.compile(r"(.+)_seed\d+")
VERDICTS: Mapping[str, Vote] = {"0": 0, "1": 1, "2": 2, "tie": 0}


@dataclass(frozen=True, slots=True)
class Votes:
    """One judge's votes on each pair of a set."""

    judge: str
    repeats: Repeats
    votes: tuple[tuple[Vote | None, ...], ...]
    """Per pair, of the outputs as they stand in the file, whatever order they were shown in; None = what it said could not be read."""
    again: tuple[tuple[Vote | None, ...], ...] = ()
    """Per pair, what the judge said under other seeds; empty where it was not asked again."""


@dataclass(frozen=True, slots=True)
class VoteSet:
    """Pairs of one file."""

    kind: Literal["pandalm", "llmbar", "reannotation"]
    source: str
    pairs: tuple[Pair, ...]
    people: tuple[tuple[Vote, ...], ...]
    """Per pair, the annotators' votes; empty where nobody was asked."""
    judges: tuple[Votes, ...]
    parts: tuple[str, ...] = ()
    """Per pair, the name of its subset; empty where the set has none."""


@dataclass
class _Reading:
    """A set while it is read."""

    pairs: list[Pair] = field(default_factory=list)
    people: list[tuple[Vote, ...]] = field(default_factory=list)
    votes: dict[str, dict[int, tuple[Vote | None, ...]]] = field(default_factory=dict)
    """Judge -> number of the pair -> votes."""
    parts: list[str] = field(default_factory=list)

    def add(self, judge: str, votes: tuple[Vote | None, ...]) -> None:
        """The votes of a judge on the pair that comes next."""
        self.votes.setdefault(judge, {})[len(self.pairs)] = votes

    def closed(self, kind: Literal["pandalm", "llmbar", "reannotation"], path: Path, repeats: Repeats) -> VoteSet:
        judges = []
        for judge, found in self.votes.items():
            judges.append(Votes(judge, repeats, tuple(found.get(i, ()) for i in range(len(self.pairs)))))
        return VoteSet(kind, str(path), tuple(self.pairs), tuple(self.people), tuple(judges), tuple(self.parts))


def read_votes(path: Path) -> VoteSet:
    """A set of pairs and votes.

    Raises:
        DataError: the file is none of the three, or a row is not like the first; names file and row.
    """
    rows = list(records(path))
    first = rows[0].fields
    if "annotator1" in first:
        return _read(path, rows, "pandalm", "once", _pandalm)
    if "judges" in first and "label" in first:
        return _read(path, rows, "llmbar", "orders", _llmbar)
    if "votes" in first:
        return _read(path, rows, "reannotation", "seeds", _reannotation)
    what = f"is no set of pairs and votes: it has the fields {', '.join(sorted(first))}"
    raise DataError(what, str(path), "PandaLM's test set (annotator1 ...), LLMBar (label, judges) or re-annotations (votes) are")


def asked_now(judge: Judging, pairs: tuple[Pair, ...], told: Callable[[int], None] = quiet, *, seeds: int | None = None) -> Votes:
    """What a judge of ours says, as votes: as they are and swapped. A judge that knows no order says the same twice.

    Args:
        judge: asks in both orders.
        pairs: of a set.
        told: called with how many questions were answered just now.
        seeds: seeds under which a judge that talks is asked again, in an order drawn by the seed, as alpaca_eval measures a judge's variance.
    """
    first = tuple(_own(judgement) for judgement in judge.judge(pairs, told))
    if seeds is None or not isinstance(judge, ChatJudge):
        return Votes(judge.name, "orders", first)
    others = (replace(judge, asking=replace(judge.asking, seed=seed), orders="one") for seed in range(1, seeds + 1))
    again = [[_side(judgement.preference) for judgement in other.judge(pairs, told)] for other in others]
    return Votes(judge.name, "orders", first, tuple(zip(*again, strict=True)))


def questions_for(judge: Judging, pairs: Sequence[Pair], seeds: int | None) -> int:
    """How many questions `asked_now` will tell of, at most."""
    if not isinstance(judge, ChatJudge):
        return len(pairs)
    return len(pairs) * (2 + (seeds or 0))


def _read(
    path: Path,
    rows: list[Record],
    kind: Literal["pandalm", "llmbar", "reannotation"],
    repeats: Repeats,
    take: Callable[[_Reading, Record], None],
) -> VoteSet:
    reading = _Reading()
    for row in rows:
        take(reading, row)
    return reading.closed(kind, path, repeats)


def _pandalm(reading: _Reading, record: Record) -> None:
    people = tuple(_human(record, f"annotator{i}", (0, 1, 2)) for i in (1, 2, 3))
    for name, said in record.fields.items():
        if name.endswith("_verdict"):
            reading.add(name.removesuffix("_verdict"), (_vote(said),))
    reading.pairs.append(_pair(record, "response1", "response2"))
    reading.people.append(people)


def _llmbar(reading: _Reading, record: Record) -> None:
    label = _human(record, "label", (1, 2))
    judges = record.fields.get("judges")
    if not isinstance(judges, dict):
        raise DataError("has no judges", record.where)
    for judge, said in judges.items():
        if not isinstance(said, list) or len(said) != 2:  # noqa: PLR2004 - the outputs as they stand, and swapped
            raise DataError(f"the votes of {judge} must be a list of two, one for each order, not {said!r}", record.where)
        reading.add(judge, tuple(map(_vote, said)))
    reading.parts.append(record.text("subset") or "")
    reading.pairs.append(_pair(record, "output_1", "output_2"))
    reading.people.append((label,))


def _reannotation(reading: _Reading, record: Record) -> None:
    votes = record.fields.get("votes")
    if not isinstance(votes, dict):
        raise DataError("has no votes", record.where)
    by_judge: dict[str, list[Vote | None]] = {}
    for name, said in votes.items():
        found = SEED.fullmatch(name)
        by_judge.setdefault(found[1] if found else name, []).append(_vote(said))
    for judge, mine in by_judge.items():
        reading.add(judge, tuple(mine))
    reading.pairs.append(_pair(record, "output_1", "output_2"))


def _vote(said: Any) -> Vote | None:
    """A vote as files write it: 1, 1.0, "1" or "Tie"; None where it could not be read."""
    return VERDICTS.get((f"{said:g}" if isinstance(said, float) else str(said)).strip().lower())


def _human(record: Record, name: str, allowed: tuple[int, ...]) -> Vote:
    value = record.whole(name)
    if value not in allowed:
        raise DataError(f"{name} must be one of {', '.join(map(str, allowed))}, not {value!r}", record.where)
    return value


def _pair(record: Record, first: str, second: str) -> Pair:
    """Instruction and input together are what was asked."""
    asked = "\n\n".join(text for text in (record.text("instruction"), record.text("input")) if text)
    outputs = [record.text(name) for name in (first, second)]
    if outputs[0] is None or outputs[1] is None:
        raise DataError(f"needs {first} and {second}", record.where)
    return Pair(asked, outputs[0], outputs[1])


def _own(judgement: Judgement) -> tuple[Vote | None, ...]:
    if not judgement.asked:
        vote = _side(judgement.preference)
        return (vote, vote)
    displayed = {asked.switched: asked.answer.value for asked in judgement.asked}
    as_it_is, swapped = (_side(displayed.get(switched)) for switched in (False, True))
    return (as_it_is, swapped if swapped in (None, 0) else 3 - swapped)


def _side(preference: Any) -> Vote | None:
    if preference is None:
        return None
    return 0 if preference == 1.5 else 1 if preference < 1.5 else 2  # noqa: PLR2004 - the middle of [1, 2]
