"""`xwin eval judge`: ask a judge which of two models answers better, and how far that judge is to be trusted."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xwin.cli.eval import TablesFolder, file_and_model, public, tables_folder
from xwin.cli.run import AsJson
from xwin.errors import DataError, UserError

if TYPE_CHECKING:
    from collections.abc import Callable

    from xwin.engines.base import Chat
    from xwin.run.statistics import Interval
    from xwin.scorers._pairwise import Judging
    from xwin.suites._alpaca_win_rate import Standing
    from xwin.suites._judge_quality import Quality, Report
    from xwin.suites._judged_pairs import Account
    from xwin.suites._outputs import Outputs

KINDS = "remote:NAME (an OpenAI-compatible endpoint), RUN:stage, a folder or hf:org/name, reward:RUN:stage, or FILE.yaml: settings of an endpoint"
EXAMPLES = 3
"""Answers that could not be read which are shown."""


class StyleName(StrEnum):
    """How the judge is asked."""

    ranking = "ranking"
    token = "token"


class OrdersName(StrEnum):
    """In which orders a pair is shown."""

    one = "one"
    both = "both"


Who = Annotated[str, typer.Option("--judge", metavar="WHO", show_default=False, help=f"{KINDS}.")]
Endpoint = Annotated[str, typer.Option(metavar="URL", help="Of remote:NAME.")]
KeyName = Annotated[str, typer.Option("--key", metavar="VARIABLE", help='Environment variable with the key of the endpoint; "" for none.')]
Replies = Annotated[Path | None, typer.Option(metavar="FILE", show_default=False, help="Where answers are kept; default: in the cache folder.")]


def register(group: typer.Typer) -> None:
    """Adds the commands to `xwin eval`."""
    group.command("judge")(judge)
    group.command("judge-quality")(judge_quality)


def judge(  # noqa: PLR0913, PLR0917 - an option each
    file: Annotated[str, typer.Argument(metavar="OUTPUTS", show_default=False, help="A model's outputs; FILE:MODEL where it holds several.")],
    against: Annotated[
        str,
        typer.Option(metavar="OUTPUTS", show_default=False, help="The same of the other model; or davinci003, gpt4_1106: AlpacaEval's."),
    ],
    who: Annotated[list[str], typer.Option("--judge", metavar="WHO", show_default=False, help=f"{KINDS}. Several are a pool that takes turns.")],
    endpoint: Endpoint = "https://api.openai.com/v1",
    key: KeyName = "OPENAI_API_KEY",
    style: Annotated[StyleName, typer.Option(help="ranking: as AlpacaEval 1; token: as AlpacaEval 2, needs log-probabilities.")] = StyleName.ranking,
    orders: Annotated[OrdersName, typer.Option(help="one: drawn per instruction, as AlpacaEval; both: each pair twice.")] = OrdersName.one,
    prompt: Annotated[Path | None, typer.Option(metavar="FILE", show_default=False, help="A published prompt, in place of our wording.")] = None,
    retries: Annotated[int, typer.Option(min=0, help="How often an answer that cannot be read is asked for again.")] = 2,
    flipped: Annotated[float, typer.Option(min=0, max=0.5, metavar="SHARE", help="Of labels that chance turns round; AlpacaFarm: 0.25.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of order, pool and chance, as alpaca_eval's, and of the judge.")] = 0,
    first: Annotated[int | None, typer.Option(min=1, metavar="N", show_default=False, help="Judge the first N instructions only.")] = None,
    common: Annotated[bool, typer.Option("--common", help="Judge the instructions both have, where they differ.")] = False,
    out: Annotated[Path | None, typer.Option(metavar="FILE", show_default=False, help="Write labels as alpaca_eval's annotations.json.")] = None,
    replies: Replies = None,
    tables: TablesFolder = None,
    as_json: AsJson = False,
) -> None:
    """Win rate of a model's outputs against another's, by a judge. Answers are kept as they come: run it again, and nothing is asked twice.

    Examples:

      xwin eval judge mine.json --against davinci003 --judge remote:gpt-4-0613 --out annotations.json

      xwin eval judge mine.json --against theirs.json --judge remote:my-judge --endpoint http://localhost:8000/v1 --key ""

      xwin eval judge mine.json --against theirs.json --judge reward:runs/tiny-s0:rm --json

      xwin eval judge mine.json --against davinci003 --judge remote:gpt-4-0613 --judge judge.yaml --flipped 0.25
    """
    from xwin.run.storage import write_atomic
    from xwin.suites._alpaca_win_rate import standing
    from xwin.suites._judged_pairs import account, annotation_rows, judged_pairs, labels_of
    from xwin.suites._outputs import same_questions

    require_place(out)
    mine, theirs = _outputs(file, tables), _outputs(against, tables)
    if not common:
        same_questions(mine, theirs)
    theirs = replace(theirs, texts=dict(_shared(theirs, mine)[:first]))
    asked = {"style": style.value, "orders": orders.value, "prompt": prompt, "retries": retries, "seed": seed}
    asking = _varied([find_judge(name, endpoint, key, replies, **asked) for name in dict.fromkeys(who)], flipped, seed)
    with progress(asking.name, len(theirs.texts) * (1 + (orders is OrdersName.both))) as told:
        judged = judged_pairs(theirs, mine, asking, told)
    found = account(judged)
    if out is not None:
        write_atomic(out, json.dumps(annotation_rows(judged, theirs.model, mine.model, asking.name), indent=2) + "\n")
    row = standing(labels_of(judged, mine.model, mine.source))
    about = {"name": asking.name, "against": theirs.model} | _described(asking)
    if as_json:
        print(json.dumps({"models": [public(row)], "judge": about, "account": _known(asdict(found))}, allow_nan=False))
        return
    _show(row, theirs.model, found)


def judge_quality(  # noqa: PLR0913, PLR0917 - an option each
    files: Annotated[
        list[Path], typer.Argument(metavar="VOTES...", show_default=False, help="PandaLM's test set, LLMBar, re-annotations (.jsonl, .json, .gz).")
    ],
    who: Annotated[str, typer.Option("--judge", metavar="WHO", show_default=False, help=f"Ask this judge too, in both orders: {KINDS}.")] = "",
    endpoint: Endpoint = "https://api.openai.com/v1",
    key: KeyName = "OPENAI_API_KEY",
    style: Annotated[StyleName, typer.Option(help="ranking or token.")] = StyleName.ranking,
    seeds: Annotated[int | None, typer.Option(min=2, metavar="N", show_default=False, help="Ask it under N seeds too, for its variance.")] = None,
    replies: Replies = None,
    as_json: AsJson = False,
) -> None:
    """How far judges can be trusted: agreement with people, position bias, length bias, variance; published values of whole sets beside them.

    Examples:

      xwin eval judge-quality pandalm_testset.jsonl.gz llmbar.jsonl.gz

      xwin eval judge-quality llmbar.jsonl.gz --judge remote:gpt-4-0613
    """
    from xwin.suites._judge_quality import report
    from xwin.suites._judge_votes import asked_now, questions_for, read_votes

    if seeds is not None and not who:
        raise UserError("nobody is asked", "--seeds", "name a judge by --judge")
    sets = [read_votes(path) for path in files]
    asking = find_judge(who, endpoint, key, replies, style=style.value, orders="both", prompt=None, retries=2, seed=0) if who else None
    reports = []
    for votes in sets:
        own = []
        if asking is not None:
            with progress(asking.name, questions_for(asking, votes.pairs, seeds)) as told:
                own = [asked_now(asking, votes.pairs, told, seeds=seeds)]
        reports.append(report(votes, own))
    if as_json:
        print(json.dumps({"sets": [_known(asdict(each)) for each in reports]}, allow_nan=False))
        return
    for each in reports:
        _show_quality(each)


def find_judge(who: str, endpoint: str, key: str, replies: Path | None, **settings: Any) -> Judging:
    """The judge that a person named.

    Args:
        who: see KINDS.
        endpoint: of remote:NAME.
        key: environment variable with its key; "" for none.
        replies: where its answers are kept; None = in the cache folder.
        settings: style, orders, prompt, retries, seed.

    Raises:
        UserError: there is no such judge, or its settings are wrong.
    """
    from xwin.cli._judges import over_chat, over_reward_model

    if who.startswith("reward:"):
        return over_reward_model(who.removeprefix("reward:"))
    return over_chat(who, find_chat(who, endpoint, key, replies), settings)


def _varied(judges: Sequence[Judging], flipped: float, seed: int) -> Judging:
    """The judge, or several as a pool; with chance in it where that is asked for."""
    from xwin.scorers._annotators import Noisy, Pool

    one = judges[0] if len(judges) == 1 else Pool(judges, seed)
    return Noisy(one, flipped, seed) if flipped else one


def find_chat(who: str, endpoint: str, key: str, replies: Path | None) -> Chat:
    """Whom to ask: see KINDS, but no reward model, which cannot talk.

    Raises:
        UserError: there is nobody of this name, or the settings are wrong.
    """
    from xwin.cli._judges import over_endpoint, over_local, over_settings

    kept = replies or _default_replies()
    if who.endswith((".yaml", ".yml")):
        return over_settings(Path(who), kept)
    if who.startswith("remote:"):
        return over_endpoint(who.removeprefix("remote:"), endpoint, key, kept)
    return over_local(who, kept)


@contextmanager
def progress(name: str, total: int) -> Iterator[Callable[[int], None]]:
    """Shows on stderr how many questions were answered."""
    from xwin.run.console import Console

    with Console(json=True).progress(name, total, "questions") as shown:
        yield shown.advance


def require_place(path: Path | None) -> None:
    """Refuses a file that cannot be written, before anything is asked or paid.

    Raises:
        UserError: its folder does not exist, or it is a folder.
    """
    if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
        raise UserError("cannot be written there", str(path), "name a file in a folder that exists")


def _default_replies() -> Path:
    from xwin.models.hub import cache_folder

    return cache_folder() / "replies.sqlite"


def _outputs(text: str, tables: Path | None) -> Outputs:
    """The outputs that FILE, FILE:MODEL or the name of a public set means."""
    from xwin.suites._alpaca_tables import INSTRUCTIONS, REFERENCES, instructions
    from xwin.suites._outputs import pick_outputs, read_outputs

    file, model = file_and_model(text)
    named = text in REFERENCES
    folder = tables_folder(tables, [] if named else [file], needed=named)
    if named and folder is not None:
        (outputs,) = read_outputs(folder / INSTRUCTIONS, {}, REFERENCES[text])
        return replace(outputs, model=text)
    numbers = instructions(folder).numbers if folder else {}
    return pick_outputs(read_outputs(file, {number: words for words, number in numbers.items()}), model, str(file))


def _shared(first: Outputs, second: Outputs) -> list[tuple[str, str]]:
    """Instruction and output of the first, where the second has one too.

    Raises:
        DataError: there are none.
    """
    shared = [(text, output) for text, output in first.texts.items() if text in second.texts]
    if not shared:
        raise DataError("have no instruction in common", f"{first.source} and {second.source}")
    return shared


def _described(asking: Judging) -> dict[str, Any]:
    """What the judgements hang on, beside the model."""
    from xwin.scorers._annotators import Noisy, Pool
    from xwin.scorers._pairwise import ChatJudge

    if isinstance(asking, Noisy):
        return _described(asking.of) | {"flipped": asking.flipped, "seed": asking.seed}
    if isinstance(asking, Pool):
        return {"pool": [{"name": judge.name} | _described(judge) for judge in asking.judges], "seed": asking.seed}
    if not isinstance(asking, ChatJudge):
        return {}
    asked = asking.asking
    return {
        "orders": asking.orders,
        "retries": asked.retries,
        "seed": asked.seed,
        "prompt": asking.prompt.digest,
        "sampling": asked.sampling.settings(),
    }


def _show(row: Standing, against: str, found: Account) -> None:
    ends = "" if row.low is None or row.high is None else f" [{row.low:.2f}, {row.high:.2f}]"
    print(f"{row.model} against {against}: win rate {row.win_rate:.2f} %{ends}, {row.n_wins} won, {row.n_wins_base} lost, {row.n_draws} equal")
    for line in account_lines(found):
        print(line)


def _show_quality(found: Report) -> None:
    """A table per set. Published values are of whole sets: with fewer pairs they stand beside, and nobody can reproduce them."""
    from xwin.run.console import Console

    whole = found.n_full == found.n_pairs
    beside = "published" if whole else f"published, of all {found.n_full}: not reproducible from the {found.n_pairs} that are here"
    kappas = ", ".join(f"{name.removeprefix('kappa_')} {_shown(kappa, 4)}" for name, kappa in found.people.items())
    told = ", ".join(f"{value:.4f}" for value in found.people_published.values())
    people = f"; annotators agree with kappa {kappas}" + (f" ({beside}: {told})" if told else "") if kappas else ""
    print(f"{found.source}: {found.n_pairs} pairs{people}")
    header = ["judge", "part", "n", "unread", "agreement", "kappa", "first", "longer", "consistent", "variance", beside]
    Console().table("", header, [_quality_cells(row) for row in found.judges])
    print()


def _quality_cells(row: Quality) -> list[str]:
    shares = (row.prefers_first, row.prefers_longer, row.consistent, row.variance)
    told = ", ".join(f"{name} {value:g}" for name, value in row.published.items())
    measured = [_shown(row.agreement, 2), _shown(row.kappa, 3), *(_shown(share, 1) for share in shares)]
    return [row.judge, row.part, str(row.n), str(row.n_unread), *measured, told]


def _shown(found: Interval | None, digits: int) -> str:
    """Example: "53.6 [50.1, 57.0]"; "" where there is nothing."""
    if found is None:
        return ""
    ends = f" [{found.low:.{digits}f}, {found.high:.{digits}f}]" if found.low == found.low else ""
    return f"{found.value:.{digits}f}{ends}"


def _known(value: Any) -> Any:
    """The same for JSON, which has no nan: the end of an interval that is not known is null."""
    if isinstance(value, dict):
        return {name: _known(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_known(inner) for inner in value]
    return None if value != value else value


def account_lines(found: Account) -> list[str]:
    """How judgements came about, for people; what went wrong is never left out."""
    lines = [f"{found.n_pairs} pairs, {found.n_equal} of them equal texts; {found.n_questions} questions, {found.tokens:,} tokens"]
    if found.n_questions:
        lines[0] += f", ${found.usd:.4f} (${found.usd_now:.4f} of it now), {found.seconds / found.n_questions:.2f} s a question"
    if found.first_preferred is not None:
        lines.append(f"the output shown first was preferred {_shown(found.first_preferred.scaled(100), 1)} % (50: no position bias)")
    if found.consistent is not None:
        lines.append(f"both orders agree on {_shown(found.consistent.scaled(100), 1)} %")
    if found.n_drawn:
        lines.append(f"{found.n_drawn} labels were drawn by chance")
    if found.n_repeated:
        lines.append(f"{found.n_repeated} questions were asked again: their first answer could not be read")
    if found.n_unread:
        lines.append(f"{found.n_unread} pairs have no label and are left out ({found.n_refused} questions refused); answers that could not be read:")
        lines += [f"  {text[:160]!r}" for text in found.examples[:EXAMPLES]]
    return lines
