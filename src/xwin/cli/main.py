"""The program `xwin`: one command per file of this folder. An error of ours is one clear message; anything else keeps its traceback."""

from __future__ import annotations

import errno
import sys
import traceback
from types import TracebackType
from typing import Annotated

import typer

from xwin.cli import chat, data, eval, explain, export, generate, init, report, run, serve
from xwin.errors import OutOfMemory, StorageError, XwinError
from xwin.run.secrets import hidden

HELP = """Align language models: from base model to report with one command.

Start here:

  xwin run recipes/tiny.yaml      a whole chain on two CPU cores

  xwin plan recipes/tiny.yaml     what it would do, without doing it

  xwin explain                    everything a recipe can say

  xwin init --help                a starter recipe for your own data

Run the same command again and what is finished is skipped; stop it at any moment and it goes on where it stopped.
"""

app = typer.Typer(help=HELP, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
for module in (run, explain, data, init, report, chat, generate, serve, export, eval):
    module.register(app)


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"xwin-lm {version('xwin-lm')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")] = False,
) -> None:
    """Options of the program itself."""
    sys.excepthook = _unexpected  # typer has just set its own


def main() -> None:
    """Runs the command line. Exit codes: 0 done, 2 something to change, 1 a failure, 130 and 143 stopped by Ctrl-C and SIGTERM."""
    try:
        app()
    except XwinError as error:
        sys.exit(_said(error))
    except MemoryError:
        fix = "smaller batches (tokens_per_batch) or a smaller model need less; `xwin explain` says what each setting does"
        sys.exit(_said(OutOfMemory("there is not enough memory", fix=fix)))
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT, errno.EROFS}:
            raise
        fix = "free some space and run the same command again: what is finished is kept"
        sys.exit(_said(StorageError(f"cannot write: {error.strerror}", str(error.filename or ""), fix)))


def _said(error: XwinError) -> int:
    """Prints the message.

    Returns:
        The exit code.
    """
    print(hidden(f"error: {error}" if error.exit_code in {1, 2} else str(error)), file=sys.stderr)
    return error.exit_code


def _unexpected(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Prints the traceback of what is a bug of ours, without secrets."""
    print(hidden("".join(traceback.format_exception(kind, error, trace))), end="", file=sys.stderr)
