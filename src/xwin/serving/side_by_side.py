"""Two or more chats at once: each line goes to every model, answers are written beside each other."""

from __future__ import annotations

from collections.abc import Generator, Iterable

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from xwin.errors import XwinError
from xwin.serving.chat import ChatSession, Shell

Stream = Generator[str, None, None]


def converse_with_all(sessions: dict[str, ChatSession], lines: Iterable[str], shell: Shell, screen: Console) -> None:
    """Answers line by line with every model until the lines end or the person leaves. Each keeps a conversation of its own.

    Args:
        sessions: name -> conversation.
        lines: what the person says; empty ones are passed over.
        shell: where notes go. With nobody there, answers are written one after the other, each after the name of its model.
        screen: where answers stand side by side when somebody is there.
    """
    for line in (line.strip() for line in lines):
        try:
            _turn(sessions, line, shell, screen)
        except XwinError as error:
            shell.note(str(error))
        if any(session.over for session in sessions.values()):
            return


def _turn(sessions: dict[str, ChatSession], line: str, shell: Shell, screen: Console) -> None:
    if line.startswith("/") and line != "/regenerate":
        for said in dict.fromkeys(session.command(line) for session in sessions.values()):
            if said:
                shell.note(said)
    elif line:
        streams = {name: s.regenerate() if line == "/regenerate" else s.answer(line) for name, s in sessions.items()}
        if shell.interactive:
            _beside(streams, shell, screen)
        else:
            _below(streams, shell)


def _below(streams: dict[str, Stream], shell: Shell) -> None:
    for name, stream in streams.items():
        shell.write(f"{name}: ")
        try:
            for piece in stream:
                shell.write(piece)
        except XwinError as error:
            shell.note(f"{name}: {error}")
        shell.write("\n")


def _beside(streams: dict[str, Stream], shell: Shell, screen: Console) -> None:
    """Pieces in turn, so that all are read at once. Ctrl-C stops all answers; a model that fails does not stop the others."""
    texts, live = dict.fromkeys(streams, ""), dict(streams)
    try:
        with Live(console=screen, transient=True, auto_refresh=False) as shown:
            while live:
                for name in tuple(live):
                    texts[name] += _next(name, live, shell)
                shown.update(_columns(texts), refresh=True)
    except KeyboardInterrupt:
        texts = {name: text + " ..." * (name in live) for name, text in texts.items()}
    finally:
        for stream in streams.values():
            stream.close()
    screen.print(_columns(texts))


def _next(name: str, live: dict[str, Stream], shell: Shell) -> str:
    """The next piece of an answer. One that has ended, or failed, which is told, is live no more."""
    try:
        return next(live[name])
    except StopIteration:
        del live[name]
    except XwinError as error:
        shell.note(f"{name}: {error}")
        del live[name]
    return ""


def _columns(texts: dict[str, str]) -> Table:
    table = Table.grid(padding=(0, 2), expand=True)
    for _ in texts:
        table.add_column(ratio=1, overflow="fold")
    table.add_row(*(Text(name, "bold cyan") for name in texts))
    table.add_row(*(Text(text) for text in texts.values()))
    return table
