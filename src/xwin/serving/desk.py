"""A desk for each model: one thread owns its batcher, everybody else asks and hears by callbacks. A request that breaks a step fails alone."""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from xwin.engines.base import Batcher, Continuous, Request, Token
from xwin.errors import Failure, XwinError

FAULTS = (XwinError, RuntimeError, ValueError, LookupError, ArithmeticError, MemoryError)
"""What a forward pass may raise. Anything else ends the desk: nothing would be known of its state."""

Heard = Token | XwinError
Hear = Callable[[Heard], None]
"""Called in the desk's thread: a token, or why there will be no more of them."""

PATIENCE = 3
"""Failed steps that a request survives; then it is refused, for nobody is to blame alone and nothing else would end it."""

log = logging.getLogger(__name__)


class Full(XwinError):
    """As many requests are live or waiting as the desk takes."""


class Closed(Failure):
    """The desk answers nobody any more: the server stops, or the desk failed."""


@dataclass
class _Ask:
    """A request and what its client was told."""

    request: Request
    hear: Hear
    told: list[int] = field(default_factory=list)
    replayed: int = 0
    """How many tokens the present batcher has written for it: fewer than were told after a fault, when answers are begun again."""
    faults: int = 0
    """Failed steps that it was part of and not the cause of."""


class Desk:
    """Answers the requests of many clients together. Every method but the thread's own may be called from any thread."""

    def __init__(self, engine: Continuous, tokens: int, places: int, fault: Callable[[], None] = lambda: None) -> None:
        """A desk that is open at once.

        Args:
            engine: used by nobody else.
            tokens: the longest prompt and answer, together.
            places: how many requests may be live or waiting.
            fault: called when a step failed.
        """
        self.tokens, self.places = tokens, places
        self._engine, self._fault = engine, fault
        self._errands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._line: deque[_Ask] = deque()
        self._live: dict[str, _Ask] = {}
        self._batcher: Batcher = engine.batcher(tokens)
        self._lock, self._taken, self._over = threading.Lock(), 0, False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def open(self) -> bool:
        """Whether it answers."""
        return self._thread.is_alive() and not self._over

    @property
    def taken(self) -> int:
        """Requests live or waiting."""
        return self._taken

    def ask(self, requests: Sequence[Request], hear: Hear) -> None:
        """Puts requests in line, all or none.

        Raises:
            Full: there are not that many places; come again later.
            Closed: it answers nobody any more.
        """
        with self._lock:
            if not self.open:
                raise Closed("the model is not being served any more")
            if self._taken + len(requests) > self.places:
                raise Full(f"{self._taken} requests are being answered or wait, and there are {self.places} places")
            self._taken += len(requests)
            for request in requests:
                self._errands.put(partial(self._line.append, _Ask(request, hear)))

    def drop(self, request: str) -> None:
        """Forgets a request: its client went away. Unknown ids are fine."""
        self._errands.put(partial(self._drop, request))

    def close(self) -> None:
        """Ends the thread; whoever still waits hears Closed."""
        with self._lock:
            self._over = True
        self._errands.put(lambda: None)
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._over:
                self._errands_done(wait=not (self._live or self._line))
                self._enter()
                if self._live:
                    self._step()
        finally:
            with self._lock:
                self._over = True
            self._errands_done(wait=False)
            for ask in [*self._live.values(), *self._line]:
                self._end(ask, Closed("the server stops before the answer is whole"))

    def _errands_done(self, *, wait: bool) -> None:
        if wait:
            self._errands.get()()
        while not self._errands.empty():
            self._errands.get()()

    def _enter(self) -> None:
        """Hands whoever waits to the batcher, which lets them in when it has room."""
        while self._line:
            ask = self._line.popleft()
            self._live[ask.request.id] = ask
            self._add(ask)

    def _add(self, ask: _Ask) -> None:
        try:
            self._batcher.add(ask.request)
        except FAULTS as error:  # it can never be answered
            self._end(ask, _told(error))

    def _step(self) -> None:
        try:
            tokens = self._batcher.step()
        except FAULTS as error:
            self._rescue(error)
            return
        for token in tokens:
            self._tell(token)

    def _tell(self, token: Token) -> None:
        ask = self._live.get(token.request)
        if ask is None:
            return
        ask.replayed += 1
        if ask.replayed > len(ask.told):
            ask.told.append(token.token)
            if token.finish is None:
                ask.hear(token)
            else:
                self._end(ask, token)
        elif ask.told[ask.replayed - 1] != token.token:
            self._batcher.drop(token.request)
            self._end(ask, Failure("the answer was begun again after a fault and came out otherwise"))

    def _rescue(self, error: BaseException) -> None:
        """A step failed, and nobody knows through whom. Each request is tried alone: the one that fails again is refused, the others go on together.
        Answers are begun anew for that, and their tokens come out as before, since they depend on nothing else."""
        log.warning("a step failed with %d requests: %r", len(self._live), error)
        self._fault()
        suspects = list(self._live.values())
        for ask in suspects:  # an engine may keep what a batcher of its leaves behind, and fail by it again
            self._batcher.drop(ask.request.id)
        if len(suspects) == 1:
            self._end(suspects[0], _told(error))
        for ask in suspects:
            if ask.request.id in self._live:
                self._try_alone(ask)
        self._batcher = self._engine.batcher(self.tokens)
        for ask in list(self._live.values()):
            ask.replayed, ask.faults = 0, ask.faults + 1
            if ask.faults > PATIENCE:
                self._end(ask, _told(error))
            else:
                self._add(ask)

    def _try_alone(self, ask: _Ask) -> None:
        """One answer, up to a token further than it was; what it raises is its own fault."""
        self._batcher = self._engine.batcher(self.tokens)
        ask.replayed, told = 0, len(ask.told)
        self._add(ask)
        try:
            while ask.request.id in self._live and len(ask.told) == told:
                for token in self._batcher.step():
                    self._tell(token)
        except FAULTS as error:
            log.warning("the request %s fails alone: %r", ask.request.id, error)
            self._end(ask, _told(error))
        finally:
            self._batcher.drop(ask.request.id)

    def _drop(self, request: str) -> None:
        waiting = next((ask for ask in self._line if ask.request.id == request), None)
        if waiting is not None:
            self._line.remove(waiting)
        elif request in self._live:
            del self._live[request]
            if not self._over:
                self._batcher.drop(request)
        else:
            return
        with self._lock:
            self._taken -= 1

    def _end(self, ask: _Ask, last: Heard) -> None:
        self._live.pop(ask.request.id, None)
        with self._lock:
            self._taken -= 1
        ask.hear(last)


def _told(error: BaseException) -> XwinError:
    """What the client hears: errors of ours as they are, of others the kind alone, for their texts are of the machine and not of the request."""
    return error if isinstance(error, XwinError) else Failure(f"the model could not answer ({type(error).__name__})")
