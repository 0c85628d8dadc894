"""What is said of memory is true, what is freed goes back to the system, and a failed allocation is an error of ours."""

import errno
import os
import sys

import numpy as np
import psutil
import pytest
import torch

from xwin.errors import OutOfMemory
from xwin.run.memory import allocation_errors, peak, release


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


REFUSALS = [
    (MemoryError(), "an allocation failed"),
    (
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried to allocate 3221225472 bytes."),
        "3.0 GiB",
    ),
    (RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.10 GiB"), "20.00 MiB"),
    (OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), "an allocation failed"),
]


@pytest.mark.parametrize(("error", "amount"), REFUSALS)
def test_a_failed_allocation_says_how_much_and_what_to_lower(error: Exception, amount: str) -> None:
    said = rf"stages\.sft: there is not enough memory: {amount}.*GiB were held\n  fix: lower it"
    with pytest.raises(OutOfMemory, match=said) as caught, allocation_errors("stages.sft", "lower it"):
        raise error
    assert caught.value.__cause__ is error


def test_torch_that_gets_no_memory_is_understood() -> None:
    """What torch itself says today, of a tensor that no machine can hold."""
    with pytest.raises(OutOfMemory, match="could not be had"), allocation_errors("here", ""):
        torch.empty(2**55)


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="another thing"), allocation_errors("here", ""):
        raise RuntimeError("another thing")
