"""Lean modules against the modules of transformers that they take the place of."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, Qwen3Config
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm

from xwin.models.lean import GatedMLP, RMSNorm, slim

SHAPE: dict[str, Any] = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


def network(config: Any) -> PreTrainedModel:
    made = AutoModelForCausalLM.from_config(config)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in made.parameters():
            p.copy_(torch.randn(p.shape, generator=random) * 0.3 + (p.ndim == 1))
    return made


CONFIGS = [LlamaConfig(**SHAPE), Qwen3Config(**SHAPE, head_dim=8, num_key_value_heads=2)]


@pytest.mark.parametrize("config", CONFIGS, ids=["llama", "qwen3"])
def test_outputs_and_gradients_are_those_of_the_plain_network(config: Any) -> None:
    plain = network(config)
    lean = copy.deepcopy(plain)
    slim(lean, torch.float32)
    assert [n for n, _ in lean.named_parameters()] == [n for n, _ in plain.named_parameters()]
    ids = torch.arange(40).view(2, 20)
    found = []
    for model in (plain, lean):
        out = model(input_ids=ids).logits.log_softmax(-1)
        out[..., 3].sum().backward()
        found.append({"out": out.detach(), **{n: p.grad for n, p in model.named_parameters()}})
    for name, expected in found[0].items():
        assert (found[1][name] - expected).norm() <= 1e-5 * expected.norm(), name


@pytest.mark.parametrize(("config", "norms"), list(zip(CONFIGS, (5, 9), strict=True)), ids=["llama", "qwen3"])
def test_norms_and_gated_layers_are_replaced_and_only_the_norms_before_linear_layers_write_the_type_of_products(config: Any, norms: int) -> None:
    model = network(config)
    slim(model, torch.bfloat16)
    found = {name: m for name, m in model.named_modules() if isinstance(m, RMSNorm)}
    assert len(found) == norms
    assert sum(isinstance(m, GatedMLP) for m in model.modules()) == 2
    assert {name.rpartition(".")[2] for name, m in found.items() if m.dtype == torch.bfloat16} == {"input_layernorm", "post_attention_layernorm"}


def test_a_module_that_computes_something_else_stays() -> None:
    """Gemma multiplies by 1 + weight; and this one is gated by another function."""
    model = network(LlamaConfig(**SHAPE, hidden_act="gelu"))
    other = GemmaRMSNorm(32)
    other.variance_epsilon = other.eps
    with torch.no_grad():
        other.weight.fill_(0.5)
    model.model.norm = other
    slim(model, torch.float32)
    assert model.model.norm is other
    assert not any(isinstance(m, GatedMLP) for m in model.modules())


def test_a_frozen_norm_or_input_gets_no_gradient() -> None:
    norm = RMSNorm(nn.Parameter(torch.ones(8), requires_grad=False), 1e-6, None)
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    norm(x).sum().backward()
    assert norm.weight.grad is None
    norm.weight.requires_grad_()
    norm(x.detach()).sum().backward()
    assert norm.weight.grad is not None
