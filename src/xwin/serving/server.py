"""The process around the application: uvicorn in a thread, signals in the main one, and an end that leaves nobody without a word."""

from __future__ import annotations

import socket
import threading
from collections.abc import Sequence

import uvicorn
from starlette.types import ASGIApp

from xwin.errors import Failure, UserError
from xwin.run.signals import StopFlag
from xwin.serving.served import Served

TICK = 0.1
"""Seconds between two looks at the flag."""
PARTING = 2.0
"""Seconds in which clients are told that the server stops."""


def listen(host: str, port: int) -> socket.socket:
    """A socket at an address; port 0 = a free one.

    Raises:
        UserError: the address is taken, or there is none of this name.
    """
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        fix = "choose another --port, or --port 0 for a free one; --host 127.0.0.1 is this machine alone"
        raise UserError(f"cannot listen there: {error.strerror}", f"{host}:{port}", fix) from None


def run(app: ASGIApp, models: Sequence[Served], at: socket.socket, flag: StopFlag, *, grace: float) -> None:
    """Serves until the flag is set. Then nobody new is let in, and who is being answered has `grace` seconds; the rest are told.

    Args:
        app: the application.
        models: its models.
        at: where it listens; closed at the end.
        flag: asks to stop.
        grace: seconds.

    Raises:
        Failure: the server ended by itself.
    """
    # uvicorn's own log_config would close the handlers of everybody in this process, and waits for whoever holds one
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, log_level="warning", access_log=False, server_header=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [at]}, daemon=True)
    thread.start()
    while thread.is_alive() and not flag.is_set:
        thread.join(TICK)
    ended, server.should_exit = not flag.is_set, True
    thread.join(grace)
    _close(models)
    thread.join(PARTING)
    server.force_exit = True
    thread.join(PARTING)
    at.close()
    if ended:
        raise Failure("the server ended by itself", fix="what was printed before says why")


def _close(models: Sequence[Served]) -> None:
    for served in models:
        served.desk.close()


def address(at: socket.socket) -> str:
    """Example: http://127.0.0.1:8000"""
    host, port = at.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
