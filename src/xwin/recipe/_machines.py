"""Machines that a plan can be estimated for: this one, or GPUs by name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import psutil

from xwin.errors import UserError
from xwin.run.manifest import hardware
from xwin.spec import nearest

GIB = 2**30
CPUINFO = Path("/proc/cpuinfo")
GROUP = Path("/sys/fs/cgroup/memory.max")
DRIVER = Path("/dev/nvidiactl")


@dataclass(frozen=True, slots=True)
class Machine:
    """One or more equal devices."""

    name: str
    """Example: "8 x h100" """
    count: int
    memory: float
    """Bytes of one device."""
    bf16: float
    """Multiplications and additions a second of one device in matrix products of bfloat16."""
    fp32: float
    """The same in float32."""
    bandwidth: float
    """Bytes a second between one device and its memory."""
    share: float
    """Of these rates that training reaches."""
    process: float
    """Bytes of one device that go to Python and libraries, or to the context of the driver."""
    note: str
    """Where the rates come from."""
    gpu: bool = True
    """False for the CPU of this machine."""

    @property
    def sharded(self) -> bool:
        """Whether parameters are spread over devices."""
        return self.count > 1


@dataclass(frozen=True, slots=True)
class _Gpu:
    gigabytes: float
    bf16: float
    """TFLOP/s, dense."""
    fp32: float
    """TFLOP/s without tensor cores: torch multiplies float32 in full precision unless told otherwise."""
    bandwidth: float
    """TB/s"""


GPUS: Mapping[str, _Gpu] = MappingProxyType(
    {
        "a100-40gb": _Gpu(40, 312, 19.5, 1.555),
        "a100": _Gpu(80, 312, 19.5, 2.039),
        "h100": _Gpu(80, 989.4, 66.9, 3.35),
        "h200": _Gpu(141, 989.4, 66.9, 4.8),
        "b200": _Gpu(180, 2250, 75, 8.0),
        "l40s": _Gpu(48, 362, 91.6, 0.864),
        "rtx4090": _Gpu(24, 165.2, 82.6, 1.008),
    }
)
"""NVIDIA's data sheets and architecture papers: A100 SXM, H100 SXM, H200 SXM, DGX B200, L40S, GeForce RTX 4090; without sparsity.

Gigabytes are taken as 1e9 bytes, a few percent less than the driver shows: what an allocator loses to fragments.
"""

GPU_SHARE = 0.4
"""Share of a GPU's rates that is assumed. Kernels and schedules made for one machine reach 0.56 (Megatron-LM on arXiv:2205.05198)."""

GPU_CONTEXT = 1.5 * GIB
"""Assumed: the driver's context, workspaces of matrix products and buffers of collectives."""

CPU_SHARE = 0.5
"""Share of the rates of matrix products that a training step reaches on a CPU."""

CPU_PROCESS = 0.45 * GIB
"""Measured: Python with torch, transformers and peft imported."""

CORE = {"amx_bf16": (175e9, 60e9), "avx512_bf16": (175e9, 60e9), "avx512f": (60e9, 60e9), "avx2": (30e9, 30e9)}
"""Flag of a processor -> (bf16, fp32) FLOP/s that one core is taken to reach in matrix products of 256 rows and more, the first flag that it has.

Measured with AVX-512 BF16 (350 and 120 GFLOP/s on two cores of an AMD EPYC); the others are assumed.
"""

CORE_BANDWIDTH = 10e9
"""Bytes a second that one core is taken to read."""


def chosen(gpu: str | None, count: int | None) -> Machine:
    """The machine that a person asks about.

    Args:
        gpu: its name; None = this machine.
        count: how many; None = one.

    Raises:
        UserError: there is no such GPU, or a number of machines like this one.
    """
    if gpu is not None:
        return named(gpu, 1 if count is None else count)
    if count is not None:
        raise UserError("counts GPUs, and none is named", "--count", f"add --gpu NAME, one of: {', '.join(GPUS)}")
    return this_machine()


def named(gpu: str, count: int) -> Machine:
    """`count` GPUs of a kind.

    Raises:
        UserError: it is not in the table.
    """
    key = re.sub(r"[^a-z0-9]", "", gpu.lower().removeprefix("nvidia"))
    found = next((name for name in GPUS if re.sub(r"[^a-z0-9]", "", name) == key), None)
    if found is None:
        raise UserError(f"there is no GPU '{gpu}' in the table", "--gpu", nearest(gpu.lower(), list(GPUS)))
    card = GPUS[found]
    rates = (card.bf16 * 1e12, card.fp32 * 1e12, card.bandwidth * 1e12)
    note = f"{GPU_SHARE:.0%} of the data sheet's {card.bf16:.0f} TFLOP/s in bfloat16 assumed"
    return Machine(f"{count} x {found}", count, card.gigabytes * 1e9, *rates, GPU_SHARE, GPU_CONTEXT, note)


def this_machine() -> Machine:
    """The CPU that this process may use."""
    cores = int(hardware()["cores"] or 1)
    bf16, fp32 = _rates_of_a_core()
    note = f"{CPU_SHARE:.0%} of {bf16 * cores / 1e9:.0f} GFLOP/s in bfloat16 and {fp32 * cores / 1e9:.0f} in float32 assumed"
    if DRIVER.exists():
        note += "; a GPU of this machine is not counted: name it with --gpu"
    name, rates = f"this machine, {cores} core{'s' * (cores > 1)}", (bf16 * cores, fp32 * cores, CORE_BANDWIDTH * cores)
    return Machine(name, 1, _memory(), *rates, CPU_SHARE, CPU_PROCESS, note, gpu=False)


def _rates_of_a_core() -> tuple[float, float]:
    flags = CPUINFO.read_text(encoding="utf-8", errors="replace").split() if CPUINFO.is_file() else []
    return next((rates for flag, rates in CORE.items() if flag in flags), CORE["avx2"])


def _memory() -> float:
    """Of the machine, or of the container that this process is in."""
    limit = GROUP.read_text(encoding="ascii").strip() if GROUP.is_file() else "max"
    whole = float(psutil.virtual_memory().total)
    return min(whole, float(limit)) if limit.isdecimal() else whole
