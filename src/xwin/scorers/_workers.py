"""Functions called in processes of their own, each call with a time limit. What hangs is killed, with every process it has started; no signal
comes here, so any thread may ask.

A worker is `python -m xwin.scorers._worker`; a line of JSON goes in, a line comes out. It starts when it is first needed.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

from xwin.scorers._outcome import ScorerError

START = 120.0
"""Seconds that a worker may take to import what it runs."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What a call gave: a value, or an error.  Example: Reply(True), Reply(None, "ValueError: no answer")"""

    value: Any
    error: str = ""


class Worker:
    """One process and what it starts. Not to be shared between threads.

    Args:
        target: "module:function", of one JSON value, giving one.
        seconds: time limit of a call.
        argument: when given, `target` is called with it once, at the start, and what it returns is the function.
    """

    def __init__(self, target: str, seconds: float, argument: str | None = None) -> None:
        self._command = (target,) if argument is None else (target, argument)
        self._seconds = seconds
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, task: Any) -> Reply:
        """The function's value for `task`, or what went wrong.

        Raises:
            ScorerError: the function cannot be imported.
        """
        self.start()
        line, late = self._exchange(json.dumps(task), self._seconds)
        if not line:
            self.close()
            return Reply(None, f"no result within {self._seconds:g} s" if late else "its process died")
        found = json.loads(line)
        return Reply(found.get("value"), found.get("error", ""))

    def start(self) -> None:
        """Starts the process, unless it runs.

        Raises:
            ScorerError: the function cannot be imported.
        """
        if self._process is not None:
            return
        command = [sys.executable, "-m", "xwin.scorers._worker", *self._command]
        self._process = subprocess.Popen(
            command, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
        )
        line, late = self._exchange(None, START)
        said = json.loads(line) if line else {"error": f"not imported within {START:g} s" if late else "its process died"}
        if "error" in said:
            self.close()
            raise ScorerError(f"cannot be imported: {said['error']}", self._command[-1], "run it by hand to see why")

    def close(self) -> None:
        """Ends the process and those it has started; the next call starts another."""
        if self._process is None:
            return
        process, self._process = self._process, None
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # it leads a session of its own
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        process.wait()

    def _exchange(self, line: str | None, seconds: float) -> tuple[bytes, bool]:
        """(the process's next line, whether it is late); an empty line when it is late or has died. Never waits for longer than `seconds`."""
        process, end = self._process, time.monotonic() + seconds
        assert process is not None and process.stdin is not None and process.stdout is not None
        try:
            if line is not None:
                _write(process.stdin.fileno(), line.encode() + b"\n", end)
            return _read_line(process.stdout.fileno(), end), False
        except BrokenPipeError:
            return b"", False
        except TimeoutError:
            return b"", True


def _write(descriptor: int, data: bytes, end: float) -> None:
    os.set_blocking(descriptor, False)
    while data:
        _await(descriptor, select.POLLOUT, end)
        data = data[os.write(descriptor, data) :]


def _read_line(descriptor: int, end: float) -> bytes:
    """A line, or nothing when the writer is gone before its end."""
    found = bytearray()
    while not found.endswith(b"\n"):
        _await(descriptor, select.POLLIN, end)
        fresh = os.read(descriptor, 1 << 16)
        if not fresh:
            return b""
        found += fresh
    return bytes(found)


def _await(descriptor: int, event: int, end: float) -> None:
    """Until the pipe is ready, or broken.

    Raises:
        TimeoutError: it is `end`, by the monotonic clock.
    """
    poll = select.poll()
    poll.register(descriptor, event)
    if not poll.poll(max(end - time.monotonic(), 0.0) * 1000):
        raise TimeoutError


class Workers:
    """Several workers of one function.

    Args:
        target: see Worker.
        seconds: time limit of a call.
        count: processes at most.
        argument: see Worker.
    """

    def __init__(self, target: str, seconds: float, count: int, argument: str | None = None) -> None:
        self._workers = [Worker(target, seconds, argument) for _ in range(count)]
        self.close = weakref.finalize(self, _close, self._workers)
        """Ends the processes; called when this object goes, at the latest when Python exits."""

    def start(self) -> None:
        """Starts one of them, to see that it can be.

        Raises:
            ScorerError: the function cannot be imported.
        """
        self._workers[0].start()

    def ask(self, tasks: Sequence[Any]) -> list[Reply]:
        """One reply per task, in order; each is waited for no longer than the time limit once a worker has taken it up.

        Raises:
            ScorerError: the function cannot be imported.
        """
        if not tasks:
            return []
        idle: SimpleQueue[Worker] = SimpleQueue()
        for worker in self._workers:
            idle.put(worker)

        def one(task: Any) -> Reply:
            worker = idle.get()
            try:
                return worker.ask(task)
            finally:
                idle.put(worker)

        with ThreadPoolExecutor(len(self._workers)) as pool:
            return list(pool.map(one, tasks))


def _close(workers: Sequence[Worker]) -> None:
    for worker in workers:
        worker.close()
