"""The first signal asks to stop, the second one stops."""

import os
import signal

import pytest

from xwin.errors import Interrupted
from xwin.run.signals import StopFlag, stop_on_signals


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_sets_the_flag_and_the_work_stops_where_it_obeys(number: int, code: int) -> None:
    with stop_on_signals() as stop:
        stop.obey()
        os.kill(os.getpid(), number)
        assert stop.is_set
        with pytest.raises(Interrupted) as caught:
            stop.obey()
    assert caught.value.exit_code == code


def test_the_second_signal_does_not_wait() -> None:
    with pytest.raises(Interrupted) as caught, stop_on_signals():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("the second signal did not stop the work")
    assert caught.value.exit_code == 143


def test_the_handlers_before_come_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stop_on_signals():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_new_flag_is_not_set() -> None:
    assert not StopFlag().is_set
