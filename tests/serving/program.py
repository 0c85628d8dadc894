"""`xwin serve` in a process of its own, over a real model."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

PROGRAM = [sys.executable, "-c", "from xwin.cli.main import main; main()"]


@dataclass
class Program:
    """Where it listens."""

    url: str
    process: subprocess.Popen[str]


@contextmanager
def serving(*arguments: str, **environment: str) -> Iterator[Program]:
    """The program, until the block ends: then SIGTERM stops it, and it must end well."""
    settings: dict[str, Any] = {"stdout": subprocess.PIPE, "text": True, "env": {**os.environ, **environment}}
    with subprocess.Popen([*PROGRAM, "serve", "--port", "0", *arguments], **settings) as process:
        try:
            assert process.stdout is not None
            found = re.search(r"http://\S+(?=/v1)", process.stdout.readline())
            assert found, "it ended before it listened"
            yield Program(found[0], process)
        finally:
            process.terminate()
            said, _ = process.communicate()
        assert (process.returncode, said.splitlines()[-1:]) == (0, ["stopped"])
