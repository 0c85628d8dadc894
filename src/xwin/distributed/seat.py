"""Seat: one worker's process, as it is from inside. It has a place in a World, holds objects, and does with them what the driver asks."""

from __future__ import annotations

import os
import platform
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from xwin.distributed.world import World
from xwin.errors import XwinError
from xwin.run import memory
from xwin.run.manifest import versions


@dataclass(frozen=True)
class Facts:
    """What a worker says of itself before it joins the others.  Example: Facts("10.0.0.7", 4711, {"torch": "2.13.0"}, "k3v9")"""

    host: str
    pid: int
    versions: dict[str, str]
    """Package -> version of those that must be equal everywhere."""
    token: str
    """What it read where the driver wrote a token; empty when it sees no such file."""

    @property
    def place(self) -> str:
        """For a message.  Example: "10.0.0.7, process 4711" """
        return f"{self.host}, process {self.pid}"


@dataclass(frozen=True)
class Refused:
    """An error of ours in place of an answer, as it was raised."""

    error: XwinError


class Seat:
    """One worker.

    Args:
        rank: its number, from 0.
        size: how many there are.
    """

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        self._held: dict[int, Any] = {}
        self._world: World | None = None
        self._thread: int | None = None

    def facts(self, host: str, token: Path) -> Facts:
        """See Facts. `host` is the address of this machine."""
        try:
            seen = token.read_text(encoding="utf-8")
        except OSError:
            seen = ""
        return Facts(host, os.getpid(), package_versions(), seen)

    def tell(self, file: Path) -> None:
        """From now on everything that this process prints, libraries included, goes to a file."""
        log = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        for number in (1, 2):
            os.dup2(log, number)
        os.close(log)
        sys.stdout, sys.stderr = (os.fdopen(os.dup(number), "w", buffering=1, encoding="utf-8", errors="replace") for number in (1, 2))

    def address(self, host: str) -> str:
        """Where the others can meet this one: host and a port that is free now."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family) as door:
            door.bind(("", 0))
            return f"{host}:{door.getsockname()[1]}"

    def join(self, address: str, backend: Literal["gloo", "nccl"], limit: float) -> Refused | None:
        """Meets the others; see World.join."""
        return self._try(lambda: self._meet(World.join(self.rank, self.size, address, backend=backend, limit=limit)))

    def hold(self, key: int, make: Callable[[World], Any]) -> Refused | None:
        """Makes an object and keeps it."""
        world = self._world
        assert world is not None, "hold before join"
        return self._try(lambda: self._held.update({key: make(world)}))

    def do(self, what: Callable[..., Any], keys: Sequence[int], shares: Sequence[Any]) -> Any:
        """Calls `what` with the objects of these keys and its own share of the work."""
        return self._try(lambda: what(*[self._held[key] for key in keys], *shares))

    def drop(self, keys: Sequence[int] | None = None) -> None:
        """Lets go of the objects of these keys, None = of every one, and gives their memory back."""
        for key in list(self._held) if keys is None else keys:
            self._held.pop(key, None)
        memory.release()

    def where(self) -> str:
        """The line that the work is at.  Example: "distributed_c10d.py:2808 all_reduce". Asked while the work hangs, so it runs beside it."""
        frame = sys._current_frames().get(self._thread or 0)
        if frame is None:
            return "idle"
        last = traceback.extract_stack(frame)[-1]
        return f"{Path(last.filename).name}:{last.lineno} {last.name}"

    def _meet(self, world: World) -> None:
        self._world = world

    def _try(self, work: Callable[[], Any]) -> Any:
        self._thread = threading.get_ident()
        try:
            return work()
        except XwinError as error:
            return Refused(error)
        finally:
            self._thread = None


def package_versions() -> dict[str, str]:
    """Of what must be equal on all machines."""
    return versions() | {"ray": metadata.version("ray"), "machine": platform.machine()}
