"""The process behind a Worker: imports the function it is told, answers each line of JSON with one, ends with its input."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from threading import Thread
from typing import Any, TextIO

from xwin.scorers._named import named


def main() -> None:
    """Serves the function named by the first argument, or, with a second one, what that function makes of it.

    Tasks and answers have descriptors of their own, which no process started here inherits. What is printed by whatever means goes to the
    standard error stream, and the standard input is empty: neither can get between tasks and answers.
    """
    tasks, answers = os.fdopen(os.dup(0), encoding="utf-8"), os.fdopen(os.dup(1), "w", encoding="utf-8")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    os.close(nothing)
    Thread(target=_watch, args=(os.getppid(),), daemon=True).start()
    try:
        function = _found(*sys.argv[1:])
    except Exception as error:  # noqa: BLE001 - whatever importing someone's module raises is reported to the parent
        _say(answers, {"error": f"{type(error).__name__}: {error}"})
        return
    _say(answers, {"value": "ready"})
    for line in tasks:
        _say(answers, _call(function, json.loads(line)))


def _watch(parent: int) -> None:
    """Ends this process and what it has started when the one that asks is gone: killed in the middle of a call, it can enforce no time limit."""
    while os.getppid() == parent:
        time.sleep(1)
    os.killpg(0, signal.SIGKILL)


def _found(target: str, argument: str | None = None) -> Callable[[Any], Any]:
    return named(target) if argument is None else named(target)(argument)


def _call(function: Callable[[Any], Any], task: Any) -> dict[str, Any]:
    try:
        return {"value": function(task)}
    except Exception as error:  # noqa: BLE001 - a function of the user may raise anything; the parent decides what it means
        return {"error": f"{type(error).__name__}: {error}"}


def _say(answers: TextIO, value: dict[str, Any]) -> None:
    answers.write(json.dumps(value) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
