"""What can be said of the vLLM engine without vLLM: its checksums, what they are compared with, its log-probs, its refusals. No numbers here
come from vLLM; test_vllm_engine.py has those."""

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from xwin.engines._vllm_logits import Unfiltered
from xwin.engines._vllm_weights import checksum, checksums, named, require_loaded, require_same_shapes, shapes
from xwin.engines.base import EngineKind
from xwin.engines.vllm import Vllm
from xwin.errors import Failure, MissingExtra, ModelError, UserError
from xwin.stages.base import Stage

FUSED = {"qkv_proj": ["q_proj", "k_proj", "v_proj"]}
BOTH = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


def some(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@BOTH
def test_a_checksum_adds_over_parts_and_does_not_count_padding(dtype: torch.dtype) -> None:
    whole = some(6, 5)
    rows, columns = whole.split([2, 4]), whole.split([3, 2], dim=1)
    padded = torch.cat([whole, torch.zeros(2, 5)])
    for parts in (rows, columns, [whole.T], [padded]):
        assert sum(checksum(part, dtype) for part in parts) % 2**64 == checksum(whole, dtype)


@BOTH
def test_a_checksum_by_a_slow_second_way(dtype: torch.dtype) -> None:
    """Bits by Python's own integers: a bfloat16 is the upper half of a float32."""
    values = some(7).to(dtype)
    size = 32 if dtype == torch.float32 else 16
    words = [int(b) >> (32 - size) for b in values.float().view(torch.int32)]
    expected = sum(b * (b ^ 0x5BD1E995) for b in words) % 2**64
    assert checksum(values, dtype) == expected


@BOTH
def test_any_changed_number_changes_the_checksum_and_signs_of_zero_do_not(dtype: torch.dtype) -> None:
    whole = some(40).to(dtype)
    whole[3] = 0.0
    right = checksum(whole, dtype)
    for place in range(40):
        changed = whole.clone()
        changed[place] = torch.nextafter(changed[place], torch.tensor(9.0, dtype=dtype)) if place != 3 else 1e-9
        assert checksum(changed, dtype) != right, place
    whole[3] = -0.0
    assert checksum(whole, dtype) == right


def test_what_is_summed_is_rounded_to_the_engines_type_first() -> None:
    whole = some(30)
    assert checksum(whole, torch.bfloat16) == checksum(whole.bfloat16().float(), torch.bfloat16)
    assert checksum(whole, torch.float32) != checksum(whole.bfloat16().float(), torch.float32)


def learners() -> dict[str, Tensor]:
    parts = {f"model.layers.0.self_attn.{name}.weight": some(4, 8, seed=i) for i, name in enumerate(("q_proj", "k_proj", "v_proj"))}
    return {**parts, "model.embed_tokens.weight": some(9, 8, seed=4), "model.norm.weight": some(8, seed=5)}


def engines(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """As vLLM holds them: three layers in one, rows of zeros below the embedding, and the output layer beside it."""
    parts = [weights[f"model.layers.0.self_attn.{name}.weight"] for name in FUSED["qkv_proj"]]
    padded = torch.cat([weights["model.embed_tokens.weight"], torch.zeros(3, 8)])
    rest = {"model.embed_tokens.weight": padded, "lm_head.weight": padded, "model.norm.weight": weights["model.norm.weight"]}
    return {"model.layers.0.self_attn.qkv_proj.weight": torch.cat(parts), **rest}


def sums(weights: dict[str, Tensor]) -> dict[str, int]:
    return {name: checksum(tensor, torch.float32) for name, tensor in weights.items()}


def test_fused_padded_and_tied_weights_are_recognised() -> None:
    meant = learners()
    require_loaded([[*sums(engines(meant)).items()]], sums(meant), FUSED, 1)


@pytest.mark.parametrize("name", sorted(engines(learners())))
def test_one_stale_parameter_is_named(name: str) -> None:
    meant, said = learners(), engines(learners())
    said[name] = said[name] * 1.0001
    with pytest.raises(Failure, match=f"{name} in vLLM is not what was handed over as version 7"):
        require_loaded([[*sums(said).items()]], sums(meant), FUSED, 7)


def test_shards_add_up_and_copies_are_equal() -> None:
    meant = learners()
    whole = engines(meant)
    split = {name: [tensor] * 2 if tensor.dim() == 1 else list(tensor.chunk(2)) for name, tensor in whole.items()}
    workers = [[*sums({name: parts[k] for name, parts in split.items()}).items()] for k in range(2)]
    require_loaded(workers, sums(meant), FUSED, 1)
    with pytest.raises(Failure, match="qkv_proj"):
        require_loaded([workers[0], workers[0]], sums(meant), FUSED, 1)


def test_parameters_that_only_vllm_names_are_compared_all_together() -> None:
    """As of experts, which it holds in one tensor."""
    meant = {**learners(), "model.layers.0.experts.0.weight": some(4, 3), "model.layers.0.experts.1.weight": some(4, 3, seed=9)}
    said = {**engines(meant), "model.layers.0.experts.w13": torch.stack([some(4, 3), some(4, 3, seed=9)])}
    require_loaded([[*sums(said).items()]], sums(meant), FUSED, 1)
    said["model.layers.0.experts.w13"] = torch.stack([some(4, 3), some(4, 3, seed=8)])
    with pytest.raises(Failure, match=r"one of model.layers.0.experts.0.weight, model.layers.0.experts.1.weight in vLLM"):
        require_loaded([[*sums(said).items()]], sums(meant), FUSED, 1)


class Packed(nn.Module):
    """As vLLM leaves a linear layer on a CPU: its plain weight is gone, and only products tell what it is."""

    def __init__(self, weight: Tensor, kept: Tensor) -> None:
        super().__init__()
        self.weight, self.embedding_dim = nn.Parameter(kept), weight.shape[1]
        self.cpu_linear = lambda x, plain, bias: x @ weight.T


@BOTH
def test_packed_weights_are_read_by_their_products(dtype: torch.dtype) -> None:
    """600 columns: read 256 at a time. One layer has no plain weight left, one has another than it multiplies with."""
    weight, stale = some(5, 600).to(dtype), some(5, 600, seed=1).to(dtype)
    network = nn.ModuleDict({"gone": Packed(weight, torch.empty(0, dtype=dtype)), "both": Packed(weight, stale)})
    found = list(checksums(network, dtype))
    right, other = checksum(weight, dtype), checksum(stale, dtype)
    assert sorted(found) == sorted([("both.weight", other), ("gone.weight", right), ("both.weight", right)])


def test_weights_of_another_network_are_refused_before_anything_is_loaded(tiny_folder: Path) -> None:
    known = shapes(tiny_folder)
    own = dict(named(tiny_folder))
    require_same_shapes(own, known)
    require_same_shapes(tiny_folder, known)
    with pytest.raises(ModelError, match="the new weights lack model.norm.weight and 0 more"):
        require_same_shapes({name: t for name, t in own.items() if name != "model.norm.weight"}, known)
    with pytest.raises(ModelError, match=r"model.norm.weight is \[63\] in the new weights, and \[64\] in the engine's network"):
        require_same_shapes({**own, "model.norm.weight": own["model.norm.weight"][1:]}, known)


def test_log_probs_keep_their_temperature_and_lose_the_filters() -> None:
    """What vLLM does after the processor, spelled out: divide, mask, and tell the number that is left."""
    logits, temperature = 3 * some(3, 50), torch.tensor([[1.0], [0.7], [1.6]])
    processor = Unfiltered(None, torch.device("cpu"), None)
    processor.column = torch.cat([temperature, torch.tensor([[9.0]])])  # of a batch that was larger before
    scaled = processor.apply(logits.clone()) / temperature
    torch.testing.assert_close(scaled, (logits / temperature).log_softmax(-1), atol=1e-5, rtol=0)
    kept = scaled.topk(4).indices
    masked = torch.full_like(scaled, -torch.inf).scatter(1, kept, scaled.gather(1, kept))
    filtered = (logits / temperature).masked_fill(masked.isinf(), -torch.inf)
    torch.testing.assert_close(masked.softmax(-1), filtered.softmax(-1))  # what is drawn from is the filtered distribution
    assert not processor.is_argmax_invariant()  # vLLM would leave it out where every request is greedy


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed here")
def test_without_the_package_the_line_that_installs_it_is_told(tiny_folder: Path) -> None:
    with pytest.raises(MissingExtra, match=r"pip install 'xwin-lm\[vllm\]'"):
        Vllm().build(tiny_folder, (2,), "float32")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_sleep_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: "installed")
    with pytest.raises(UserError, match=r"engine.sleep: needs a CUDA device"):
        Vllm(sleep=True).require()


ASKING: dict[str, dict[str, object]] = {
    "best_of_n": {"policy": "base", "scorer": "answer"},
    "pairs": {"policy": "base", "scorer": "answer"},
    "raft": {"init": "base", "scorer": "answer"},
    "rl": {"init": "base", "scorer": "answer", "credit": "group", "objective": "grpo"},
    "evaluate": {"gold": "answer", "contenders": [{"name": "base", "model": "base"}]},
}


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed here")
@pytest.mark.parametrize("kind", ASKING)
def test_a_stage_asks_for_the_package_before_anything_runs(kind: str) -> None:
    stage = Stage.choose({"kind": kind, "prompts": "./p.jsonl", "engine": {"kind": "vllm"}, **ASKING[kind]})
    with pytest.raises(MissingExtra):
        stage.require()


def test_a_recipe_names_it() -> None:
    chosen = EngineKind.choose({"kind": "vllm", "cache_gb": 0.5, "rows": 8, "context": 512, "eager": True})
    assert chosen == Vllm(cache_gb=0.5, rows=8, context=512, eager=True)
