"""How weights get into vLLM, and how it is known that they got there.

Learner and engine each take a checksum of every parameter, and the two are compared. The engine's is of what its network multiplies with,
not of what was handed over: on a CPU vLLM keeps linear layers packed, throws the plain weights away, and forgets to pack a tied output
layer again when new weights come. There a checksum is taken of the product with the identity.

`load`, `fused` and what they call run inside the workers of vLLM, by its `collective_rpc`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import safe_open
from torch import Tensor, nn

from xwin.errors import Failure
from xwin.models.weights import require_shapes

Source: TypeAlias = Mapping[str, Tensor] | Path
"""Parameter name -> tensor, or a folder of safetensors."""

Sums: TypeAlias = Sequence[tuple[str, int]]
"""(parameter name in vLLM's network, checksum) for plain and for packed weights: some parameters come twice."""

BITS = {torch.float32: torch.int32, torch.bfloat16: torch.int16}
SALT = 0x5BD1E995
ROWS = 256
"""Of the identity at a time."""

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
"""The second stands for the first where they are tied and a folder holds one of them."""


def named(source: Source) -> Iterator[tuple[str, Tensor]]:
    """The tensors one by one."""
    if isinstance(source, Mapping):
        yield from source.items()
        return
    for path in sorted(source.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - it is no mapping
                yield name, file.get_tensor(name)


def shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Parameter name -> shape, of a folder of safetensors; reads no weights."""
    found: dict[str, tuple[int, ...]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            found |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    return found


def checksum(tensor: Tensor, dtype: torch.dtype) -> int:
    """Sum of b (b xor salt) over the elements, b their bits: 0 where they are 0.

    It adds over parts, in whatever order: fused layers have the sum of what was fused, shards add up to the whole, padding counts nothing.
    Zeros have two signs, and some products take the smallest numbers for zeros, so all these are 0.

    Args:
        tensor: [...] any float type.
        dtype: what it is rounded to first: float32 or bfloat16.

    Returns:
        An integer of 64 bits; sums of them are taken modulo 2^64.
    """
    rounded = tensor.detach().to(dtype)
    bits = rounded.masked_fill(rounded.abs() < torch.finfo(dtype).tiny, 0).contiguous().view(BITS[dtype]).long()
    return int((bits * (bits ^ SALT)).sum()) % 2**64


def checksums(network: nn.Module, dtype: torch.dtype) -> Sums:
    """Of every parameter of vLLM's network, as it is multiplied with."""
    plain = [(name, checksum(p, dtype)) for name, p in network.named_parameters(remove_duplicate=False) if p.numel()]
    packed = [(f"{name}.weight", _products(layer)) for name, layer in network.named_modules() if _is_packed(layer)]
    return plain + [(name, sum(checksum(columns, dtype) for columns in products) % 2**64) for name, products in packed]


def load(worker: Any, source: Source) -> Sums:
    """Puts weights into the worker's network, and says what is in it then."""
    worker.reload_weights(weights_iterator=named(source))
    network = worker.get_model()
    for layer in network.modules():
        if hasattr(layer, "cpu_linear") and layer.weight.numel():
            layer.quant_method.process_weights_after_loading(layer)
    return checksums(network, worker.model_config.dtype)


def fused(worker: Any) -> dict[str, list[str]]:
    """Name of a fused layer -> the names of what was fused."""
    return dict(getattr(worker.get_model(), "packed_modules_mapping", {}))


def _is_packed(layer: nn.Module) -> bool:
    """Whether its products are not computed with its parameter. The input embedding is looked up in, and never multiplied with."""
    return hasattr(layer, "cpu_linear") and type(layer).__name__ != "VocabParallelEmbedding"


def _products(layer: Any) -> Iterator[Tensor]:
    """[ROWS, out] columns of the layer's matrix: its product with rows of the identity, which no rounding touches."""
    width = getattr(layer, "input_size_per_partition", None) or layer.embedding_dim
    for start in range(0, width, ROWS):
        rows = torch.eye(width, dtype=layer.weight.dtype)[start : start + ROWS]
        yield layer.cpu_linear(rows, layer.weight, None)


def require_same_shapes(source: Source, known: Mapping[str, tuple[int, ...]]) -> None:
    """See models.weights.require_shapes; an output layer may be missing, for the embedding may stand for it.

    Args:
        source: the weights.
        known: see `shapes`.
    """
    given = shapes(source) if isinstance(source, Path) else {name: tuple(t.shape) for name, t in source.items()}
    require_shapes(given, {name: shape for name, shape in known.items() if name in given or name != HEAD})


def require_loaded(said: Sequence[Sums], meant: Mapping[str, int], parts: Mapping[str, Sequence[str]], version: int) -> None:
    """Compares what the network multiplies with and what the learner meant; parameters that only vLLM has a name for, all together.

    Args:
        said: by each worker.
        meant: parameter name -> checksum.
        parts: see `fused`.
        version: of the weights.

    Raises:
        Failure: they differ; names the first parameter that does.
    """
    known = {HEAD: meant.get(EMBEDDING, 0), **meant}
    strange, left = [], dict(meant)
    for place, (name, _) in enumerate(said[0]):
        sums = [worker[place][1] for worker in said]
        own = _unfused(name, parts, known)
        if any(part not in known for part in own):
            strange += sums
            continue
        right = sum(known[part] for part in own) % 2**64
        if sum(sums) % 2**64 != right and set(sums) != {right}:  # a shard in each worker, or a copy in each
            raise _other(name, version)
        for part in own:
            left.pop(part, None)
    if strange and (sum(strange) - sum(left.values())) % 2**64:
        raise _other(f"one of {', '.join(sorted(left))}", version)


def _other(name: str, version: int) -> Failure:
    what = f"{name} in vLLM is not what was handed over as version {version}"
    return Failure(what, "engine", "run again; if it comes back, take engine: {kind: local} and report it")


def _unfused(name: str, parts: Mapping[str, Sequence[str]], known: Mapping[str, int]) -> list[str]:
    """The names that a parameter of vLLM's network has in the learner's."""
    layer = next((layer for layer in parts if f".{layer}." in name), None)
    if name in known or layer is None:
        return [name]
    return [name.replace(f".{layer}.", f".{part}.") for part in parts[layer]]
