"""Which parameters a training stage trains: all of them, low-rank adapters, or the last layers."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

import torch
from annotated_types import Ge
from peft import LoraConfig, inject_adapter_in_model
from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedModel

from xwin.errors import ModelError
from xwin.models import lora
from xwin.models.adapters import adapted
from xwin.models.bitsandbytes import dequantized, is_quantized, quantize, require
from xwin.models.recompute import layers
from xwin.spec import Spec


class Full(Spec):
    """Train every parameter."""

    kind: Literal["full"] = "full"

    def apply(self, network: PreTrainedModel) -> None:
        """Marks every parameter as trained."""
        network.requires_grad_()


class LoRA(Spec):
    """Train low-rank adapters beside the linear layers of the body (Hu et al. 2021, arXiv:2106.09685); the rest is frozen."""

    kind: Literal["lora"] = "lora"
    revision: ClassVar[int] = 1

    rank: Annotated[int, Ge(1)] = 16
    """Rank of the update, unitless."""

    alpha: Annotated[float, Ge(0)] = 32.0
    """The update is scaled by alpha / rank."""

    targets: tuple[str, ...] = ()
    """Names of linear layers, such as q_proj; empty = every linear layer of the body."""

    quantize: Literal["nf4"] | None = None
    """How the frozen linear layers are held: null = in the compute type; nf4 = in 4 bits (QLoRA, Dettmers et al. 2023, arXiv:2305.14314), which
    needs CUDA and the extra `cuda`. What is published is what was trained: the 4-bit weights with the adapters added in fp32."""

    def require(self) -> None:
        """Sees to it, before anything is loaded, that this machine can do it.

        Raises:
            MissingExtra, UserError: 4 bits without bitsandbytes, or without CUDA.
        """
        if self.quantize:
            require(f"tune.quantize: {self.quantize}")

    def apply(self, network: PreTrainedModel) -> None:
        """Freezes the network and puts adapters into it. Initialisation draws from torch's global generator.

        Raises:
            ModelError: no layer has one of the names.
        """
        network.requires_grad_(requires_grad=False)
        linear = {name.rpartition(".")[2] for name, module in network.base_model.named_modules() if isinstance(module, nn.Linear)}
        unknown = sorted(set(self.targets) - linear)
        if unknown:
            raise ModelError(f"no linear layer is named {', '.join(unknown)}", "tune.targets", f"choose among {', '.join(sorted(linear))}")
        if self.quantize:
            quantize(network.base_model, linear)
            network.is_loaded_in_4bit = True  # type: ignore[assignment] - peft chooses its layers by this
        names = sorted(self.targets or linear)
        scale: Any = self.alpha  # peft annotates an int, and only divides it by the rank
        config = LoraConfig(r=self.rank, lora_alpha=scale, target_modules=names, lora_dropout=0.0, bias="none")
        if not self.quantize:
            config._register_custom_module({nn.Linear: lora.Linear})
        with warnings.catch_warnings():  # peft warns that tied embeddings are not adapted; they are not meant to be
            warnings.simplefilter("ignore")
            inject_adapter_in_model(config, network)


class LastLayers(Spec):
    """Train the last layers of the body; the backward pass ends there."""

    kind: Literal["last"] = "last"

    layers: Annotated[int, Ge(0)] = 2
    """How many, counted from the end; more than there are is all of them. 0 trains the scalar head alone."""

    def apply(self, network: PreTrainedModel) -> None:
        """Freezes the network but for its last layers.

        Raises:
            ModelError: the network has no list of layers.
        """
        network.requires_grad_(requires_grad=False)
        stack = layers(network)
        for layer in list(stack)[max(len(stack) - self.layers, 0) :]:
            layer.requires_grad_()


class Frozen(Spec):
    """Train nothing: a reference or a scorer."""

    kind: Literal["frozen"] = "frozen"

    def apply(self, network: PreTrainedModel) -> None:
        """Freezes every parameter."""
        network.requires_grad_(requires_grad=False)


Tuning: TypeAlias = Annotated[Full | LoRA | LastLayers, Field(discriminator="kind")]


def merged(network: nn.Module, masters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Name of each parameter of the plain network -> fp32 tensor, adapters added to the masters in fp32.

    Args:
        network: perhaps with adapters, perhaps with frozen parameters rounded to the compute type, perhaps to 4 bits.
        masters: parameter name -> fp32 value of what is frozen and was rounded to the compute type.
    """
    four_bit = {f"{name}.weight": module for name, module in network.named_modules() if is_quantized(module)}
    out = {}
    for name, parameter in network.state_dict().items():
        if ".lora_" in name or ".weight." in name:  # adapters, and the scales of 4-bit weights
            continue
        plain = name.replace(".base_layer.", ".")
        value = dequantized(four_bit[name]) if name in four_bit else parameter.detach().float()
        out[plain] = masters.get(plain, value)
    for name, module in adapted(network).items():
        delta: Any = module.get_delta_weight  # pyright: ignore[reportAttributeAccessIssue] - every kind of LoRA layer has it
        plain = out[f"{name}.weight"]  # perhaps a master, which stays on the CPU
        out[f"{name}.weight"] = plain + delta("default").detach().float().to(plain.device)
    return out


def round_frozen(network: PreTrainedModel, dtype: torch.dtype) -> dict[str, Tensor]:
    """Holds the frozen weights of linear layers in the compute type; returns their fp32 values by plain name."""
    masters: dict[str, Tensor] = {}
    if dtype == torch.float32:
        return masters
    head = network.get_output_embeddings() if hasattr(network, "get_output_embeddings") else None
    for name, module in network.named_modules():
        if is_quantized(module):
            module.compute_dtype = dtype  # type: ignore[assignment]
        elif isinstance(module, nn.Linear) and module is not head and not module.weight.requires_grad and ".lora_" not in name:
            masters[f"{name}.weight".replace(".base_layer.", ".")] = module.weight.data
            module.weight.data = module.weight.data.to(dtype)
    return masters
