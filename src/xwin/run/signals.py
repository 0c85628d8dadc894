"""Stopping politely: a signal sets a flag, the work looks at it where it can stop without losing anything."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from xwin.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopFlag:
    """Set by a signal, polled by whoever works."""

    def __init__(self) -> None:
        self.signal: int | None = None
        """Number of the signal that asked to stop, or None."""

    def set(self, number: int) -> None:
        """Asks to stop.

        Raises:
            KeyboardInterrupt: it was asked before; the person does not want to wait for a safe point.
        """
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number

    @property
    def is_set(self) -> bool:
        """Whether somebody asked to stop."""
        return self.signal is not None

    def obey(self) -> None:
        """Call where nothing is lost.

        Raises:
            Interrupted: somebody asked to stop.
        """
        if self.signal is not None:
            raise Interrupted(self.signal)


@contextmanager
def stop_on_signals() -> Iterator[StopFlag]:
    """A flag that the first Ctrl-C or SIGTERM sets; the second one aborts at once. The handlers before it come back at the end.

    Must be entered in the main thread.

    Raises:
        Interrupted: aborted by a second signal.
    """
    flag = StopFlag()

    def handle(number: int, _frame: FrameType | None) -> None:
        flag.set(number)

    before = {number: signal.signal(number, handle) for number in SIGNALS}
    try:
        yield flag
    except KeyboardInterrupt:
        raise Interrupted(flag.signal or signal.SIGINT) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
