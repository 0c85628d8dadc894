"""MT-bench's numbers: grades by turn and category, and pairs won, each with an interval and with what could not be read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from xwin.errors import DataError
from xwin.run.statistics import Paired, bootstrap_interval, paired_means
from xwin.suites._mt_bench import GRADES, Game, Graded


@dataclass(frozen=True, slots=True)
class Grades:
    """A model's row. Grades are 1 to 10; None where not one could be read."""

    model: str
    first_turn: float | None
    second_turn: float | None
    average: float
    """Over all grades that could be read, as FastChat; where some could not, a turn may weigh more than the other."""
    low: float | None
    high: float | None
    """95 % interval of the mean over questions of a question's mean grade: bootstrap over questions."""
    n: int
    """Grades."""
    n_unread: int
    categories: Mapping[str, float]
    unread: tuple[str, ...]
    """Answers of the judge that could not be read, where they belong first."""


@dataclass(frozen=True, slots=True)
class Match:
    """Two models over all questions and turns."""

    first: str
    second: str
    n: int
    """Games with both verdicts."""
    n_unread: int
    n_first: int
    """Won by the first."""
    n_second: int
    n_ties: int
    """Also where the two orders do not agree."""
    n_inconsistent: int
    """Of them, those where the orders name different winners."""
    win_rate: float
    """Of the first: wins / n, percent; ties are no wins (FastChat)."""
    win_rate_adjusted: float
    """Of the first, ties as one half, percent."""
    low: float | None
    high: float | None
    """95 % interval of the adjusted rate: bootstrap over questions."""
    unread: tuple[str, ...]


def grades_of(graded: Sequence[Graded], *, seed: int = 0) -> Grades:
    """The row of the model that these grades are of.

    Raises:
        DataError: not one grade could be read.
    """
    model = graded[0].model
    known = [(g, g.answer.value) for g in graded if g.answer.value is not None]
    if not known:
        raise DataError("no grade of this model could be read", model, "take another judge")
    by_question = list(question_means(graded).values())
    interval = bootstrap_interval(by_question, seed=seed, bounds=GRADES)
    categories = dict.fromkeys(g.question.category for g, _ in known)
    several = len(by_question) > 1
    return Grades(
        model,
        first_turn=_mean([value for g, value in known if g.turn == 1]),
        second_turn=_mean([value for g, value in known if g.turn != 1]),
        average=fmean(value for _, value in known),
        low=interval.low if several else None,
        high=interval.high if several else None,
        n=len(known),
        n_unread=len(graded) - len(known),
        categories={name: fmean(value for g, value in known if g.question.category == name) for name in categories},
        unread=tuple(f"question {g.question.id}, turn {g.turn}: {g.answer.said}" for g in graded if g.answer.value is None),
    )


def better(first: Sequence[Graded], second: Sequence[Graded]) -> Paired:
    """Is the second graded higher? Over the questions that have a grade of both."""
    mine, theirs = question_means(first), question_means(second)
    both = [number for number in mine if number in theirs]
    return paired_means([mine[n] for n in both], [theirs[n] for n in both])


def match_of(games: Sequence[Game], *, seed: int = 0) -> Match:
    """The row of two models.

    Raises:
        DataError: not one game has both verdicts.
    """
    first, second = games[0].first, games[0].second
    done = [(game, game.winner) for game in games if game.winner is not None]
    if not done:
        raise DataError("no game has two verdicts that can be read", f"{first} and {second}", "take another judge")
    winners = [winner for _, winner in done]
    credit: dict[int, list[float]] = {}
    for game, winner in done:
        credit.setdefault(game.question.id, []).append({first: 1.0, second: 0.0}.get(winner, 0.5))
    interval = bootstrap_interval([fmean(row) for row in credit.values()], seed=seed, bounds=(0.0, 1.0))
    wins, ties = winners.count(first), winners.count("tie")
    several = len(credit) > 1
    return Match(
        first,
        second,
        n=len(done),
        n_unread=len(games) - len(done),
        n_first=wins,
        n_second=winners.count(second),
        n_ties=ties,
        n_inconsistent=sum(game.as_it_is.value == game.swapped.value != "tie" for game, _ in done),
        win_rate=100 * wins / len(done),
        win_rate_adjusted=100 * (wins + ties / 2) / len(done),
        low=100 * interval.low if several else None,
        high=100 * interval.high if several else None,
        unread=tuple(
            f"question {game.question.id}, turn {game.turn}: {answer.said}"
            for game in games
            for answer in (game.as_it_is, game.swapped)
            if answer.value is None
        ),
    )


def question_means(graded: Sequence[Graded]) -> dict[int, float]:
    """Question id -> mean of its grades; one without any is left out."""
    found: dict[int, list[float]] = {}
    for g in graded:
        if g.answer.value is not None:
            found.setdefault(g.question.id, []).append(g.answer.value)
    return {number: fmean(row) for number, row in found.items()}


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


def grade_row(judge: str, g: Graded) -> Mapping[str, Any]:
    """As in FastChat's model_judgment, but for a score that could not be read: null, not -1."""
    said = {"judge": judge, "judgment": g.answer.said, "score": g.answer.value}
    return {"question_id": g.question.id, "category": g.question.category, "model": g.model, "turn": g.turn} | said


def game_row(judge: str, game: Game) -> Mapping[str, Any]:
    """As in FastChat's model_judgment of pairs, with both verdicts as they were read."""
    row = {"question_id": game.question.id, "category": game.question.category, "model_1": game.first, "model_2": game.second, "turn": game.turn}
    verdicts = {"g1_verdict": game.as_it_is.value, "g2_verdict": game.swapped.value, "winner": game.winner}
    return row | verdicts | {"judge": judge, "g1_judgment": game.as_it_is.said, "g2_judgment": game.swapped.said}
