"""`xwin init`: a starter recipe for a person's own data, with sizes that fit it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Annotated

import typer

from xwin.errors import DataError, ModelError, UserError, XwinError

if TYPE_CHECKING:
    from xwin.models.hub import ModelSource

CONVERSATIONS = Template("""\
# Teaches the model to answer as in $data: $rows conversations, answers of $length characters on average.
#
#   xwin plan $recipe          what it will do
#   xwin run $recipe           do it; run it again and what is done is skipped
#   xwin chat runs/$name-s0:sft          talk to the result
#   xwin explain sft                     everything that can be set

name: $name
seed: 0

models:
  base: $model

stages:
  sft:
    kind: sft
    init: base
    data: $data
    epochs: $epochs
    # validation: ./held-out.jsonl       rows that training does not see; then the best checkpoint is kept
""")

PREFERENCES = Template("""\
# Teaches a reward model which answers are better, from $data: $rows preferences, answers of $length characters on average.
#
#   xwin plan $recipe          what it will do
#   xwin run $recipe           do it; run it again and what is done is skipped
#   xwin explain reward_model            everything that can be set

name: $name
seed: 0

models:
  base: $model

stages:
  rm:
    kind: reward_model
    init: base
    data: $data
    # validation: ./held-out.jsonl       pairs of prompts that training does not see; then the best checkpoint is kept
""")


@dataclass(frozen=True, slots=True)
class Contents:
    """What a data file holds."""

    starter: Template
    rows: int
    length: float
    """Mean length of the last answers, characters."""
    format: str
    """Its name, and why it is taken for it."""


def register(app: typer.Typer) -> None:
    """Adds the command `init`."""
    app.command("init")(init)


def init(
    data: Annotated[Path, typer.Option("--data", metavar="FILE", help="Conversations or preferences, in any format that `xwin data check` knows.")],
    model: Annotated[str, typer.Option("--model", metavar="M", help="./folder, hf:org/name or pypi:name==version.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Where the recipe is written.")] = Path("recipe.yaml"),
) -> None:
    """Write a starter recipe for your own data. Checks every row first; a wrong one is named by its line.

    Rows are conversations or preferences in any published format, for instance {"messages": [{"role": "user", "content": "..."},
    {"role": "assistant", "content": "..."}]} or {"prompt": "...", "chosen": "...", "rejected": "..."}. `xwin data check` shows what a file holds.

    Examples:

      xwin init --data chats.jsonl --model hf:org/name

      xwin init --data pairs.jsonl --model ./my-model --out pairs.yaml
    """
    if out.exists():
        raise UserError("exists already", str(out), "choose another name with --out, or remove it")
    contents = read_contents(data)
    text = starter(contents, data, model, out)
    _write_checked(out, text)
    typer.echo(f"wrote {out}: {contents.rows} rows of {data} ({contents.format})\nnext: xwin plan {out}, then xwin run {out}")


def read_contents(path: Path) -> Contents:
    """Finds out what a data file holds and checks every row.

    Raises:
        DataError: the format is not known, or rows cannot be used; names file and rows.
    """
    from xwin.data.files import open_table
    from xwin.data.formats import Makes
    from xwin.data.sources import find_format, load
    from xwin.models.hub import cache_folder

    cache = cache_folder() / "data"
    found = find_format(open_table(path, cache=cache), None, None).detected
    said = f"{found.format.name}: {found.reason}"
    if found.format.makes is Makes.PREFERENCES:
        pairs = load(str(path), makes=Makes.PREFERENCES, cache=cache, format=found.format.name)
        return Contents(PREFERENCES, len(pairs), _mean([len(row.chosen.text) for row in pairs]), said)
    rows = load(str(path), makes=Makes.CONVERSATIONS, cache=cache, format=found.format.name)
    silent = next((row.id for row in rows if row.messages[-1].role != "assistant"), None)
    if silent is not None:
        raise DataError(f"the conversation '{silent}' has no answer to learn from", str(path), "end each conversation with an assistant's turn")
    return Contents(CONVERSATIONS, len(rows), _mean([len(row.messages[-1].text) for row in rows]), said)


def starter(contents: Contents, data: Path, model: str, out: Path) -> str:
    """The text of the recipe. Few rows are seen more often: three passes below a thousand, two below twenty thousand, else one.

    Raises:
        ModelError: `model` is not a model, or a packaged one that was never fetched.
    """
    epochs = 3 if contents.rows < 1_000 else 2 if contents.rows < 20_000 else 1
    return contents.starter.substitute(
        data=_relative(data, out),
        rows=contents.rows,
        length=round(contents.length),
        recipe=out,
        name=re.sub(r"[^A-Za-z0-9_-]+", "-", data.stem).strip("-") if data.stem[:1].isalpha() else f"run-{re.sub('[^A-Za-z0-9_-]+', '-', data.stem)}",
        model=_model_line(model, out),
        epochs=epochs,
    )


def _model_line(model: str, out: Path) -> str:
    """An entry of `models:`; a packaged model gets the digest that is known from fetching it."""
    from xwin.models.hub import require_pinned

    path = _relative(Path(model), out) if model.startswith((".", "/")) else model
    try:
        require_pinned(_source(path))
    except ModelError as error:
        known = re.search(r"sha256: ([0-9a-f]{64})", error.fix)
        if known is None:
            raise
        return f'{{path: "{path}", sha256: {known[1]}}}'
    return f'{{path: "{path}"}}'


def _source(path: str) -> ModelSource:
    from pydantic import ValidationError

    from xwin.models.hub import ModelSource

    try:
        return ModelSource(path=path)
    except ValidationError as error:
        raise ModelError(error.errors()[0]["msg"], "--model") from None


def _relative(path: Path, out: Path) -> str:
    """The path as a recipe in the folder of `out` names it: ./x, ../x."""
    found = Path(os.path.relpath(path.absolute(), out.absolute().parent)).as_posix()
    return found if found.startswith("..") else f"./{found}"


def _write_checked(out: Path, text: str) -> None:
    """Writes the recipe and plans it; one that does not plan is taken back.

    Raises:
        XwinError: what is wrong with it: the model's folder is missing, for instance.
    """
    from xwin.recipe.plan import default_directory, make_plan
    from xwin.recipe.schema import read_recipe
    from xwin.run.directory import RunDirectory
    from xwin.run.storage import write_atomic

    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, text)
    try:
        read = read_recipe(out)
        make_plan(read, RunDirectory(default_directory(read)))
    except XwinError:
        out.unlink()
        raise


def _mean(values: list[int]) -> float:
    return sum(values) / len(values)
