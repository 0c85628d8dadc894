"""MT-bench: two-turn questions to every model, graded by a judge or compared with the reference's answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge

from xwin.engines.base import Chat, EngineKind
from xwin.run.artifacts import ConversationsRef, ModelRef
from xwin.run.statistics import bootstrap_interval
from xwin.scorers._asking import Answered
from xwin.scorers.judge import Judge
from xwin.suites import _mt_bench as core
from xwin.suites._mt_bench import GRADES, Answers, Game, Graded, MtJudge, Question
from xwin.suites._mt_bench_prompts import ours, read_prompts
from xwin.suites._mt_bench_scores import better, game_row, grade_row, match_of, question_means
from xwin.suites.base import Evidence, Row, Suite, Workshop


@dataclass(frozen=True)
class Exam:
    """What is asked, and the reference answers."""

    questions: Sequence[Question]
    references: Answers | None


class MtBench(Suite):
    """Grades from 1 to 10, over all, by turn and by category (mean; 95 % bootstrap interval over questions; paired t test against `before`), or the
    share of games won against the stage's `reference`, each game in both orders, ties as one half. Zheng et al. 2023, arXiv:2306.05685.

    Every row answers once: `n` and `scorer` of a row are not used. What the judge says that cannot be read is asked again, counted and left out.
    Questions and reference answers are FastChat's files; answers and judgements are left beside the table in its layouts."""

    data: ConversationsRef
    """FastChat's question.jsonl."""

    references: ConversationsRef | None = None
    """Reference answers, FastChat's reference_answer/gpt-4.jsonl; null = none, where no question is about math, reasoning or coding."""

    prompts: ConversationsRef | None = None
    """FastChat's judge_prompts.jsonl; null = our wording."""

    engine: EngineKind
    """Who judges: `{kind: remote, model: ...}`, or an engine of ours over `model`."""

    model: ModelRef | None = None
    """The judge, where the engine runs one of ours; null = the engine knows."""

    mode: Literal["single", "pairs"] = "single"
    """single: every answer is graded; pairs: every model's are compared with those of the reference, or of the first row where there is none."""

    max_tokens: Annotated[int, Ge(1)] = core.ANSWER_TOKENS
    """Longest answer of a model, tokens."""

    retries: Annotated[int, Ge(0)] = 2
    """How often the judge is asked again when its answer cannot be read."""

    reads_answers: ClassVar[bool] = False

    def least_rows(self) -> int:
        return 2 if self.mode == "pairs" else 1

    def distinct(self) -> frozenset[str]:
        return frozenset({self.mode})

    def measure(self, evidence: Evidence) -> list[Row]:
        assert evidence.workshop is not None
        assert evidence.talk is not None
        exam = self._exam(evidence.workshop)
        sets = {name: self._answered(evidence.workshop, exam, evidence.talk, name) for name in evidence.models}
        judge = self._judge(evidence.workshop)
        return _games(evidence, exam, judge, sets) if self.mode == "pairs" else _grades(evidence, exam, judge, sets)

    def questions(self, evidence: Evidence) -> Mapping[str, Sequence[str]]:
        assert evidence.workshop is not None
        asked = core.read_questions(evidence.workshop.path(self.data))
        return {"mt_bench": [turn for question in asked for turn in question.turns]}

    def _exam(self, shop: Workshop) -> Exam:
        asked = core.read_questions(shop.path(self.data))
        return Exam(asked, core.read_references(shop.path(self.references) if self.references else None, asked))

    def _answered(self, shop: Workshop, exam: Exam, talk: Callable[[str], Chat], name: str) -> Answers:
        with shop.asking(f"mt_bench, {name}", 2 * len(exam.questions)) as told:
            answers = core.write_answers(talk(name), name, exam.questions, told, seed=shop.seed("mt_bench"), tokens=self.max_tokens)
        shop.leave(f"mt_bench-{name}.json", core.answer_rows(answers))
        return answers

    def _judge(self, shop: Workshop) -> MtJudge:
        asked = Judge(engine=self.engine, model=self.model).over(shop)
        return MtJudge(asked.name, asked.chat, read_prompts(shop.path(self.prompts)) if self.prompts else ours(), self.retries)


def _grades(evidence: Evidence, exam: Exam, judge: MtJudge, sets: Mapping[str, Answers]) -> list[Row]:
    assert evidence.workshop is not None
    graded: dict[str, list[Graded]] = {}
    rows: list[Row] = []
    for name, answers in sets.items():
        with evidence.workshop.asking(f"{judge.name} grades {name}", 2 * len(exam.questions)) as told:
            graded[name] = core.grade(exam.questions, answers, exam.references, judge, told)
        evidence.workshop.leave(f"mt_bench-grades-{name}.json", [grade_row(judge.name, g) for g in graded[name]])
        before = evidence.before.get(name)
        test = better(graded[before], graded[name]) if before else None
        whole, *parts = _graded_rows(name, graded[name], _note(judge, [g.answer for g in graded[name]]))
        rows += [replace(whole, p=test.p, against=before) if test else whole, *parts]
    return rows


def _graded_rows(name: str, graded: Sequence[Graded], note: str) -> Iterator[Row]:
    """Over all, by turn, by category; what has no grade is left out. A value is the mean of grades, its interval that of the questions' means."""
    parts: dict[str, list[Graded]] = {"mt_bench": list(graded), "mt_bench_1": [], "mt_bench_2": []}
    for g in graded:
        parts[f"mt_bench_{g.turn}"].append(g)
        parts.setdefault(f"mt_bench/{g.question.category}", []).append(g)
    for metric, some in parts.items():
        values = [g.answer.value for g in some if g.answer.value is not None]
        if values:
            interval = bootstrap_interval(list(question_means(some).values()), seed=0, bounds=GRADES)
            yield Row.of(name, metric, replace(interval, value=fmean(values)), note=note if metric == "mt_bench" else "")


def _games(evidence: Evidence, exam: Exam, judge: MtJudge, sets: Mapping[str, Answers]) -> list[Row]:
    assert evidence.workshop is not None
    reference = evidence.reference or next(iter(sets))
    rows = []
    for name, answers in sets.items():
        if name == reference:
            continue
        with evidence.workshop.asking(f"{judge.name} compares {name}", 4 * len(exam.questions)) as told:
            games = core.compare(exam.questions, (answers, sets[reference]), exam.references, judge, told)
        evidence.workshop.leave(f"mt_bench-games-{name}.json", [game_row(judge.name, game) for game in games])
        rows.append(_match_row(games, _note(judge, [answer for game in games for answer in (game.as_it_is, game.swapped)])))
    return rows


def _match_row(games: Sequence[Game], note: str) -> Row:
    match = match_of(games)
    low, high = (math.nan if end is None else end / 100 for end in (match.low, match.high))
    played = len({game.question.id for game in games if game.winner is not None})
    counts = f"{match.n_first} won, {match.n_second} lost, {match.n_ties} ties ({match.n_inconsistent} by order alone); {note}"
    return Row(match.first, "mt_bench_wins", match.win_rate_adjusted / 100, low, high, played, against=match.second, note=counts)


def _note(judge: MtJudge, answers: Sequence[Answered[Any]]) -> str:
    """Who judged, what could not be read, and the price where it is known."""
    unread = sum(answer.value is None for answer in answers)
    usd = sum(reply.usd for answer in answers for reply in answer.replies)
    said = [f"judged by {judge.name}"]
    said += [f"{unread} of {len(answers)} judgements could not be read and are left out"] if unread else []
    return ", ".join([*said, *([f"${usd:.2f}"] if usd else [])])
