"""Where a worker stands among others: rank, size, device. `World.alone()` is one process without a process group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xwin.seeds import derive


@dataclass(frozen=True)
class World:
    """One worker's place."""

    rank: int
    size: int
    device: torch.device

    @classmethod
    def alone(cls) -> World:
        """This process, on its GPU when there is one.

        On a CPU it also asks torch for sums in a fixed order: by default the gradient of `x[index]` is added up by several threads in
        whatever order they come, and a resumed run would differ from an uninterrupted one in the last bits.
        """
        if torch.cuda.is_available():
            return cls(0, 1, torch.device("cuda"))
        torch.use_deterministic_algorithms(mode=True)
        settings: Any = torch.utils.deterministic
        settings.fill_uninitialized_memory = False  # nothing here reads memory before it is written
        return cls(0, 1, torch.device("cpu"))

    def sum(self, x: Tensor) -> Tensor:
        """[] or [...] the sum over all workers; with one worker, x."""
        return x

    def seed(self, root: int, *path: str | int) -> None:
        """Seeds torch's and NumPy's global generators, which dropout and the initialisation of adapters draw from."""
        value = derive(root, *path, self.rank)
        torch.manual_seed(value)
        np.random.seed(value % 2**32)
