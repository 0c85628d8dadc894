"""Activation checkpointing: what a layer computed is forgotten after the forward pass and computed again in the backward pass."""

from __future__ import annotations

from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from xwin.errors import ModelError


def layers(network: PreTrainedModel) -> nn.ModuleList:
    """The layers of the body, in order.

    Raises:
        ModelError: the network has no list of layers.
    """
    stack = next((child for child in network.base_model.children() if isinstance(child, nn.ModuleList)), None)
    if stack is None:
        raise ModelError(f"{type(network).__name__} has no list of layers", "tune", "use lora or full")
    return stack


def recompute(network: PreTrainedModel) -> None:
    """Keeps only the input of each layer for the backward pass (Chen et al. 2016, arXiv:1604.06174, section 4).

    transformers has a switch for it that works in training mode alone, in which dropout would be on. So each layer's own `forward` is wrapped
    here, and stays inside whatever hooks the layer has.

    Raises:
        ModelError: the network has no list of layers.
    """
    for layer in layers(network):
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)
