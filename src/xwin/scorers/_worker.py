"""The process behind a Worker: imports the function it is told, answers each line of JSON with one, ends with its input."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable
from typing import Any

from xwin.scorers._named import named


def main() -> None:
    """Serves the function named by the first argument. What the function prints goes to the standard error stream, not among the answers."""
    answers = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):
        try:
            function = named(sys.argv[1])
        except Exception as error:  # noqa: BLE001 - whatever importing someone's module raises is reported to the parent
            _say(answers, {"error": f"{type(error).__name__}: {error}"})
            return
        _say(answers, {"value": "ready"})
        for line in sys.stdin:
            _say(answers, _call(function, json.loads(line)))


def _call(function: Callable[[Any], Any], task: Any) -> dict[str, Any]:
    try:
        return {"value": function(task)}
    except Exception as error:  # noqa: BLE001 - a function of the user may raise anything; the parent decides what it means
        return {"error": f"{type(error).__name__}: {error}"}


def _say(answers: Any, value: dict[str, Any]) -> None:
    answers.write(json.dumps(value) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
