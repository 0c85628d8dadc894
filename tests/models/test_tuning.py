"""What is trained, and that nothing else moves."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from xwin.data.batch import Sample, pack
from xwin.distributed.world import World
from xwin.errors import ModelError, UserError
from xwin.models.adapters import adapters_off, write_adapters
from xwin.models.bitsandbytes import is_quantized
from xwin.models.causal import PackedModel, load, save
from xwin.models.tuning import Frozen, Full, LastLayers, LoRA
from xwin.recipe._networks import read_shape

LOGP = frozenset({"logp"})
peft_asks_transformers_by_an_old_name = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
ROWS = [Sample("a", tuple(range(5, 40)), (False,) * 5 + (True,) * 30)]
LINEAR = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]


def stirred(model: PackedModel) -> PackedModel:
    """With adapters that are not at zero."""
    random = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=random) * 0.1)
    return model


def trained(folder: Path, tuning: Full | LoRA | LastLayers | Frozen, head: str = "language") -> list[str]:
    model = load(folder, head=head, tuning=tuning, dtype="float32")  # type: ignore[arg-type]
    return sorted(name for name, p in model.named_parameters() if p.requires_grad)


def test_full_trains_everything_and_frozen_nothing(tiny_folder: Path) -> None:
    names = trained(tiny_folder, Full(), "value")
    assert "head.weight" in names
    assert "network.model.embed_tokens.weight" in names
    assert len(names) == 2 * 9 + 3
    assert trained(tiny_folder, Frozen(), "value") == []


def test_a_network_that_gives_scores_does_not_train_an_output_matrix_that_nobody_reads(tiny_folder: Path, tmp_path: Path) -> None:
    config = AutoConfig.from_pretrained(tiny_folder)
    config.tie_word_embeddings = False
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    words, shape = "network.lm_head.weight", read_shape(config.to_dict())
    for head, reads in (("language", True), ("value", False), ("score", False)):
        model = load(tmp_path, head=head, tuning=Full(), dtype="float32")  # type: ignore[arg-type]
        assert (words in [name for name, p in model.named_parameters() if p.requires_grad]) is reads
        assert shape.trained(Full(), scalar=not reads) == sum(p.numel() for p in model.parameters() if p.requires_grad)


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
    for more in (2, 3, 9):
        assert len(trained(tiny_folder, LastLayers(layers=more), "value")) == 2 * 9 + 1, "there are two"


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


def test_tied_embeddings_stay_tied(tiny_folder: Path, tmp_path: Path) -> None:
    """One parameter, one gradient from both uses, one tensor in the file; adapters leave it alone."""
    (batch,) = pack(ROWS, tokens=64)
    for tuning in (Full(), LoRA(), LastLayers()):
        model = load(tiny_folder, head="language", tuning=tuning, dtype="bfloat16")
        table = model.network.get_input_embeddings().weight
        assert model.output.weight is table
        assert sum(p is table for p in model.parameters()) == 1
        model(batch, frozenset({"logp"})).get("logp").sum().backward()
        assert (table.grad is not None) == isinstance(tuning, Full)
        with torch.no_grad():
            table += 0.01
        to = tmp_path / tuning.kind
        save(model, tiny_folder, to)
        assert "lm_head.weight" not in load_file(to / "model.safetensors")
        again = AutoModelForCausalLM.from_pretrained(to)
        assert again.get_output_embeddings().weight is again.get_input_embeddings().weight
        assert torch.equal(again.get_input_embeddings().weight, table)


def test_with_its_adapters_off_a_policy_is_what_it_started_from(tiny_folder: Path) -> None:
    """Bit for bit, in both types of arithmetic; afterwards they are on again, and are trained."""
    (batch,) = pack(ROWS, tokens=64)
    for dtype in ("float32", "bfloat16"):
        base = load(tiny_folder, head="language", tuning=Frozen(), dtype=dtype)
        model = stirred(load(tiny_folder, head="language", tuning=LoRA(rank=4), dtype=dtype))
        with torch.no_grad():
            adapted = model(batch, LOGP).get("logp")
            with adapters_off(model.network):
                found = model(batch, LOGP).get("logp")
            assert torch.equal(found, base(batch, LOGP).get("logp"))
            assert (adapted - found).abs().max() > 1e-3
            assert torch.equal(model(batch, LOGP).get("logp"), adapted)
        assert len([p for p in model.parameters() if p.requires_grad]) == 2 * 2 * len(LINEAR)


@peft_asks_transformers_by_an_old_name
def test_adapters_are_a_folder_that_peft_loads_over_the_start(tiny_folder: Path, tmp_path: Path) -> None:
    """peft's model over the plain start says what the trained one said, and merging it gives the weights that were published."""
    from peft import PeftModel

    model = stirred(load(tiny_folder, head="language", tuning=LoRA(rank=4, alpha=12, targets=("q_proj", "down_proj")), dtype="float32"))
    save(model, tiny_folder, tmp_path / "out")
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_folder), tmp_path / "out" / "adapter").eval()
    (batch,) = pack(ROWS, tokens=64)
    with torch.no_grad():
        logp = theirs(input_ids=batch.tokens[None]).logits[0].log_softmax(-1)
        mine = model(batch, LOGP).get("logp")
    expected = torch.stack([logp[t - 1, token] for t, token in enumerate(batch.tokens.tolist())])
    torch.testing.assert_close(mine[batch.mask], expected[batch.mask], atol=1e-5, rtol=1e-5)
    published = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    for name, weight in theirs.merge_and_unload().state_dict().items():
        torch.testing.assert_close(weight, published[name], atol=1e-6, rtol=1e-6)


@peft_asks_transformers_by_an_old_name
def test_adapters_of_a_reward_model_bring_its_head_along(tiny_folder: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    model = stirred(load(tiny_folder, head="score", tuning=LoRA(rank=4), dtype="float32", head_seed=3))
    save(model, tiny_folder, tmp_path / "rm")
    start = AutoModelForSequenceClassification.from_pretrained(tiny_folder, num_labels=1)
    theirs = PeftModel.from_pretrained(start, tmp_path / "rm" / "adapter").eval()
    (batch,) = pack(ROWS, tokens=64)
    with torch.no_grad():
        mine = model(batch, frozenset({"score"})).get("score")
        torch.testing.assert_close(theirs(input_ids=batch.tokens[None]).logits[0], mine, atol=1e-5, rtol=1e-5)


def test_the_files_of_an_adapter_are_the_same_every_time(tiny_folder: Path, tmp_path: Path) -> None:
    """peft keeps the names of layers in a set, whose order changes from process to process; the folder names no place on this machine."""
    model = load(tiny_folder, head="language", tuning=LoRA(), dtype="float32")
    write_adapters(model.network, tmp_path / "a")
    text = (tmp_path / "a" / "adapter_config.json").read_text()
    assert json.loads(text)["target_modules"] == LINEAR
    assert str(tiny_folder) not in text
    assert not (tmp_path / "plain").exists()
    save(load(tiny_folder, head="language", tuning=Full(), dtype="float32"), tiny_folder, tmp_path / "plain")
    assert not (tmp_path / "plain" / "adapter").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has what the others lack")
def test_4_bits_are_refused_where_there_is_no_cuda() -> None:
    with pytest.raises(UserError, match="needs bitsandbytes on a CUDA device") as caught:
        LoRA(quantize="nf4").require()
    assert caught.value.where == "tune.quantize: nf4"
    assert "pip install 'xwin-lm[cuda]'" in caught.value.fix
    LoRA().require()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_4_bits_are_held_trained_through_and_published_as_they_were(dtype: str, tiny_folder: Path, tmp_path: Path) -> None:
    """Adapters over 4-bit weights have the gradients of adapters over the same weights written out, which are also what is published."""
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install 'xwin-lm[cuda]'")
    model = load(tiny_folder, head="language", tuning=LoRA(rank=4, quantize="nf4"), dtype=dtype).to(World.alone().device)
    for module in model.modules():
        if is_quantized(module):
            module.training = True  # else, on a CPU, it takes a kernel without gradient
    layer = model.network.model.layers[0].mlp.up_proj
    assert layer.base_layer.weight.dtype == torch.uint8
    assert layer.base_layer.weight.numel() == 256 * 64 // 2
    (batch,) = pack(ROWS, tokens=64)
    plain = load(tiny_folder, head="language", tuning=Frozen(), dtype=dtype)(batch, LOGP).get("logp")
    start = model(batch, LOGP).get("logp")
    assert 1e-3 < (start - plain).abs().mean() < 0.1, "rounded, and not broken"
    save(model, tiny_folder, tmp_path / "rounded")  # its adapters still are nothing
    twin = load(tmp_path / "rounded", head="language", tuning=LoRA(rank=4), dtype=dtype)
    close = 1e-4 if dtype == "float32" else 0.05
    for one in (stirred(model), stirred(twin)):
        one(batch, LOGP).get("logp").sum().backward()
    pairs = zip(model.named_parameters(), twin.named_parameters(), strict=True)
    gradients = {name: (p.grad, q.grad) for (name, p), (_, q) in pairs if p.requires_grad}
    assert len(gradients) == 2 * 2 * len(LINEAR)
    for name, (mine, expected) in gradients.items():
        assert mine is not None and expected is not None
        assert (mine - expected).norm() <= 3 * close * expected.norm(), name
    save(model, tiny_folder, tmp_path / "out")
    again = load(tmp_path / "out", head="language", tuning=Frozen(), dtype=dtype)(batch, LOGP).get("logp")
    torch.testing.assert_close(again, model(batch, LOGP).get("logp").detach(), atol=close, rtol=0)
    with torch.no_grad(), adapters_off(model.network):
        torch.testing.assert_close(model(batch, LOGP).get("logp"), start, atol=1e-6, rtol=0)
