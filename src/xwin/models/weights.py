"""The weights of a policy on their way from a learner to an engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor


@dataclass(frozen=True)
class Weights:
    """A Hugging Face folder, or tensors in this process."""

    version: int
    folder: Path | None = None
    tensors: Mapping[str, Tensor] | None = None
    """Parameter name of the plain network (adapters merged) -> fp32 tensor."""
