"""MT-bench: two-turn questions, graded 1 to 10 or compared in pairs by a judge.

Rules of FastChat's llm_judge (github.com/lm-sys/FastChat; Zheng et al. 2023, arXiv:2306.05685): which prompt for which category, how a verdict is
read, when a pair is won. Unlike there, what cannot be read, or is no grade from 1 to 10, is asked for again, and is counted instead of becoming a
score of -1. The questions and the reference answers are no part of this package: they are read from FastChat's files.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from xwin.data.conversation import Conversation, Message, content_id
from xwin.engines.base import Chat, Reply, Sampling
from xwin.errors import DataError
from xwin.scorers._asking import Answered, Asking, quiet
from xwin.scorers._judge_prompts import JudgePrompt
from xwin.suites._mt_bench_prompts import PromptName
from xwin.suites._records import Record, records

NEED_REFERENCE = frozenset({"math", "reasoning", "coding", "arena-hard-200"})
"""Categories whose answers are judged against a reference answer."""
TEMPERATURES: Mapping[str, float] = {"writing": 0.7, "roleplay": 0.7, "stem": 0.1, "humanities": 0.1}
"""At which a model answers; 0 in the other categories."""
ANSWER_TOKENS, JUDGE_TOKENS = 1024, 2048
GRADES = (1.0, 10.0)
"""The scale."""
RATING = (re.compile(r"\[\[(\d+\.?\d*)\]\]"), re.compile(r"\[(\d+\.?\d*)\]"))
"""The second is tried where the first finds nothing."""
VERDICTS: Mapping[str, Literal["A", "B", "tie"]] = {"[[A]]": "A", "[[B]]": "B", "[[C]]": "tie"}
"""Looked for in this order."""
Turns = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Question:
    """A question of two turns.  Example: Question(81, "writing", ("Write ...", "Rewrite ..."))"""

    id: int
    category: str
    turns: Turns


Talk = tuple[Question, tuple[Message, ...]]
"""A question, and what was said up to one of its turns."""


@dataclass(frozen=True, slots=True)
class Answers:
    """A model's answers: question id -> both turns."""

    model: str
    source: str
    turns: Mapping[int, Turns]


@dataclass(frozen=True, slots=True)
class Graded:
    """One answer, graded."""

    model: str
    question: Question
    turn: int
    """1 or 2."""
    answer: Answered[float]


@dataclass(frozen=True, slots=True)
class Game:
    """Two models' answers to one question, compared in both orders."""

    first: str
    second: str
    question: Question
    turn: int
    as_it_is: Answered[str]
    """Verdict with the first model as assistant A: "A", "B" or "tie"."""
    swapped: Answered[str]
    """Verdict with the first model as assistant B."""

    @property
    def winner(self) -> str | None:
        """The model that both orders prefer; "tie" where they do not agree or the first says so; None where a verdict could not be read."""
        if self.as_it_is.value is None or self.swapped.value is None:
            return None
        one = {"A": self.first, "B": self.second}.get(self.as_it_is.value, "tie")
        two = {"A": self.second, "B": self.first}.get(self.swapped.value, "tie")
        return one if one == two else "tie"


def read_questions(path: Path) -> list[Question]:
    """The rows of FastChat's question.jsonl.

    Raises:
        DataError: a row lacks something, or an id is there twice.
    """
    found: dict[int, Question] = {}
    for record in records(path):
        number, category = record.whole("question_id"), record.text("category")
        if number is None or category is None:
            raise DataError("a question needs question_id and category", record.where)
        if number in found:
            raise DataError(f"question {number} is there twice", record.where)
        found[number] = Question(number, category, _turns(record.fields.get("turns"), record))
    return list(found.values())


def read_answers(path: Path) -> list[Answers]:
    """The rows of FastChat's model_answer/*.jsonl and reference_answer/*.jsonl, by model; the first choice of each.

    Raises:
        DataError: a row lacks something, or a model answers a question twice.
    """
    found: dict[str, dict[int, Turns]] = {}
    for record in records(path):
        number, model, choices = record.whole("question_id"), record.text("model_id"), record.fields.get("choices")
        if number is None or not model or not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            raise DataError("an answer needs question_id, model_id and choices", record.where)
        mine = found.setdefault(model, {})
        if number in mine:
            raise DataError(f"{model} answers question {number} twice", record.where)
        mine[number] = _turns(choices[0].get("turns"), record)
    return [Answers(model, str(path), turns) for model, turns in found.items()]


def answer_rows(answers: Answers) -> list[Mapping[str, Any]]:
    """As in FastChat's model_answer: what `read_answers` reads."""
    return [
        {"question_id": number, "model_id": answers.model, "choices": [{"index": 0, "turns": list(turns)}]} for number, turns in answers.turns.items()
    ]


def read_references(path: Path | None, questions: Sequence[Question]) -> Answers | None:
    """The reference answers, checked.

    Args:
        path: FastChat's reference_answer/*.jsonl; None where there is none.
        questions: to be judged.

    Raises:
        DataError: they are of other questions, or needed and not given.
    """
    if path is None:
        needing = sorted({q.category for q in questions if q.category in NEED_REFERENCE})
        if needing:
            raise DataError(
                f"{', '.join(needing)} are judged against reference answers", "references", "give FastChat's reference_answer/gpt-4.jsonl"
            )
        return None
    sets = read_answers(path)
    if len(sets) != 1:
        raise DataError(f"holds the answers of {len(sets)} models", str(path), "reference answers are of one")
    require_answers(questions, sets[0], reference=True)
    return sets[0]


def require_answers(questions: Sequence[Question], answers: Answers, *, reference: bool = False) -> None:
    """Refuses answers that are not to these questions.

    Args:
        questions: to be judged.
        answers: of a model, or the reference answers.
        reference: whether they are; only the categories that need one must then have one.

    Raises:
        DataError: which questions have no answer, or which answers no question.
    """
    wanted = [q.id for q in questions if not reference or q.category in NEED_REFERENCE]
    lacking = [number for number in wanted if number not in answers.turns]
    known = {q.id for q in questions}
    foreign = [] if reference else [number for number in answers.turns if number not in known]
    said = [
        f"{len(ids)} {what} ({', '.join(map(str, ids[:5]))})" for ids, what in ((lacking, "without an answer"), (foreign, "of other sets")) if ids
    ]
    if said:
        raise DataError(
            f"{answers.model}: not the answers to these questions: {'; '.join(said)}", answers.source, "give the files that belong together"
        )


def write_answers(
    chat: Chat, model: str, questions: Sequence[Question], told: Callable[[int], None] = quiet, *, seed: int, tokens: int = ANSWER_TOKENS
) -> Answers:
    """Lets a model answer: the second turn follows its own first answer. Temperatures are FastChat's, by category.

    Args:
        chat: the model.
        model: its name.
        questions: two turns each.
        told: called with how many turns were answered just now.
        seed: of the draws.
        tokens: of the longest answer.
    """
    asked: list[Talk] = [(q, (Message("user", q.turns[0]),)) for q in questions]
    first = _replied(chat, asked, tokens, seed, told)
    asked = [(q, (*said, Message("assistant", first[q.id]), Message("user", q.turns[1]))) for q, said in asked]
    second = _replied(chat, asked, tokens, seed, told)
    return Answers(model, "", {q.id: (first[q.id], second[q.id]) for q in questions})


def grade(
    questions: Sequence[Question],
    answers: Answers,
    references: Answers | None,
    judge: MtJudge,
    told: Callable[[int], None] = quiet,
) -> list[Graded]:
    """Both turns of every question, 1 to 10.

    Raises:
        UserError: not one grade could be read.
    """
    tasks = [(q, turn) for q in questions for turn in (1, 2)]
    prompts = [judge.prompts[PromptName("single", q.category in NEED_REFERENCE, turn)] for q, turn in tasks]
    shown = [p.filled(_places(q, references, {"answer": answers})) for p, (q, _) in zip(prompts, tasks, strict=True)]
    found = judge.ask(rating, shown, told)
    return [Graded(answers.model, q, turn, answer) for (q, turn), answer in zip(tasks, found, strict=True)]


def compare(
    questions: Sequence[Question], both: tuple[Answers, Answers], references: Answers | None, judge: MtJudge, told: Callable[[int], None] = quiet
) -> list[Game]:
    """Both turns of every question, each in both orders.

    Raises:
        UserError: not one verdict could be read.
    """
    tasks = [(q, turn) for q in questions for turn in (1, 2)]
    shown = []
    for a, b in (both, both[::-1]):
        for q, turn in tasks:
            prompt = judge.prompts[PromptName("pair", q.category in NEED_REFERENCE, turn)]
            shown.append(prompt.filled(_places(q, references, {"answer_a": a, "answer_b": b})))
    found = judge.ask(verdict, shown, told)
    halves = zip(tasks, found[: len(tasks)], found[len(tasks) :], strict=True)
    return [Game(both[0].model, both[1].model, q, turn, one, two) for (q, turn), one, two in halves]


def rating(reply: Reply) -> float | None:
    """The first [[7]] or [[7.5]], else the first [7]; None where there is none, or it is not in 1 to 10."""
    found = next((match for pattern in RATING if (match := pattern.search(reply.text))), None)
    value = float(found[1]) if found else math.nan
    return value if GRADES[0] <= value <= GRADES[1] else None


def verdict(reply: Reply) -> str | None:
    """ "A", "B" or "tie"; None where the answer says none of them."""
    return next((said for mark, said in VERDICTS.items() if mark in reply.text), None)


@dataclass(frozen=True)
class MtJudge:
    """Who judges, and by which prompts."""

    name: str
    chat: Chat
    prompts: Mapping[PromptName, JudgePrompt]
    retries: int = 2
    seed: int = 0

    def ask(self, read: Callable[[Reply], Any], shown: Sequence[Conversation], told: Callable[[int], None]) -> list[Answered[Any]]:
        """Answers that `read` can read."""
        asking = Asking(Sampling(temperature=0.0, max_tokens=JUDGE_TOKENS), read, retries=self.retries, seed=self.seed)
        found = asking.ask(self.chat, shown, told)
        if found and all(answer.value is None for answer in found):
            raise asking.unreadable(found[0], self.name)
        return found


def _replied(chat: Chat, asked: Sequence[Talk], tokens: int, seed: int, told: Callable[[int], None]) -> dict[int, str]:
    """Question id -> answer; asked together where the temperature is the same."""
    found: dict[int, str] = {}
    for temperature in sorted({TEMPERATURES.get(q.category, 0.0) for q, _ in asked}):
        mine = [(q, messages) for q, messages in asked if TEMPERATURES.get(q.category, 0.0) == temperature]
        talks = [Conversation(content_id(messages), messages) for _, messages in mine]
        replies = chat.reply(talks, Sampling(temperature=temperature, max_tokens=tokens), seed=seed)
        for (q, _), reply in zip(mine, replies, strict=True):
            if reply.finish == "error":
                raise DataError(f"the model could not answer: {reply.note}", f"question {q.id}")
            found[q.id] = reply.text
            told(1)
    return found


def _places(question: Question, references: Answers | None, answers: Mapping[str, Answers]) -> dict[str, str]:
    """Every name that FastChat's prompts use, for both turns."""
    places = {"question": question.turns[0], "question_1": question.turns[0], "question_2": question.turns[1]}
    told = {name: each.turns[question.id] for name, each in answers.items()}
    if references is not None and question.id in references.turns:
        told["ref_answer"] = references.turns[question.id]
    for name, turns in told.items():
        places |= {name: turns[0], f"{name}_1": turns[0], f"{name}_2": turns[1]}
    return places


def _turns(value: Any, record: Record) -> Turns:
    if not isinstance(value, list) or len(value) != 2 or not all(isinstance(turn, str) for turn in value):  # noqa: PLR2004 - two turns
        raise DataError("needs two turns, both of them text", record.where, "MT-bench's questions and answers have two")
    return value[0], value[1]
