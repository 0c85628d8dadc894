"""A client's request while it is being answered: its answers grow in the desk's thread and arrive in the event loop."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from xwin.data.rollout import Prompt
from xwin.engines.base import NOT_FINITE, Request, Sampling, Token
from xwin.errors import Failure, XwinError
from xwin.seeds import derive
from xwin.serving._text import Growing
from xwin.serving.meters import Meters
from xwin.serving.served import Served


class Gone(XwinError):
    """The client went away."""


@dataclass
class Job:
    """Its answers: n to each prompt, those of a prompt side by side."""

    served: Served
    meters: Meters
    prompts: Sequence[tuple[int, ...]]
    answers: list[Growing]
    _arrived: asyncio.Queue[Token | XwinError] = field(default_factory=asyncio.Queue)
    _index: dict[str, int] = field(default_factory=dict)
    """Request -> its answer."""

    def start(self, sampling: Sampling, seed: int | None) -> None:
        """Asks the desk.

        Args:
            sampling: how answers are drawn.
            seed: None = another one each time.

        Raises:
            Full: come again later.
            Closed: it answers nobody any more.
        """
        name, root = secrets.token_hex(12), derive(secrets.randbits(62) if seed is None else seed, "serve")
        n, loop = len(self.answers) // len(self.prompts), asyncio.get_running_loop()
        requests = [Request(f"{name}-{i}-{k}", Prompt(str(i), p), sampling, root, k) for i, p in enumerate(self.prompts) for k in range(n)]
        self._index = {request.id: index for index, request in enumerate(requests)}

        def hear(heard: Token | XwinError) -> None:
            with suppress(RuntimeError):  # the server has stopped, and its event loop with it
                loop.call_soon_threadsafe(self._arrived.put_nowait, heard)

        self.served.desk.ask(requests, hear)
        self.meters.read.labels(self.served.name).inc(sum(map(len, self.prompts)))

    def leave(self) -> None:
        """The client went away: its places are free, and whoever waits for its answers hears Gone."""
        self._drop()
        self._arrived.put_nowait(Gone("the client went away"))

    async def grow(self) -> AsyncGenerator[int]:
        """The index of the answer that has grown, until all of them are whole. Whatever ends this frees the places.

        Raises:
            Gone: the client went away.
            XwinError: the model cannot answer.
        """
        begun, name, waiting = time.monotonic(), self.served.name, len(self.answers)
        first = True
        try:
            while waiting:
                heard = await self._arrived.get()
                if isinstance(heard, XwinError):
                    raise heard
                if heard.finish == "error":
                    raise Failure(NOT_FINITE)
                if first:
                    self.meters.first.labels(name).observe(time.monotonic() - begun)
                    first = False
                index = self._index[heard.request]
                self.answers[index].add(heard)
                self.meters.written.labels(name).inc()
                waiting -= heard.finish is not None
                yield index
            self.meters.whole.labels(name).observe(time.monotonic() - begun)
        except (Gone, asyncio.CancelledError, GeneratorExit):
            self.meters.left.labels(name).inc()
            raise
        finally:
            self._drop()

    def _drop(self) -> None:
        for request, index in self._index.items():
            if self.answers[index].finish is None:
                self.served.desk.drop(request)
