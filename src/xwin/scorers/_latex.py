"""Whether two formulas are equal, by math-verify. Runs in a worker process: sympy may take for ever, and the worker may be killed."""

from __future__ import annotations

from collections.abc import Sequence

from math_verify import parse, verify


def same(pair: Sequence[str]) -> bool:
    """pair: (right answer, given answer), LaTeX without dollars. The order matters to math-verify: its first argument is the truth.

    Its own time limits are off: they are signals, and whoever runs this has a limit of its own.
    """
    right, given = (parse(f"${text}$", parsing_timeout=0) for text in pair)
    return bool(right) and bool(given) and verify(right, given, timeout_seconds=0)
