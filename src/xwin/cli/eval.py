"""`xwin eval`: measure from labels that a judge gave: win rates as AlpacaEval publishes them, paired comparisons, the seed's table."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xwin.cli import _eval_models
from xwin.cli.run import AsJson
from xwin.errors import DataError, UserError

if TYPE_CHECKING:
    from xwin.run.statistics import Paired
    from xwin.suites._alpaca_controlled import Fit
    from xwin.suites._alpaca_labels import Labels
    from xwin.suites._alpaca_win_rate import Standing
    from xwin.suites._seed_table import Cell

PLACES = (Path("data/alpaca_eval"), Path("alpaca_eval"))
"""Where AlpacaEval's public tables are looked for, after the folder of the labels."""
SHOWN = ("win_rate", "standard_error", "n_wins", "n_wins_base", "n_draws", "n_total", "discrete_win_rate", "length_controlled_winrate", "avg_length")
ENVIRONMENT = ["XWIN_DATA"]

TablesFolder = Annotated[
    Path | None,
    typer.Option(
        "--tables", metavar="FOLDER", envvar=ENVIRONMENT, help="AlpacaEval's public tables. Default: beside the labels, then data/alpaca_eval."
    ),
]


class JoinName(StrEnum):
    """How rows meet their instruction's difficulty."""

    instruction = "instruction"
    position = "position"


def register(app: typer.Typer) -> None:
    """Adds the commands of `xwin eval`."""
    from xwin.cli import judge, mt_bench

    group = typer.Typer(
        help="Measure: win rates from a judge's labels as AlpacaEval publishes them, paired comparisons, foundation tasks, reward models.",
        no_args_is_help=True,
        rich_markup_mode="rich",
    )
    group.command("alpaca")(alpaca)
    group.command("paired")(paired)
    group.command("seed-table")(seed_table)
    _eval_models.register(group)
    judge.register(group)
    mt_bench.register(group)
    app.add_typer(group, name="eval")


def alpaca(  # noqa: PLR0913, PLR0917 - an option each
    files: Annotated[
        list[Path],
        typer.Argument(metavar="LABELS...", show_default=False, help="annotations.json of alpaca_eval, or label files (.jsonl, .jsonl.gz)."),
    ],
    length_controlled: Annotated[bool, typer.Option("--length-controlled", help="Also the length-controlled win rate of AlpacaEval 2.")] = False,
    as_json: AsJson = False,
    tables: TablesFolder = None,
    fit: Annotated[
        str,
        typer.Option(
            metavar="HOW",
            help="Of length control: published weights, cv (cross-validation), a number C; auto: published where the labels are, else cv.",
        ),
    ] = "auto",
    join: Annotated[
        JoinName, typer.Option(help="Of length control: rows by instruction, or by position as alpaca_eval does.")
    ] = JoinName.instruction,
    against: Annotated[str, typer.Option(metavar="MODEL", help="Compare every model with this one: paired t test over instructions.")] = "",
    csv: Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="Also write the leaderboard as alpaca_eval's csv.")] = None,
    reference: Annotated[
        str, typer.Option(metavar="SET", help="Refuse labels against other references: davinci003 (version 1), gpt4_1106 (2).")
    ] = "",
    board: Annotated[Path | None, typer.Option("--leaderboard", metavar="FILE", help="Also show the models of this leaderboard (csv).")] = None,
) -> None:
    """Win rate, standard error, counts and length of every model in the files, with a 95 % interval; a leaderboard when there are several.

    Examples:

      xwin eval alpaca results/my-model/alpaca_eval_gpt4/annotations.json

      xwin eval alpaca labels.jsonl.gz --length-controlled --json

      xwin eval alpaca labels.jsonl.gz --against gpt4 --csv leaderboard.csv
    """
    from xwin.cli.judge import require_place
    from xwin.suites._alpaca_leaderboard import ranked, read_leaderboard, write_leaderboard
    from xwin.suites._alpaca_win_rate import incomparable, standing

    require_place(csv)
    how = _fit(fit)
    folder = tables_folder(tables, files, needed=length_controlled or bool(reference))
    sets = _read(files, folder)
    for note in [*incomparable(sets), *_reference_notes(sets, folder, reference, length_controlled=length_controlled)]:
        _say(f"note: {note}")
    rows = [standing(labels) for labels in sets]
    if length_controlled and folder is not None:
        rows = _controlled(sets, rows, folder, how, join)
    ours = {row.model for row in rows}
    published = [row for row in read_leaderboard(board) if row.model not in ours] if board else []
    rows = ranked([*rows, *published], length_controlled=length_controlled)
    if csv is not None:
        write_leaderboard(csv, rows)
    tests = _tests(sets, against) if against else {}
    if as_json:
        compared = {"against": {"model": against, "models": {name: _difference(test) for name, test in tests.items()}}} if against else {}
        print(json.dumps({"models": [public(row) for row in rows]} | compared, ensure_ascii=False, allow_nan=False))
        return
    _show_leaderboard(rows, tests, against, length_controlled=length_controlled)


def paired(
    first: Annotated[str, typer.Argument(metavar="A", show_default=False, help="A label file, or FILE:MODEL where it holds several models.")],
    second: Annotated[str, typer.Argument(metavar="B", show_default=False, help="The same for the other model.")],
    as_json: AsJson = False,
    tables: TablesFolder = None,
    shared_only: Annotated[bool, typer.Option("--common", help="Compare on the instructions both have, where they differ.")] = False,
) -> None:
    """Is B better than A, judged against the same reference on the same instructions? And if that is open: how many more would decide it?

    Examples:

      xwin eval paired before/annotations.json after/annotations.json

      xwin eval paired labels.jsonl.gz:llama-2-70b-chat-hf labels.jsonl.gz:gpt4

      xwin eval paired runs/tiny-s0/stages/report/samples.jsonl:sft2 runs/tiny-s0/stages/report/samples.jsonl:ppo
    """
    from xwin.run.statistics import paired_means, prompts_needed
    from xwin.suites._alpaca_labels import common, credits_of_both, same_instructions, same_reference

    a, b = _both(first, second, tables)
    if shared_only:
        a, b = common(a, b)
    same_instructions(a, b)
    same_reference(a, b)
    mine, theirs = credits_of_both(a, b)
    test, needed = paired_means(mine, theirs, bounds=(-1.0, 1.0)), prompts_needed(mine, theirs)
    rates = [100 * sum(credit) / len(credit) for credit in (mine, theirs)]
    if as_json:
        print(json.dumps(_verdict(a.model, b.model, rates, test, needed), ensure_ascii=False, allow_nan=False))
        return
    print(f"{a.model} {rates[0]:.2f}, {b.model} {rates[1]:.2f}: win rates over the {test.n} instructions with a label of both ({len(a.rows)} judged)")
    print(f"{b.model} less {a.model}: {_points(test)}, paired t test p = {test.p:.2g}")
    print(_decision(test, needed))


def seed_table(
    folder: Annotated[
        Path | None, typer.Argument(metavar="DATA", envvar=ENVIRONMENT, show_default=False, help="Folder of AlpacaEval's public labels and tables.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """The AlpacaEval table of the Xwin-LM release from public labels: each number exact from raw labels, from published counts, or not public.

    Example:

      xwin eval seed-table data/alpaca_eval
    """
    from xwin.suites._seed_table import seed_table as table

    found = tables_folder(folder, [], needed=True)
    cells = table(found) if found else []
    if as_json:
        rows = [asdict(cell) | {"agrees": cell.agrees} for cell in cells]
        print(json.dumps({"cells": rows}, ensure_ascii=False, allow_nan=False))
        return
    _show_seed_table(cells)


def _fit(text: str) -> Fit:
    if text in {"auto", "published", "cv"}:
        return text  # pyright: ignore[reportReturnType]
    try:
        strength = float(text)
    except ValueError:
        strength = 0.0
    if not 0 < strength < float("inf"):
        raise UserError(f"'{text}' is no way to fit", "--fit", "auto, published, cv, or a number above 0")
    return strength


def tables_folder(given: Path | None, files: Sequence[Path], *, needed: bool) -> Path | None:
    """The folder of AlpacaEval's tables: the one given, else beside the files, else in a usual place. None where there is none and none is needed.

    Raises:
        DataError: none is found and one is needed, or the one given has no table of instructions.
    """
    from xwin.suites._alpaca_tables import INSTRUCTIONS

    tried = [given, given / "alpaca_eval"] if given else [*(file.parent for file in files), *PLACES]
    for folder in tried:
        if (folder / INSTRUCTIONS).exists():
            return folder
    if not needed:
        return None
    looked = ", ".join(dict.fromkeys(str(folder) for folder in tried))
    raise DataError(f"no {INSTRUCTIONS} in any of: {looked}", "AlpacaEval's public tables", "say where they are: --tables FOLDER, or XWIN_DATA")


def _read(files: Sequence[Path], tables: Path | None) -> list[Labels]:
    """The labels of all files. Two files must not differ in their instructions or references, or name one model twice."""
    from xwin.suites._alpaca_labels import read_labels, same_instructions, same_reference
    from xwin.suites._alpaca_tables import instructions

    numbers = instructions(tables).numbers if tables else {}
    found: dict[str, Labels] = {}
    leaders: list[Labels] = []
    for path in files:
        sets = read_labels(path, numbers)
        for labels in sets:
            if labels.model in found:
                raise DataError(f"the model {labels.model} is there twice", f"{found[labels.model].source} and {path}", "name one file of them")
            found[labels.model] = labels
        leaders.append(max(sets, key=lambda labels: len(labels.rows)))
    for other in leaders[1:]:
        same_instructions(leaders[0], other)
        same_reference(leaders[0], other)
    return list(found.values())


def _reference_notes(sets: Sequence[Labels], folder: Path | None, required: str, *, length_controlled: bool) -> list[str]:
    """What is to be said of the references of models, where the public sets are known.

    Raises:
        DataError: a model was judged against another set than the one that is required.
    """
    from xwin.suites._alpaca_labels import reference_set, require_reference
    from xwin.suites._alpaca_tables import references

    if folder is None:
        return []
    known = references(folder)
    if required:
        for labels in sets:
            require_reference(labels, required, known)
    found = {labels.model: reference_set(labels, known) for labels in sets}
    notes = [
        f"{model} was judged against alt_davinci003, which is not AlpacaEval's reference" for model, name in found.items() if name == "alt_davinci003"
    ]
    others = sum(name != "gpt4_1106" for name in found.values())
    if length_controlled and others:
        notes.append(
            f"length control was made for the reference gpt4_1106; {others} of {len(sets)} models were judged against another, or it is not known"
        )
    return notes


def _both(first: str, second: str, tables: Path | None) -> tuple[Labels, Labels]:
    """The labels that two names, FILE or FILE:MODEL, mean."""
    from xwin.suites._alpaca_labels import pick, read_labels
    from xwin.suites._alpaca_tables import instructions

    (file_1, model_1), (file_2, model_2) = (file_and_model(text) for text in (first, second))
    folder = tables_folder(tables, [file_1, file_2], needed=False)
    numbers = instructions(folder).numbers if folder else {}
    return pick(read_labels(file_1, numbers), model_1, str(file_1)), pick(read_labels(file_2, numbers), model_2, str(file_2))


def file_and_model(text: str) -> tuple[Path, str]:
    """File and model of FILE:MODEL; no model where the whole is a file."""
    file, _, model = (text, "", "") if Path(text).exists() else text.partition(":")
    return Path(file), model


def _controlled(sets: Sequence[Labels], rows: Sequence[Standing], folder: Path, how: Fit, join: JoinName) -> list[Standing]:
    """The rows with their length-controlled win rates; what is wrong with one is said."""
    from xwin.suites._alpaca_controlled import LengthControl

    control = LengthControl.read(folder, how, join.value)
    done = []
    for labels, row in zip(sets, rows, strict=True):
        found = control.apply(labels, row)
        if found.note:
            _say(f"note: {row.model}: length-controlled {found.win_rate:.4f} ({found.source}); {found.note}")
        done.append(replace(row, length_controlled_winrate=found.win_rate, lc_standard_error=found.standard_error))
    return done


def _tests(sets: Sequence[Labels], against: str) -> dict[str, Paired]:
    """Model -> its paired test against one of them; a model with another reference or other instructions has none."""
    from xwin.run.statistics import paired_means
    from xwin.suites._alpaca_labels import credits_of_both, pick, same_instructions, same_reference

    other = pick(sets, against, "the files")
    tests: dict[str, Paired] = {}
    for labels in sets:
        if labels is other:
            continue
        try:
            same_instructions(other, labels)
            same_reference(other, labels)
        except DataError as error:
            _say(f"note: not compared with {against}: {error.what}")
            continue
        tests[labels.model] = paired_means(*credits_of_both(other, labels), bounds=(-1.0, 1.0))
    return tests


def public(row: Standing) -> dict[str, Any]:
    """What is printed of a row as JSON."""
    values = asdict(row)
    return {name: values[name] for name in ("model", *SHOWN, "low", "high")}


def _verdict(first: str, second: str, rates: Sequence[float], test: Paired, needed: int | None) -> dict[str, Any]:
    """Percent; `difference` is the second less the first."""
    decided = test.p < 0.05
    more = 0 if decided else None if needed is None else needed - test.n
    names = {"first": first, "second": second, "win_rates": list(rates)}
    return {**names, **_difference(test), "decided": decided, "n_needed": needed, "n_more": more}


def _difference(test: Paired) -> dict[str, Any]:
    """Percent; an end that is not known is null."""
    low, high = (None if end != end else 100 * end for end in (test.low, test.high))
    return {"n": test.n, "difference": 100 * test.difference, "low": low, "high": high, "p": test.p}


def _decision(test: Paired, needed: int | None) -> str:
    if test.p < 0.05:
        return "The difference is real: p is below 0.05."
    if needed is None and test.n == 1:
        return "Open: one instruction says nothing of the others."
    if needed is None:
        return "Open: the two are equal so far, so no number of instructions would tell them apart."
    return f"Open. If it is as large as it looks, {needed} instructions of this kind would show it (power 80 %): {needed - test.n} more."


def _points(test: Paired) -> str:
    ends = "" if test.low != test.low else f" [{100 * test.low:+.2f}, {100 * test.high:+.2f}]"
    return f"{100 * test.difference:+.2f} points{ends}"


def _show_leaderboard(rows: Sequence[Standing], tests: dict[str, Paired], against: str, *, length_controlled: bool) -> None:
    from xwin.run.console import Console

    header = ["model", "win rate", "95 % interval", "se", "won", "lost", "equal", "n", "discrete", "length"]
    header += ["length-controlled"] if length_controlled else []
    header += [f"less {against}", "p"] if against else []
    body = []
    for row in rows:
        interval = "" if row.low is None or row.high is None else f"[{row.low:.2f}, {row.high:.2f}]"
        counts = [_whole(n) for n in (row.n_wins, row.n_wins_base, row.n_draws, row.n_total)]
        cells = [
            row.model,
            f"{row.win_rate:.2f}",
            interval,
            _decimal(row.standard_error),
            *counts,
            _decimal(row.discrete_win_rate),
            _whole(row.avg_length),
        ]
        cells += [_decimal(row.length_controlled_winrate)] if length_controlled else []
        test = tests.get(row.model)
        cells += ([_points(test), f"{test.p:.2g}"] if test else ["", ""]) if against else []
        body.append(cells)
    Console().table("", header, body)


def _show_seed_table(cells: Sequence[Cell]) -> None:
    from xwin.run.console import Console

    body = [[c.model, c.opponent, f"{c.seed:.2f}", "" if c.value is None else f"{c.value:.4f}", c.mark, c.note] for c in cells]
    Console().table("Win rate, percent", ["model", "against", "published", "here", "how", "note"], body)


def _decimal(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _whole(value: int | None) -> str:
    return "" if value is None else str(value)


def _say(text: str) -> None:
    print(text, file=sys.stderr)
