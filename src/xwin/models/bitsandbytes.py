"""The one door to bitsandbytes: frozen linear layers of 4 bits, and 8-bit AdamW for the learner. An extra, for CUDA alone."""

from __future__ import annotations

import importlib
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from xwin.errors import MissingExtra, UserError


def bitsandbytes() -> Any:
    """The package.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        return importlib.import_module("bitsandbytes")
    except ModuleNotFoundError:
        raise MissingExtra("bitsandbytes", "cuda") from None


def require(setting: str) -> None:
    """Sees to it, before anything is loaded, that a setting which needs the package can be met on this machine.

    On a CPU the package can round and compute, too, but once a layer has computed without gradient it never has one again.

    Raises:
        UserError: there is no CUDA device.
        MissingExtra: the package is not installed.
    """
    if not torch.cuda.is_available():
        fix = "run it where a CUDA device is, with pip install 'xwin-lm[cuda]'; or remove the setting"
        raise UserError("needs bitsandbytes on a CUDA device, and torch finds no such device on this machine", setting, fix)
    bitsandbytes()


def quantize(network: nn.Module, names: Collection[str]) -> None:
    """Puts 4-bit layers in the place of linear layers: NormalFloat in blocks of 64, their scales quantised once more.

    Dettmers et al. 2023, arXiv:2305.14314, section 3. The weights are rounded when the network moves to its device.

    Args:
        network: changed in place.
        names: last parts of the names of the layers.

    Raises:
        MissingExtra: the package is not installed.
    """
    package = bitsandbytes()
    found = [name for name, module in network.named_modules() if type(module) is nn.Linear and name.rpartition(".")[2] in names]
    for name in found:
        layer = network.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        made = package.nn.Linear4bit(layer.in_features, layer.out_features, bias=False, quant_type="nf4", device="meta")
        made.weight = package.nn.Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4", module=made)
        made.bias = layer.bias
        network.set_submodule(name, made)


def is_quantized(module: nn.Module) -> bool:
    """Whether a layer's weight is held in 4 bits, or will be."""
    return hasattr(getattr(module, "weight", None), "quant_state")


def dequantized(module: nn.Module) -> Tensor:
    """[out, in] fp32: the weight that a 4-bit layer computes with."""
    weight: Any = module.weight
    if weight.quant_state is None:
        return weight.data.float()
    return bitsandbytes().functional.dequantize_4bit(weight.data, weight.quant_state).float()
