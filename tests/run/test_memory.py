"""What is said of memory is true, and what is freed goes back to the system."""

import sys

import numpy as np
import psutil
import pytest

from xwin.run.memory import peak, release


def test_the_peak_is_at_least_what_is_held_now_and_never_falls() -> None:
    before = peak()
    held = np.ones(2**25)  # 256 MiB
    during = peak()
    assert during >= psutil.Process().memory_info().rss / 2**30 * 0.99
    del held
    assert peak() >= during * 0.99 >= before * 0.98


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc keeps freed memory in this way")
def test_memory_freed_in_small_pieces_goes_back() -> None:
    pieces = [np.ones(8000) for _ in range(4000)]  # 64 kB each, 256 MB in all: below the size that is mapped apart
    pin = np.ones(8000)  # keeps the end of the heap in use, so that nothing is returned by itself
    full = psutil.Process().memory_info().rss
    del pieces
    release()
    assert full - psutil.Process().memory_info().rss > 200e6
    assert pin.size == 8000
