"""The program run in the process of a test."""

import sys

import pytest

from xwin.cli.main import main


def xwin(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Runs the program in this process.

    Returns:
        Its exit code.
    """
    monkeypatch.setattr(sys, "argv", ["xwin", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    return int(caught.value.code or 0)
