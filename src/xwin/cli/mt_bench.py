"""`xwin eval mt-bench`: two-turn answers, graded or compared by a judge."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xwin.cli.judge import EXAMPLES, Endpoint, KeyName, Replies, Who, find_chat, progress, require_place
from xwin.cli.run import AsJson
from xwin.errors import UserError

if TYPE_CHECKING:
    from xwin.suites._mt_bench import Answers, Game, Graded, MtJudge, Question
    from xwin.suites._mt_bench_scores import Grades, Match


class Mode(StrEnum):
    """How answers are judged."""

    single = "single"
    pairs = "pairs"


@dataclass(frozen=True)
class Table:
    """What is judged, and by whom."""

    questions: Sequence[Question]
    references: Answers | None
    judge: MtJudge


def register(group: typer.Typer) -> None:
    """Adds `mt-bench` to `xwin eval`."""
    group.command("mt-bench")(mt_bench)


def mt_bench(  # noqa: PLR0913, PLR0917 - an option each
    answers: Annotated[
        list[str],
        typer.Argument(
            metavar="ANSWERS...", show_default=False, help="Files of FastChat's model_answer, or models to ask: remote:NAME, RUN:stage, a folder."
        ),
    ],
    questions: Annotated[Path, typer.Option(metavar="FILE", show_default=False, help="FastChat's question.jsonl.")],
    who: Who,
    references: Annotated[
        Path | None, typer.Option(metavar="FILE", show_default=False, help="Reference answers: for math, reasoning and coding.")
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(metavar="FILE", show_default=False, help="FastChat's judge_prompts.jsonl, in place of our wording.")
    ] = None,
    mode: Annotated[Mode, typer.Option(help="single: grades from 1 to 10; pairs: every model against the first.")] = Mode.single,
    endpoint: Endpoint = "https://api.openai.com/v1",
    key: KeyName = "OPENAI_API_KEY",
    retries: Annotated[int, typer.Option(min=0, help="How often an answer that cannot be read is asked for again.")] = 2,
    seed: Annotated[int, typer.Option(help="Of what models and the judge draw.")] = 0,
    out: Annotated[Path | None, typer.Option(metavar="FILE", show_default=False, help="Write every judgement, a JSON object a line.")] = None,
    replies: Replies = None,
    as_json: AsJson = False,
) -> None:
    """Grades for two-turn answers by turn and category, or pairs won. Answers are kept as they come: run it again, and nothing is asked twice.

    Examples:

      xwin eval mt-bench answers.jsonl --questions question.jsonl --references reference.jsonl --judge remote:gpt-4-0613

      xwin eval mt-bench runs/tiny-s0:sft runs/tiny-s0:ppo --mode pairs --questions question.jsonl --references reference.jsonl --judge judge.yaml
    """
    from xwin.suites._mt_bench import MtJudge, read_answers, read_questions, read_references, require_answers
    from xwin.suites._mt_bench_prompts import ours, read_prompts

    require_place(out)
    asked = read_questions(questions)
    known = read_references(references, asked)
    wording = read_prompts(prompts) if prompts else ours()
    judge = MtJudge(who, find_chat(who, endpoint, key, replies), wording, retries, seed)
    sets: list[Answers] = []
    for name in answers:
        sets += read_answers(Path(name)) if Path(name).is_file() else [_answered(name, endpoint, key, replies, asked, seed)]
    for each in sets:
        require_answers(asked, each)
    table = Table(asked, known, judge)
    if mode is Mode.pairs:
        _pairs(table, sets, out, as_json=as_json)
    else:
        _single(table, sets, out, as_json=as_json)


def _answered(name: str, endpoint: str, key: str, replies: Path | None, asked: Sequence[Question], seed: int) -> Answers:
    from xwin.suites._mt_bench import write_answers

    return write_answers(find_chat(name, endpoint, key, replies), name, asked, seed=seed)


def _single(table: Table, sets: Sequence[Answers], out: Path | None, *, as_json: bool) -> None:
    from xwin.suites._mt_bench import grade
    from xwin.suites._mt_bench_scores import better, grade_row, grades_of

    graded: list[list[Graded]] = []
    for each in sets:
        with progress(f"{table.judge.name} grades {each.model}", 2 * len(table.questions)) as told:
            graded.append(grade(table.questions, each, table.references, table.judge, told))
    if out is not None:
        _write(out, [grade_row(table.judge.name, g) for mine in graded for g in mine])
    rows = [grades_of(mine) for mine in graded]
    tests = {row.model: better(graded[0], mine) for row, mine in zip(rows[1:], graded[1:], strict=True)}
    if as_json:
        print(json.dumps({"models": [asdict(row) for row in rows]} | _about(table, rows), allow_nan=False))
        return
    for row in rows:
        _show_unread(row.model, row)
    for model, test in tests.items():
        print(f"{model} less {rows[0].model}: {test.difference:+.2f} [{test.low:+.2f}, {test.high:+.2f}], paired t test p = {test.p:.2g}")
    _show_grades(rows)


def _pairs(table: Table, sets: Sequence[Answers], out: Path | None, *, as_json: bool) -> None:
    from xwin.suites._mt_bench import compare
    from xwin.suites._mt_bench_scores import game_row, match_of

    if len(sets) < 2:  # noqa: PLR2004 - a pair
        raise UserError("pairs need the answers of two models", "mt-bench", "name another file or model")
    games: list[list[Game]] = []
    for other in sets[1:]:
        with progress(f"{table.judge.name} compares {other.model}", 4 * len(table.questions)) as told:
            games.append(compare(table.questions, (other, sets[0]), table.references, table.judge, told))
    if out is not None:
        _write(out, [game_row(table.judge.name, game) for match in games for game in match])
    rows = [match_of(match) for match in games]
    if as_json:
        print(json.dumps({"matches": [asdict(row) for row in rows]} | _about(table, rows), allow_nan=False))
        return
    for row in rows:
        ends = "" if row.low is None else f" [{row.low:.1f}, {row.high:.1f}]"
        print(f"{row.first} against {row.second}: {row.n_first} won, {row.n_second} lost, {row.n_ties} ties ({row.n_inconsistent} by order alone)")
        print(f"  win rate {row.win_rate:.1f} %, with ties as one half {row.win_rate_adjusted:.1f} %{ends}")
        _show_unread(f"{row.first} against {row.second}", row)


def _about(table: Table, rows: Sequence[Grades | Match]) -> dict[str, Any]:
    wording = {name.published: prompt.digest for name, prompt in table.judge.prompts.items()}
    about = {"name": table.judge.name, "retries": table.judge.retries, "seed": table.judge.seed, "prompts": wording}
    return {"judge": about, "n_questions": len(table.questions), "n_unread": sum(row.n_unread for row in rows)}


def _write(out: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    from xwin.run.storage import write_atomic

    write_atomic(out, "".join(json.dumps(row) + "\n" for row in rows))


def _show_unread(name: str, row: Grades | Match) -> None:
    if row.n_unread:
        print(f"{name}: {row.n_unread} judgements could not be read and are left out:")
        for text in row.unread[:EXAMPLES]:
            print(f"  {text[:160]!r}")


def _show_grades(rows: Sequence[Grades]) -> None:
    from xwin.run.console import Console

    categories = list(dict.fromkeys(name for row in rows for name in row.categories))
    header = ["model", "average", "95 %", "turn 1", "turn 2", "n", "unread", *categories]
    body = []
    for row in rows:
        ends = "" if row.low is None or row.high is None else f"[{row.low:.2f}, {row.high:.2f}]"
        turns = ["" if value is None else f"{value:.2f}" for value in (row.first_turn, row.second_turn)]
        each = [f"{row.categories[name]:.2f}" if name in row.categories else "" for name in categories]
        body.append([row.model, f"{row.average:.2f}", ends, *turns, str(row.n), str(row.n_unread), *each])
    Console().table("", header, body)
