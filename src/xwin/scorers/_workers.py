"""Functions called in processes of their own, each call with a time limit. What hangs is killed; no signal is used, so any thread may ask.

A worker is `python -m xwin.scorers._worker`; a line of JSON goes in, a line comes out. It starts when it is first needed.
"""

from __future__ import annotations

import json
import subprocess
import sys
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Event, Timer
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
    """One process. Not to be shared between threads.

    Args:
        target: "module:function", of one JSON value, giving one.
        seconds: time limit of a call.
    """

    def __init__(self, target: str, seconds: float) -> None:
        self._target, self._seconds = target, seconds
        self._process: subprocess.Popen[str] | None = None

    def ask(self, task: Any) -> Reply:
        """The function's value for `task`, or what went wrong.

        Raises:
            ScorerError: the function cannot be imported.
        """
        if self._process is None:
            self._start()
        line, late = self._exchange(json.dumps(task), self._seconds)
        if late or not line:
            self.close()
        if not line:
            return Reply(None, f"no result within {self._seconds:g} s" if late else "its process died")
        found = json.loads(line)
        return Reply(found.get("value"), found.get("error", ""))

    def close(self) -> None:
        """Ends the process; the next call starts another."""
        if self._process is None:
            return
        process, self._process = self._process, None
        process.kill()
        process.communicate()

    def _start(self) -> None:
        command = [sys.executable, "-m", "xwin.scorers._worker", self._target]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        line, late = self._exchange(None, START)
        said = json.loads(line) if line else {"error": f"not imported within {START:g} s" if late else "its process died"}
        if "error" in said:
            self.close()
            raise ScorerError(f"cannot be imported: {said['error']}", self._target, "run it by hand to see why")

    def _exchange(self, line: str | None, seconds: float) -> tuple[str, bool]:
        """(the process's next line, whether it was killed for being late); an empty line when it died."""
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        expired = Event()

        def end() -> None:
            expired.set()
            process.kill()

        timer = Timer(seconds, end)
        timer.start()
        try:
            if line is not None:
                process.stdin.write(line + "\n")
                process.stdin.flush()
            said = process.stdout.readline()
        except BrokenPipeError:
            said = ""
        finally:
            timer.cancel()
            timer.join()
        return (said if said.endswith("\n") else ""), expired.is_set()


class Workers:
    """Several workers of one function.

    Args:
        target: see Worker.
        seconds: time limit of a call.
        count: processes at most.
    """

    def __init__(self, target: str, seconds: float, count: int) -> None:
        self._workers = [Worker(target, seconds) for _ in range(count)]
        self.close = weakref.finalize(self, _close, self._workers)
        """Ends the processes; called when this object goes, at the latest when Python exits."""

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
