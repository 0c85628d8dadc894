"""How far a judge can be trusted: does it agree with people, does order or length sway it, does it say the same twice.

Definitions of alpaca_eval's table of judges (github.com/tatsu-lab/alpaca_eval), of PandaLM (arXiv:2306.05087) and LLMBar (arXiv:2310.07641).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from xwin.errors import MissingExtra
from xwin.run.statistics import Interval, clustered, mean_interval
from xwin.suites._judge_votes import Vote, Votes, VoteSet
from xwin.suites._records import records

CLEARLY = 30
"""Characters by which one output must be longer to be called the longer one (alpaca_eval)."""
LONGEST = "the longer output"
"""A judge that cannot read: what any judge must beat."""
FULL: Mapping[str, int] = {"pandalm": 999, "llmbar": 885, "reannotation": 648}
"""Pairs of the whole sets."""
PUBLISHED_PANDALM: Mapping[str, Mapping[str, float]] = {
    "people": {"kappa_12": 0.8520, "kappa_13": 0.8789, "kappa_23": 0.8617},
    "gpt35": {"agreement": 71.07, "precision": 58.79, "recall": 57.36, "f1": 57.55},
    "pandalm7b": {"agreement": 66.77, "precision": 57.38, "recall": 57.50, "f1": 57.43},
}
PUBLISHED_REANNOTATION: Mapping[str, Mapping[str, float]] = {
    "gpt4_b1": {"variance": 14.93, "prefers_first": 53.90},
    "gpt4_b5": {"variance": 17.90, "prefers_first": 55.09},
}
STATISTICS = "llmbar_judge_statistics.jsonl.gz"
"""Beside LLMBar's pairs: what was published of each judge on each whole subset."""


@dataclass(frozen=True, slots=True)
class Quality:
    """A judge on a set of pairs. Intervals are 95 %, over the pairs they rest on; shares are percent; None where the set cannot say."""

    judge: str
    part: str
    """Of the set; "" for all of it."""
    n: int
    """Pairs the judge was asked about."""
    n_unread: int
    """Answers that could not be read; as in the published numbers they count as a vote for equal."""
    agreement: Interval | None
    """Of its votes, those that most people give too."""
    kappa: Interval | None
    """Cohen's, of its first vote and people's."""
    precision: float | None
    recall: float | None
    f1: float | None
    """Means over the classes 0, 1, 2, where people said "equal" too."""
    prefers_first: Interval | None
    """Of its decided votes, those for the output shown first."""
    consistent: Interval | None
    """Pairs on which both orders have the same winner."""
    prefers_longer: Interval | None
    """Of its decided first votes on pairs that differ by more than 30 characters."""
    variance: Interval | None
    """Of its votes, those that differ from what most of the same judge's other votes on the pair say."""
    published: Mapping[str, float]
    """The published values, of the whole set."""


@dataclass(frozen=True, slots=True)
class Report:
    """All judges on one set."""

    source: str
    kind: str
    n_pairs: int
    n_full: int
    """Pairs of the whole published set. Published values are of it: fewer pairs cannot reproduce them."""
    people: Mapping[str, Interval]
    """Cohen's kappa between annotators: kappa_12 ... Empty where a pair has one label, or none."""
    people_published: Mapping[str, float]
    judges: tuple[Quality, ...]


def report(votes: VoteSet, own: Sequence[Votes] = ()) -> Report:
    """Every judge of the set, the longer output, and judges of ours.

    Raises:
        MissingExtra: scikit-learn is not installed.
    """
    majority = [most(people) for people in votes.people]
    parts = ["", *dict.fromkeys(votes.parts)] if votes.parts else [""]
    judges = [*votes.judges, *own, *([_longest(votes)] if votes.people else [])]
    rows = [_quality(votes, majority, judge, part) for judge in judges for part in parts]
    known = PUBLISHED_PANDALM["people"] if votes.kind == "pandalm" else {}
    return Report(votes.source, votes.kind, len(votes.pairs), FULL[votes.kind], _kappas(votes.people), known, tuple(row for row in rows if row.n))


def most(votes: Sequence[Vote | None]) -> Vote | None:
    """What most say; None where no vote is ahead of all others, or there is none."""
    counts = Counter(votes).most_common(2)
    return counts[0][0] if len(counts) == 1 or (counts and counts[0][1] > counts[1][1]) else None


def _kappas(people: Sequence[Sequence[Vote]]) -> dict[str, Interval]:
    """Between every two annotators."""
    columns = list(zip(*people, strict=True))
    return {f"kappa_{i + 1}{j + 1}": _kappa(columns[i], columns[j]) for i, j in combinations(range(len(columns)), 2)}


def _kappa(first: Sequence[Vote], second: Sequence[Vote]) -> Interval:
    """Cohen's kappa and its jackknife interval, Student's t over pairs (Efron and Tibshirani 1993, "An introduction to the bootstrap", chapter 11):
    each pair is left out once. Pairs with equal votes count as one another, so there are at most nine kinds of them."""
    counts, n = Counter(zip(first, second, strict=True)), len(first)
    whole = _kappa_of(counts)
    if n == 1:
        return Interval(whole, math.nan, math.nan, 1)
    without = {votes: _kappa_of(counts - Counter([votes])) for votes in counts}
    spread = mean_interval([n * whole - (n - 1) * without[votes] for votes in zip(first, second, strict=True)])
    half = (spread.high - spread.low) / 2
    return Interval(whole, max(whole - half, -1.0), min(whole + half, 1.0), n)


def _kappa_of(counts: Mapping[tuple[Vote, Vote], int]) -> float:
    """Of a table of votes: (first, second) -> pairs."""
    try:
        from sklearn.metrics import cohen_kappa_score
    except ImportError:
        raise MissingExtra("scikit-learn", "eval") from None
    if len({vote for votes in counts for vote in votes}) == 1:  # all say one thing: by chance they would too, so there is nothing to measure
        return 1.0
    first, second = zip(*counts, strict=True)
    return float(cohen_kappa_score(first, second, sample_weight=list(counts.values())))


def _quality(votes: VoteSet, majority: Sequence[Vote | None], judge: Votes, part: str) -> Quality:
    chosen = [i for i, mine in enumerate(judge.votes) if mine and (not part or votes.parts[i] == part)]
    mine = [judge.votes[i] for i in chosen]
    judged = [(label, judge.votes[i]) for i in chosen if majority and (label := majority[i]) is not None]
    firsts = [(label, said[0] or 0) for label, said in judged]
    several = {0, 1, 2} <= {label for label, _ in firsts}
    precision, recall, f1 = _macro(firsts) if several else (None, None, None)
    return Quality(
        judge.judge,
        part,
        len(mine),
        sum(vote is None for said in mine for vote in said),
        agreement=_percent([(vote or 0) == label for vote in said] for label, said in judged),
        kappa=_kappa([label for label, _ in firsts], [vote for _, vote in firsts]) if firsts else None,
        precision=precision,
        recall=recall,
        f1=f1,
        prefers_first=_percent(_shown_first(judge, said) for said in mine),
        consistent=_percent([said[0] == said[1]] for said in mine if None not in said) if judge.repeats == "orders" else None,
        prefers_longer=_percent(_longer(votes, judge, i) for i in chosen),
        variance=_percent(_turns(said) for said in _under_seeds(judge, chosen)),
        published=_published(votes, judge.judge, part),
    )


def _percent(groups: Iterable[Sequence[bool]]) -> Interval | None:
    """The share of hits over the pairs that have any to count; a group is what is counted of one pair."""
    found = clustered([group for group in groups if group])
    return found.scaled(100) if found.n else None


def _macro(firsts: Sequence[tuple[Vote, Vote]]) -> tuple[float, float, float]:
    from sklearn.metrics import precision_recall_fscore_support

    told, said = [a for a, _ in firsts], [b for _, b in firsts]
    found = precision_recall_fscore_support(told, said, labels=[0, 1, 2], average="macro", zero_division=0)  # pyright: ignore[reportArgumentType]
    return 100 * float(found[0]), 100 * float(found[1]), 100 * float(found[2])


def _shown_first(judge: Votes, said: Sequence[Vote | None]) -> list[bool]:
    """Of a pair's decided votes, whether each is for the output shown first: a swapped one shows output 2 first. `longest` sees no order."""
    if judge.judge == LONGEST:
        return []
    swapped = judge.repeats == "orders"
    return [vote == (2 if swapped and k == 1 else 1) for k, vote in enumerate(said) if vote in (1, 2)]


def _longer(votes: VoteSet, judge: Votes, i: int) -> list[bool]:
    """Whether the first vote on a pair is for the longer output; nothing where none is clearly longer, or the vote is not decided."""
    ahead = len(votes.pairs[i].output_2) - len(votes.pairs[i].output_1)
    vote = judge.votes[i][0]
    return [vote == (2 if ahead > 0 else 1)] if abs(ahead) > CLEARLY and vote in (1, 2) else []


def _under_seeds(judge: Votes, chosen: Sequence[int]) -> Sequence[Sequence[Vote | None]]:
    """Per pair, the judge's votes under several seeds; none where it has one."""
    told = judge.votes if judge.repeats == "seeds" else judge.again
    return [told[i] for i in chosen] if told else []


def _turns(said: Sequence[Vote | None]) -> list[bool]:
    """Of each vote on a pair, whether it differs from what most of the others say; one whose others are undecided is left out."""
    others = [most([*said[:k], *said[k + 1 :]]) for k in range(len(said))]
    return [vote != other for vote, other in zip(said, others, strict=True) if vote is not None and other is not None]


def _longest(votes: VoteSet) -> Votes:
    """The vote for the longer output; equal lengths are equal."""
    ahead = [len(pair.output_2) - len(pair.output_1) for pair in votes.pairs]
    return Votes(LONGEST, "once", tuple(((0 if d == 0 else 2 if d > 0 else 1),) for d in ahead))


def _published(votes: VoteSet, judge: str, part: str) -> Mapping[str, float]:
    if votes.kind == "pandalm":
        return PUBLISHED_PANDALM.get(judge, {})
    if votes.kind == "reannotation":
        return PUBLISHED_REANNOTATION.get(judge, {})
    path = Path(votes.source).with_name(STATISTICS)
    if not part or not path.exists():
        return {}
    told = (r.fields for r in records(path))
    found: dict[str, Any] = next((row for row in told if row.get("judge") == judge and row.get("subset") == part), {})
    names = {"correct_average": "agreement", "positional_agreement": "consistent"}
    shown = {ours: _last_number(found.get(theirs)) for theirs, ours in names.items()} | {"n": found.get("n")}
    return {name: float(value) for name, value in shown.items() if isinstance(value, int | float)}


def _last_number(text: Any) -> float | None:
    """Example: "95 / 100 = 95.0%" is 95.0."""
    try:
        return float(str(text).rpartition("=")[2].strip().removesuffix("%"))
    except ValueError:
        return None
