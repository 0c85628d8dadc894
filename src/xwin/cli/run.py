"""`xwin run` and `xwin plan`: carry out a recipe, or say what would be done."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="A YAML file, for instance recipes/tiny.yaml.", show_default=False)]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one setting of the recipe: --set ppo.objective.clip=0.1 --set seed=3. May be repeated."),
]
Folder = Annotated[Path | None, typer.Option("--dir", metavar="FOLDER", help="The run directory. Default: runs/<name>-s<seed>.")]
Gpu = Annotated[str | None, typer.Option("--gpu", metavar="NAME", help="Estimate for this GPU (h100, a100 ...) instead of this machine.")]
Count = Annotated[int | None, typer.Option("--count", metavar="N", min=1, help="How many of them. Default: 1.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else on stdout.")]


def register(app: typer.Typer) -> None:
    """Adds the commands `run` and `plan`."""
    app.command("run")(run)
    app.command("plan")(plan)


def run(recipe: RecipeFile, sets: Sets = None, folder: Folder = None, as_json: AsJson = False) -> None:
    """Carry out a recipe: every stage in order, then a table and a report.

    What is finished is skipped, what was stopped goes on at its last checkpoint, and a changed setting runs only the stages it
    reaches. Ctrl-C stops at the next safe point after writing a checkpoint; a second Ctrl-C stops at once.

    Examples:

      xwin run recipes/tiny.yaml

      xwin run recipes/tiny.yaml --set seed=1 --set ppo.steps=20
    """
    from xwin.recipe.execute import run as execute
    from xwin.run.console import Console
    from xwin.run.facts import facts

    done = execute(recipe, sets or [], folder, Console(json=as_json))
    if as_json:
        print(json.dumps(facts(done.path), ensure_ascii=False, allow_nan=False))


def plan(  # noqa: PLR0913, PLR0917 - the options of a command
    recipe: RecipeFile,
    sets: Sets = None,
    folder: Folder = None,
    gpu: Gpu = None,
    count: Count = None,
    as_json: AsJson = False,
) -> None:
    """Say what `xwin run` would do: stages, what they need, what is done already, memory and time. Loads no weights.

    Every mistake of the recipe is listed, with its line and what to do about it. Memory and time are estimates, for this machine or for GPUs by
    name; docs/scaling.md says how they are made and how well they agree with what was measured.

    Examples:

      xwin plan recipes/tiny.yaml

      xwin plan recipes/tiny.yaml --set ppo.objective.clip=0.1

      xwin plan recipes/tiny.yaml --gpu h100 --count 8
    """
    from xwin.recipe._machines import chosen
    from xwin.recipe._needs import needs, needs_table
    from xwin.recipe.plan import default_directory, make_plan, plan_json, plan_table
    from xwin.recipe.schema import read_recipe
    from xwin.run.console import Console
    from xwin.run.directory import RunDirectory

    machine = chosen(gpu, count)
    read = read_recipe(recipe, sets or [])
    made = make_plan(read, RunDirectory(folder or default_directory(read)))
    needed = needs(made, machine)
    if as_json:
        print(plan_json(made, {"machine": needed.machine_json(), "estimates": needed.to_json()}))
        return
    console = Console()
    console.table(*plan_table(made))
    if needed.stages:
        console.message("")
        console.table(*needs_table(needed))
        for note in needed.notes():
            console.message(note)
