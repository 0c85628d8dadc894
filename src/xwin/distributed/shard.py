"""A model over several workers, each of which holds a part of every parameter: torch's FSDP2, put on from outside, block by block.

Zhao et al. 2023, arXiv:2304.11277. Before a block computes, its parameters are gathered; its gradients are summed and dealt out again when its
backward pass is over. So a worker never holds more than one block whole, and the files of the models know nothing of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from xwin.distributed.world import World


def shard(model: nn.Module, blocks: Iterable[nn.Module], world: World, *, dtype: torch.dtype) -> None:
    """Leaves on each worker its part of a model that all of them hold whole and alike. It moves to their devices block by block.

    Parameters stay what they are (fp32 where they are trained), gradients are fp32 sums over all workers. A block computes with parameters
    rounded to `dtype`, which halves what is sent; what is in no block, embeddings and heads, computes in fp32, as without sharding.

    Args:
        model: its forward computes everything that gets a gradient, for there alone all parameters outside the blocks are whole.
        blocks: its layers, all alike.
        world: who shares it.
        dtype: of matrix products.
    """
    exact = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
    rounded = exact if dtype == torch.float32 else replace(exact, param_dtype=dtype)
    for block in blocks:
        fully_shard(block, mesh=world.mesh, mp_policy=rounded)
    fully_shard(model, mesh=world.mesh, mp_policy=exact, reshard_after_forward=False)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)  # sums: the learner divides by the count of all workers
            module.set_force_sum_reduction_for_comms(enable=True)  # gloo knows no other
    model.register_forward_hook(_put_away)


def _put_away(model: nn.Module, _: Any, __: Any) -> None:
    """Without a backward pass, nobody else gives back what lies outside the blocks."""
    if not torch.is_grad_enabled():
        assert isinstance(model, FSDPModule)
        model.reshard()


def local(tensor: Tensor) -> Tensor:
    """This worker's part of a tensor, in the same memory; the tensor itself when it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def full(tensor: Tensor) -> Tensor:
    """All of a tensor; the tensor itself when it is not sharded. Every worker must ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def split(tensors: Mapping[str, Tensor], world: World) -> dict[str, Tensor]:
    """Leaves on each worker, in the memory of its processor, its part of tensors that all of them hold whole and alike."""
    dealt = {name: distribute_tensor(tensor, world.host, [Shard(0)], src_data_rank=None) for name, tensor in tensors.items()}
    return {name: tensor.clone() for name, tensor in dealt.items()}  # what was dealt lies in the memory of the whole


def joined(tensors: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """The inverse of `split`. Every worker must take part, and gets an empty mapping when it does not keep what it hears."""
    found = {}
    for name, tensor in tensors.items():
        whole = full(tensor)
        if keep:
            found[name] = whole
    return found


@contextmanager
def gathered(model: nn.Module, *, keep: bool) -> Iterator[None]:
    """Inside, the parameters of a sharded model are plain tensors on the CPU, all of them. Every worker must enter; it cannot compute there.

    Args:
        model: nothing happens to one that is not sharded.
        keep: False for a worker that only gives what it has: its parameters stay as they are.
    """
    places = [(m, name, p) for m in model.modules() for name, p in m.named_parameters(recurse=False) if isinstance(p, DTensor)]
    whole: dict[nn.Parameter, nn.Parameter | None] = {}
    for p in dict.fromkeys(p for *_, p in places):  # tied parameters stay tied
        tensor = full(p.detach())
        whole[p] = nn.Parameter(tensor.cpu(), requires_grad=p.requires_grad) if keep else None
    try:
        for module, name, p in places if keep else ():
            setattr(module, name, whole[p])
        yield
    finally:
        for module, name, p in places if keep else ():
            setattr(module, name, p)
