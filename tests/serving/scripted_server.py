"""A real HTTP server in this process, over a scripted model that does what the last message says."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from xwin.data.template import Template
from xwin.engines.base import Engine, Request
from xwin.engines.scripted import ScriptedBatcher, ScriptedEngine
from xwin.run.signals import StopFlag
from xwin.serving.api import Limits, make_app
from xwin.serving.meters import Meters
from xwin.serving.served import open_desk
from xwin.serving.server import address, listen, run

STEP = 0.02
"""Seconds between two tokens of an endless answer."""


@dataclass
class Obedient(ScriptedEngine):
    """Repeats the last message byte by byte; or writes x for ever, or fails at its third token, or ends its thread, if the message says so."""

    words: Any = None

    def batcher(self, tokens: int) -> ScriptedBatcher:
        return ScriptedBatcher(self.rule, self.stop, tokens)

    def rule(self, request: Request) -> Iterator[tuple[int, float]]:
        text = self.words.decode(request.prompt.tokens).rpartition("USER: ")[2].removesuffix(" ASSISTANT:")
        if text == "endless":
            while True:
                time.sleep(STEP)
                yield 3 + ord("x"), -0.5
        for number, byte in enumerate(text.encode()):
            if text.startswith("poison") and number == 2:
                raise RuntimeError("a row of nonsense")
            if text == "die":
                raise AssertionError("nothing that a step may raise")
            yield 3 + byte, -0.25
        yield self.stop[0], -0.125


@dataclass
class Shared(Obedient):
    """All its batchers are one, as those of vLLM are parts of one engine: a request that nobody dropped goes on."""

    only: list[ScriptedBatcher] = field(default_factory=list)

    def batcher(self, tokens: int) -> ScriptedBatcher:
        self.only = self.only or [super().batcher(tokens)]
        return self.only[0]


@dataclass
class Running:
    """Where it is."""

    url: str
    meters: Meters
    flag: StopFlag
    thread: threading.Thread

    def post(self, path: str, **body: Any) -> httpx.Response:
        return httpx.post(f"{self.url}{path}", json={"model": "echo", **body}, timeout=60)

    def chat(self, text: str, **body: Any) -> httpx.Response:
        return self.post("/v1/chat/completions", messages=[{"role": "user", "content": text}], **body)

    def metric(self, name: str) -> float:
        """The value of a number that has the label model alone."""
        lines = httpx.get(f"{self.url}/metrics", timeout=60).text.splitlines()
        return float(next(line.rpartition(" ")[2] for line in lines if line.startswith(f'{name}{{model="echo"}}')))

    def until(self, name: str, value: float) -> None:
        """Waits for a number; a test that waits in vain fails by its own time limit."""
        while self.metric(name) != value:
            time.sleep(0.02)


@contextmanager
def scripted_server(
    folder: Path,
    words: Template,
    *,
    engine: Engine | None = None,
    places: int = 8,
    limits: Limits | None = None,
    key: str = "",
    grace: float = 5.0,
) -> Iterator[Running]:
    """The server, until the block ends; over an obedient engine, unless another one is given."""
    engine, meters, flag = engine or Obedient({}, [], words.stop, words=words), Meters(), StopFlag()
    served = open_desk("echo", folder, words, engine, (1024, places), meters.faults.labels("echo").inc)
    app = make_app({"echo": served}, limits or Limits(), meters, key=key)
    at = listen("127.0.0.1", 0)
    thread = threading.Thread(target=run, args=(app, [served], at, flag), kwargs={"grace": grace})
    thread.start()
    try:
        yield Running(address(at), meters, flag, thread)
    finally:
        flag.signal = flag.signal or 15
        thread.join()
