"""Low-rank adapters inside a network: switched off they leave the model it started from; written out they are a folder that peft loads."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from xwin.models.weights import write_weights

FOLDER = "adapter"
"""Where the adapters lie in the folder of a model whose weights have them merged."""


def adapted(network: nn.Module) -> dict[str, LoraLayer]:
    """The layers that have an adapter, by name."""
    return {name: module for name, module in network.named_modules() if isinstance(module, LoraLayer)}


@contextmanager
def adapters_off(network: nn.Module) -> Iterator[None]:
    """Inside, the network computes what it computed before it had adapters."""
    layers = adapted(network).values()
    for layer in layers:
        layer.enable_adapters(enabled=False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(enabled=True)


def write_adapters(network: nn.Module, to: Path, score: Tensor | None = None) -> None:
    """Writes the folder that `peft.PeftModel.from_pretrained(model, folder)` loads, over the model that the training started from.

    Args:
        network: with adapters.
        to: a folder that does not exist yet.
        score: [1, d] weight of a reward model's head, which goes along.

    Raises:
        StorageError: the disk is full, read-only, or permission is missing.
    """
    tensors = {name.replace(".default", ""): p.detach().float() for name, p in network.named_parameters() if ".lora_" in name}
    configs: Any = network.peft_config
    config: LoraConfig = replace(configs["default"], task_type="CAUSAL_LM", inference_mode=True)
    if score is not None:
        tensors["score.weight"] = score.detach().float()
        config = replace(config, task_type="SEQ_CLS", modules_to_save=["score"])
    to.mkdir(parents=True)
    write_weights(to / "adapter_model.safetensors", {f"base_model.model.{name}": tensor for name, tensor in tensors.items()}, {"format": "pt"})
    values = {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}  # a set has no order of its own
    (to / "adapter_config.json").write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
