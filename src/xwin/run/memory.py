"""Memory of this process: the most it has held, and giving back what it no longer uses."""

from __future__ import annotations

import ctypes
import gc
import resource
import sys
from pathlib import Path

STATUS = Path("/proc/self/status")


def peak() -> float:
    """The most resident memory this process has held so far, GiB."""
    if STATUS.exists():  # getrusage would count what the process that started this one held
        line = next(line for line in STATUS.read_text(encoding="ascii", errors="replace").splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**20
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / 2**30 if sys.platform == "darwin" else most / 2**20  # macOS counts bytes, others KiB


def release() -> None:
    """Collects garbage and returns free memory to the system: between stages. Without it the C library keeps what a stage has freed, and a chain
    of stages needs gigabytes more than the largest of them.
    """
    gc.collect()
    trim()


def trim() -> None:
    """Returns free memory to the system; quick, so also between the parts of a step whose tensors differ in size, as sampling and learning."""
    if sys.platform == "linux":
        library = ctypes.CDLL(None)
        if hasattr(library, "malloc_trim"):  # glibc has it, musl has not
            library.malloc_trim(0)
