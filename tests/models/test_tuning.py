"""What is trained, and that nothing else moves."""

from pathlib import Path

import pytest
import torch

from xwin.data.batch import Sample, pack
from xwin.distributed.world import World
from xwin.errors import ModelError
from xwin.models.causal import load
from xwin.models.tuning import Frozen, Full, LastLayers, LoRA

ROWS = [Sample("a", tuple(range(5, 40)), (False,) * 5 + (True,) * 30)]
LINEAR = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]


def trained(folder: Path, tuning: Full | LoRA | LastLayers | Frozen, head: str = "language") -> list[str]:
    model = load(folder, head=head, tuning=tuning, dtype="float32")  # type: ignore[arg-type]
    return sorted(name for name, p in model.named_parameters() if p.requires_grad)


def test_full_trains_everything_and_frozen_nothing(tiny_folder: Path) -> None:
    names = trained(tiny_folder, Full(), "value")
    assert "head.weight" in names
    assert "network.model.embed_tokens.weight" in names
    assert len(names) == 2 * 9 + 3
    assert trained(tiny_folder, Frozen(), "value") == []


def test_lora_trains_two_matrices_beside_each_linear_layer_of_the_body(tiny_folder: Path) -> None:
    names = trained(tiny_folder, LoRA())
    assert len(names) == 2 * 2 * len(LINEAR)
    assert all(".lora_A." in n or ".lora_B." in n for n in names)
    assert len(trained(tiny_folder, LoRA(targets=("q_proj", "v_proj")), "value")) == 2 * 2 * 2 + 1, "and the head"


def test_the_last_layers_are_the_last(tiny_folder: Path) -> None:
    one, head = trained(tiny_folder, LastLayers(layers=1), "value"), trained(tiny_folder, LastLayers(layers=0), "value")
    assert {n.split(".")[3] for n in one if "layers" in n} == {"1"}
    assert len(one) == 9 + 1
    assert head == ["head.weight"]
    assert len(trained(tiny_folder, LastLayers(layers=9), "value")) == 2 * 9 + 1


def test_an_unknown_layer_name_is_refused_with_the_known_ones(tiny_folder: Path) -> None:
    with pytest.raises(ModelError, match="no linear layer is named qproj") as caught:
        trained(tiny_folder, LoRA(targets=("qproj",)))
    assert caught.value.fix == f"choose among {', '.join(LINEAR)}"


def test_adapters_begin_as_nothing_and_are_drawn_from_the_seed(tiny_folder: Path) -> None:
    (batch,) = pack(ROWS, tokens=64)
    plain = load(tiny_folder, head="language", tuning=Frozen(), dtype="float32")(batch, frozenset({"logp"})).get("logp")
    models = []
    for seed in (0, 0, 1):
        World.alone().seed(seed, "init")
        models.append(load(tiny_folder, head="language", tuning=LoRA(), dtype="float32"))
        torch.testing.assert_close(models[-1](batch, frozenset({"logp"})).get("logp"), plain, atol=1e-6, rtol=0)
    first, same, other = ({n: p for n, p in m.named_parameters() if ".lora_A." in n} for m in models)
    assert all(torch.equal(first[n], same[n]) for n in first)
    assert not any(torch.equal(first[n], other[n]) for n in first)


def test_merging_adds_alpha_over_rank_times_the_product(tiny_folder: Path) -> None:
    """By hand: W + (alpha / rank) B A."""
    for dtype in ("float32", "bfloat16"):
        model = load(tiny_folder, head="language", tuning=LoRA(rank=4, alpha=12), dtype=dtype)
        layer = model.network.model.layers[0].self_attn.q_proj
        random = torch.Generator().manual_seed(0)
        with torch.no_grad():
            layer.lora_B["default"].weight.copy_(torch.randn(64, 4, generator=random))
        base = load(tiny_folder, head="language", tuning=Frozen(), dtype="float32").plain()
        name = "model.layers.0.self_attn.q_proj.weight"
        expected = base[name] + 3.0 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        merged = model.plain()
        torch.testing.assert_close(merged[name], expected, atol=1e-6, rtol=1e-6)
        assert merged.keys() == base.keys()
        assert all(torch.equal(merged[n], base[n]) for n in base if n != name), "the rest is as it was, in fp32"
