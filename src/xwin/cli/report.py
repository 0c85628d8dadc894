"""`xwin report`: a run directory as one page, or its facts as JSON. Works while the run works and after a crash."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Adds the command `report`."""

    @app.command()
    def report(
        run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory, for instance runs/tiny-s0.", show_default=False)],
        as_json: Annotated[bool, typer.Option("--json", help="Print the facts as one JSON object instead of writing the page.")] = False,
        out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write the page here instead of RUN/report.html.")] = None,
    ) -> None:
        """Make one self-contained HTML page of a run, at any time, and print where it is."""
        if as_json:
            from xwin.run.facts import facts

            print(json.dumps(facts(run), ensure_ascii=False, allow_nan=False))
        if out is not None or not as_json:
            from xwin.run.report import write_report  # matplotlib: not for `--help`

            typer.echo(write_report(run, out), err=as_json)
