"""`xwin explain`: everything a recipe can say, from the docstrings of the code itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console


def register(app: typer.Typer) -> None:
    """Adds the command `explain`."""
    app.command("explain")(explain)


def explain(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="A kind, or a setting of it. Without it: the list of all kinds.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the page of all objectives and credit, docs/objectives.md.")] = False,
) -> None:
    """Say what a kind or a setting means: its type, default, range and unit.

    Examples:

      xwin explain                      every stage, objective, scorer, engine and credit

      xwin explain rl                   the settings of the stage rl

      xwin explain ppo.clip             one setting

      xwin explain objectives/sft       the objective, where a stage has the same name
    """
    from rich.console import Console

    from xwin.recipe.explain import FAMILIES, Page, all_kinds
    from xwin.recipe.explain import explain as pages_of
    from xwin.recipe.explain import markdown as page_of_math

    console = Console(highlight=False)
    if markdown:
        typer.echo(page_of_math(), nl=False)
        return
    if name is None:
        lines = all_kinds()
        for family, meaning in FAMILIES.items():
            found = {line.name: line.text for line in lines if line.family == family}
            _show(console, f"{family}: {meaning}", [[kind, text] for kind, text in found.items()])
        console.print("`xwin explain NAME` shows the settings of one; `recipe` and `models` are names too.", markup=False)
        return
    pages: list[Page] = pages_of(name)
    for page in pages:
        console.print(f"\n{page.title}", style="bold", markup=False)
        if page.text:
            console.print(page.text, markup=False)
        rows = [[s.name, s.type + (f", {s.limits}" if s.limits else ""), s.default, s.text] for s in page.settings]
        if rows:
            _show(console, "", [["setting", "type", "default", "meaning"], *rows])


def _show(console: Console, title: str, rows: list[list[str]]) -> None:
    """Rows as aligned columns."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, title=title or None, title_justify="left", title_style="bold", padding=(0, 2, 0, 0))
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)
