"""Memory of this process: the most it has held, giving back what it no longer uses, and what is said when there is none left."""

from __future__ import annotations

import ctypes
import gc
import re
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from xwin.errors import OutOfMemory

STATUS = Path("/proc/self/status")
GROUP = Path("/sys/fs/cgroup")
REFUSALS = re.compile(r"can't allocate memory|cannot allocate memory|unable to allocate|out of memory|bad_alloc", re.IGNORECASE)
"""How libraries say that an allocation failed: torch on a CPU and on a GPU, the operating system, numpy, C++."""


@contextmanager
def allocation_errors(where: str, fix: str) -> Iterator[None]:
    """Turns a failed allocation, whoever reports it, into an error that says what to lower. Other errors pass.

    Args:
        where: what was at work.
        fix: which settings bound its memory.

    Raises:
        OutOfMemory: an allocation failed; says how much was asked for, when the library does, and the most that was held.
    """
    try:
        yield
    except Exception as error:
        if not (isinstance(error, MemoryError) or REFUSALS.search(str(error))):
            raise
        asked = re.search(r"tried to allocate ([\d.]+ ?\w*)", str(error), re.IGNORECASE)
        more = f"{_amount(asked[1])} more could not be had" if asked else "an allocation failed"
        raise OutOfMemory(f"there is not enough memory: {more}, {peak():.1f} GiB were held", where, fix) from error


def _amount(text: str) -> str:
    """Example: "3221225472 bytes" is "3.0 GiB"; "20.00 MiB" stays."""
    number, _, unit = text.partition(" ")
    return f"{float(number) / 2**30:.1f} GiB" if unit == "bytes" else text


def peak() -> float:
    """The most resident memory this process has held so far, GiB."""
    if STATUS.exists():  # getrusage would count what the process that started this one held
        line = next(line for line in STATUS.read_text(encoding="ascii", errors="replace").splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**20
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / 2**30 if sys.platform == "darwin" else most / 2**20  # macOS counts bytes, others KiB


def available() -> float:
    """Bytes of main memory that this process could still take: of the machine, or of its group where a container sets a limit."""
    free = float(psutil.virtual_memory().available)
    limit, used = (GROUP / name for name in ("memory.max", "memory.current"))
    bound = limit.read_text(encoding="ascii").strip() if limit.is_file() and used.is_file() else "max"
    return max(0.0, min(free, float(bound) - float(used.read_text(encoding="ascii")))) if bound.isdecimal() else free


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
