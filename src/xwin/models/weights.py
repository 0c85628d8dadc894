"""The weights of a policy on their way from a learner to an engine, or to the disk."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from xwin.errors import ModelError, TrainingStopped
from xwin.run.storage import storage_errors


@dataclass(frozen=True)
class Weights:
    """A Hugging Face folder, or tensors in this process."""

    version: int
    folder: Path | None = None
    tensors: Mapping[str, Tensor] | None = None
    """Parameter name of the plain network (adapters merged) -> fp32 tensor."""


def require_shapes(given: Mapping[str, Sequence[int]], known: Mapping[str, Sequence[int]]) -> None:
    """Sees to it, before anything is loaded, that weights are of an engine's network.

    Args:
        given: parameter name -> shape, of the weights; may hold more.
        known: the same of the network.

    Raises:
        ModelError: one is missing, or has another shape.
    """
    missing = sorted(known.keys() - given.keys())
    if missing:
        raise ModelError(f"the new weights lack {missing[0]} and {len(missing) - 1} more", "engine")
    other = next((name for name in known if tuple(given[name]) != tuple(known[name])), None)
    if other is not None:
        raise ModelError(f"{other} is {list(given[other])} in the new weights, and {list(known[other])} in the engine's network", "engine")


def write_weights(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes a safetensors file, readable like any other file of the folder.

    Raises:
        TrainingStopped: a tensor holds a number that is not finite; nothing was written.
        StorageError: the disk is full, read-only, or permission is missing.
    """
    require_finite(tensors, path)
    with storage_errors(path):
        try:
            save_file({name: t.contiguous() for name, t in tensors.items()}, path, dict(metadata))
        except SafetensorError as error:  # it is no OSError, and says what happened in its text alone
            number = re.search(r"os error (\d+)", str(error))
            if number is None:
                raise
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
        path.chmod(0o644)  # save_file leaves it to the owner alone


def require_finite(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Sees to it that no number that is not finite gets to the disk: neither into a checkpoint nor into a model.

    Raises:
        TrainingStopped: names the tensor, and the file it was meant for.
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.numel() and not bool(torch.stack(torch.aminmax(tensor)).isfinite().all()):
            fix = "nothing was written; lower lr or clip the gradient harder, and run again: it goes on from the last good checkpoint"
            raise TrainingStopped(f"'{name}' holds a number that is not finite", str(path), fix)
