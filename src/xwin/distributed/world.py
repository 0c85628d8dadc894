"""Where a worker stands among others: rank, size, device, and the few things workers say to each other. `World.alone()` is one process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, TypeVar, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from xwin.errors import UserError, WorkerLost, XwinError
from xwin.seeds import derive

T = TypeVar("T")

LIMIT = 1800.0
"""Seconds that a worker waits for the others before it gives up: the longest that one of them may be busy with something of its own."""


@dataclass(frozen=True)
class World:
    """One worker's place."""

    rank: int
    size: int
    device: torch.device
    mesh: DeviceMesh | None = None
    """The devices of all workers, which a model is sharded over; None = one worker."""
    host: DeviceMesh | None = None
    """Their processors, which what is no tensor of a device goes between; the same as `mesh` without GPUs."""

    @classmethod
    def alone(cls) -> World:
        """This process, on its GPU when there is one."""
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        _in_fixed_order(device)
        return cls(0, 1, device)

    @classmethod
    def join(cls, rank: int, size: int, address: str, *, backend: Literal["gloo", "nccl"], limit: float = LIMIT) -> World:
        """Meets the other workers; returns when all are there. A process can be in one world at a time.

        Args:
            rank: of this worker, 0 ... size - 1.
            size: how many there are.
            address: host:port of rank 0, which must be free there.
            backend: "gloo" on CPUs; "nccl" on GPUs, where each worker takes one of those that it sees, by rank.
            limit: seconds to wait for the others, here and in whatever is done together later.

        Raises:
            WorkerLost: not all came, or rank 0 cannot be reached.
            UserError: nccl, and this worker sees no GPU.
        """
        device = _own_gpu(rank) if backend == "nccl" else torch.device("cpu")
        _in_fixed_order(device)
        timeout = timedelta(seconds=limit)
        try:
            dist.init_process_group(backend, init_method=f"tcp://{address}", rank=rank, world_size=size, timeout=timeout)
        except dist.DistError as error:
            what = f"worker {rank} of {size} did not meet the others within {limit:.0f} seconds"
            fix = f"see that all {size} workers run and that {address} can be reached from each of their machines"
            raise WorkerLost(what, address, fix) from error
        mesh = init_device_mesh(device.type, (size,))
        host = DeviceMesh.from_group(cast(Any, dist.new_group(backend="gloo", timeout=timeout)), "cpu") if backend == "nccl" else mesh
        return cls(rank, size, device, mesh, host)

    def leave(self) -> None:
        """Ends what `join` began. The others must leave, too."""
        if self.mesh is not None:
            dist.destroy_process_group()

    def sum(self, x: Tensor) -> Tensor:
        """[] or [...] the sum over all workers; with one worker, x."""
        if self.mesh is None:
            return x
        total = x.clone()
        dist.all_reduce(total)
        return total

    def gather(self, one: T) -> list[T]:
        """What each worker has, by rank, on every worker. Anything that can be pickled."""
        if self.host is None:
            return [one]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, one, group=self.host.get_group())
        return found

    @contextmanager
    def together(self) -> Iterator[None]:
        """Around work without a word to the others: what fails on one worker is raised on all of them, so that none waits for it."""
        if self.host is None:
            yield
            return
        mine: Exception | None = None
        try:
            yield
        except (XwinError, OSError) as error:
            mine = error
        failed = next((error for error in self.gather(mine) if error is not None), None)
        if failed is not None:
            raise failed

    def seed(self, root: int, *path: str | int) -> None:
        """Seeds torch's and NumPy's global generators, which the initialisation of adapters draws from.

        Every worker is seeded alike: each draws the whole of an adapter, and keeps its own rows of it.
        """
        value = derive(root, *path, 0)
        torch.manual_seed(value)
        np.random.seed(value % 2**32)


def _own_gpu(rank: int) -> torch.device:
    count = torch.cuda.device_count()
    if not count:
        raise UserError("sees no GPU", f"worker {rank}", "start it on a machine with one, or use gloo")
    device = torch.device("cuda", rank % count)
    torch.cuda.set_device(device)
    return device


def _in_fixed_order(device: torch.device) -> None:
    """On a CPU, asks torch for sums in a fixed order.

    By default the gradient of `x[index]` is added up by several threads in whatever order they come, and a resumed run would differ from an
    uninterrupted one in the last bits.
    """
    if device.type == "cpu":
        torch.use_deterministic_algorithms(mode=True)
        settings: Any = torch.utils.deterministic
        settings.fill_uninitialized_memory = False  # nothing here reads memory before it is written
