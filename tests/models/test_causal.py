"""Packed models against plain transformers, one sequence at a time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    MistralConfig,
    PreTrainedModel,
    Qwen2Config,
)

from xwin.data.batch import Batch, Outputs, Sample, pack, unpack
from xwin.data.conversation import Message
from xwin.data.template import Template
from xwin.errors import ModelError
from xwin.models.causal import PackedModel, load, save
from xwin.models.tuning import Frozen, Full, LastLayers, LoRA

CLOSE: dict[str, Any] = {"atol": 1e-5, "rtol": 1e-5}
READS = frozenset({"logp", "entropy", "value"})
SHAPE: dict[str, Any] = {
    "vocab_size": 259,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
CONFIGS = {
    "mistral with a window": MistralConfig(**SHAPE, head_dim=16, sliding_window=8, attention_dropout=0.3),
    "qwen2 with biases": Qwen2Config(**SHAPE, tie_word_embeddings=True),
    "qwen2 with a window in one layer": Qwen2Config(**SHAPE, use_sliding_window=True, sliding_window=6, max_window_layers=1),
}


@pytest.fixture(scope="module")
def folders(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("families")
    made = {"llama": tiny_folder}
    random = torch.Generator().manual_seed(0)
    for name, config in CONFIGS.items():
        network = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=random) * (0.1 if parameter.ndim > 1 else 0.5))
        network.save_pretrained(home / name)
        made[name] = home / name
    return made


FAMILIES = ["llama", *CONFIGS]


def samples() -> list[Sample]:
    """16 sequences of 2 to 77 tokens: a system text of 12 that all share, prompts with one to four answers, holes in some masks."""
    random = torch.Generator().manual_seed(1)

    def words(n: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, 259, (n,), generator=random).tolist())

    system, out = words(12), []
    for p, (length, answers) in enumerate([(3, [1, 9, 30]), (0, [2]), (20, [4, 4, 1, 45]), (1, [3, 3]), (40, [25]), (7, [1, 2, 3, 6, 17])]):
        prompt = system + words(length)
        for k, n in enumerate(answers):
            answer = words(n)
            mask = (True,) * n if k != 2 else (True, *(False,) * ((n - 1) // 2), *(True,) * (n - 1 - (n - 1) // 2))
            out.append(Sample(f"{p}/{k}", prompt + answer, (False,) * len(prompt) + mask))
    return out


def plain(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").eval()


@torch.no_grad()
def alone(network: PreTrainedModel, sample: Sample, temperature: float) -> tuple[Tensor, Tensor]:
    """([L] log-probabilities, [L] entropies) of one sequence by transformers itself; 0 where the mask is False."""
    logits = network(input_ids=torch.tensor([sample.tokens])).logits[0, :-1]
    logp = (logits.double() / temperature).log_softmax(-1)
    mask = torch.tensor(sample.mask[1:])
    chosen = logp.gather(1, torch.tensor(sample.tokens[1:])[:, None]).squeeze(1)
    first = torch.zeros(1, dtype=torch.float64)
    return torch.cat([first, chosen * mask]).float(), torch.cat([first, -(logp.exp() * logp).sum(-1) * mask]).float()


def said(model: PackedModel, batches: list[Batch], reads: frozenset[str] = frozenset({"logp", "entropy"})) -> dict[str, dict[str, tuple[float, ...]]]:
    """Output -> sample id -> its numbers."""
    found: dict[str, dict[str, tuple[float, ...]]] = {name: {} for name in reads}
    with torch.no_grad():
        for batch in batches:
            out = model(batch, reads)
            for name in reads:
                found[name] |= unpack(batch, out.get(name))
    return found


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize(("tokens", "temperature"), [(80, 1.0), (4000, 0.7)])
def test_packed_log_probs_are_those_of_plain_transformers(
    family: str, share: bool, tokens: int, temperature: float, folders: dict[str, Path]
) -> None:
    model, network = frozen(folders[family]), plain(folders[family])
    found = said(model, pack(samples(), tokens=tokens, share=share, temperature=temperature))
    for sample in samples():
        logp, entropy = alone(network, sample, temperature)
        for mine, theirs in ((found["logp"][sample.id], logp), (found["entropy"][sample.id], entropy)):
            torch.testing.assert_close(torch.tensor(mine), theirs[-len(mine) :], **CLOSE)
            assert len(mine) >= len(sample.tokens) - sample.start


def frozen(folder: Path) -> PackedModel:
    return load(folder, head="language", tuning=Frozen(), dtype="float32")


@pytest.mark.parametrize("family", FAMILIES)
def test_changing_one_sequence_leaves_the_others_alone(family: str, folders: dict[str, Path]) -> None:
    model, rows = frozen(folders[family]), samples()
    changed = [*rows[:3], replace(rows[3], tokens=rows[3].tokens[:-1] + (7,)), *rows[4:]]
    before, after = (said(model, pack(r, tokens=4000))["logp"] for r in (rows, changed))
    assert before["1/0"] != after["1/0"]
    assert {k: v for k, v in before.items() if k != "1/0"} == {k: v for k, v in after.items() if k != "1/0"}


def gradient(model: PackedModel, batches: list[Batch]) -> dict[str, Tensor]:
    """Of the sum of all trained log-probabilities, weighted so that no two tokens count alike."""
    model.zero_grad()
    for batch in batches:
        out: Outputs = model(batch, frozenset({"logp"}))
        (out.get("logp") * (1 + 0.1 * batch.position)).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tuning", [Full(), LoRA(rank=4)], ids=["full", "lora"])
def test_the_gradient_does_not_know_how_sequences_were_packed(family: str, tuning: Full | LoRA, folders: dict[str, Path]) -> None:
    model = load(folders[family], head="language", tuning=tuning, dtype="float32")
    noise(model)
    layouts = [[b for s in samples() for b in pack([s], tokens=90)], pack(samples(), tokens=120), pack(samples()[::-1], tokens=4000)]
    layouts += [pack(samples(), tokens=130, share=True), pack(samples(), tokens=4000, share=True)]
    first, *others = [gradient(model, batches) for batches in layouts]
    assert first
    assert all(g.abs().max() > 0 for g in first.values())
    for other in others:
        for name, g in first.items():
            assert (g - other[name]).norm() <= 1e-5 * g.norm(), name


def noise(model: PackedModel) -> None:
    """Adapters begin at zero; here they are something."""
    random = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=random) * 0.1)


def test_a_batch_of_which_nothing_is_trained_has_a_gradient_of_zero(tiny_folder: Path) -> None:
    model = load(tiny_folder, head="value", tuning=Full(), dtype="float32")
    (batch,) = pack([Sample("a", (5, 6, 7), (False,) * 3)], tokens=8)
    out = model(batch, READS)
    assert not out.get("logp").any()
    assert not out.get("value").any()
    (out.get("logp").sum() + out.get("value").sum()).backward()
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_entropy_has_no_gradient_and_nothing_is_said_outside_the_mask(tiny_folder: Path) -> None:
    model = load(tiny_folder, head="value", tuning=Full(), dtype="float32")
    for batch in pack(samples(), tokens=4000, share=True):
        out = model(batch, READS)
        assert not out.get("entropy").requires_grad
        for name in READS:
            assert not out.get(name)[~batch.mask].any()
            assert out.get(name)[batch.mask].all()
        assert all(out.get(name).dtype == torch.float32 for name in READS)


def test_the_mean_over_the_vocabulary_is_that_of_all_log_probs(tiny_folder: Path) -> None:
    """Against plain transformers, one sequence at a time."""
    model, network = frozen(tiny_folder), plain(tiny_folder)
    found = said(model, pack(samples(), tokens=200, share=True, temperature=0.7), frozenset({"uniform"}))["uniform"]
    for sample in samples():
        with torch.no_grad():
            logp = (network(input_ids=torch.tensor([sample.tokens])).logits[0, :-1] / 0.7).log_softmax(-1).mean(-1)
        expected = torch.cat([torch.zeros(1), logp * torch.tensor(sample.mask[1:])])
        mine = torch.tensor(found[sample.id])
        torch.testing.assert_close(mine, expected[-len(mine) :], **CLOSE)


def test_only_what_is_asked_for_is_said(tiny_folder: Path) -> None:
    out = frozen(tiny_folder)(pack(samples()[:1], tokens=90)[0], frozenset({"logp"}))
    assert (out.value, out.score) == (None, None)
    with pytest.raises(ModelError, match="no scalar head"):
        frozen(tiny_folder)(pack(samples()[:1], tokens=90)[0], frozenset({"value"}))


def test_dropout_is_off_in_every_pass(folders: dict[str, Path]) -> None:
    """Mistral's config here asks for attention dropout of 0.3; training and sampling must be one function."""
    for tuning in (Full(), LoRA(), Frozen()):
        model = load(folders["mistral with a window"], head="language", tuning=tuning, dtype="float32")
        assert not any(module.training for module in model.modules())
        (batch,) = pack(samples()[:4], tokens=4000)
        first, second = (model(batch, frozenset({"logp"})).get("logp") for _ in range(2))
        assert torch.equal(first, second)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tuning", [Full(), LoRA(rank=4)], ids=["full", "lora"])
def test_a_saved_model_loads_in_plain_transformers_with_equal_logits(
    family: str, tuning: Full | LoRA, folders: dict[str, Path], tiny_folder: Path, tmp_path: Path
) -> None:
    model = load(folders[family], head="language", tuning=tuning, dtype="float32")
    noise(model)
    if isinstance(tuning, Full):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.01)
    before = said(model, pack(samples(), tokens=4000))["logp"]
    save(model, tiny_folder, tmp_path / "out")
    network = AutoModelForCausalLM.from_pretrained(tmp_path / "out", attn_implementation="sdpa").eval()
    for sample in samples():
        torch.testing.assert_close(torch.tensor(before[sample.id]), alone(network, sample, 1.0)[0], **CLOSE)
    tied = AutoConfig.from_pretrained(folders[family]).tie_word_embeddings
    head = network.get_output_embeddings()
    assert head is not None
    assert (head.weight is network.get_input_embeddings().weight) is bool(tied)
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    again = said(frozen(tmp_path / "out"), pack(samples(), tokens=4000))["logp"]
    assert all(again[k] == pytest.approx(before[k], abs=1e-5) for k in before)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tuning", [LoRA(), LastLayers(layers=1)], ids=["lora", "last"])
def test_saving_what_was_not_trained_writes_the_very_same_weights(
    family: str, tuning: LoRA | LastLayers, folders: dict[str, Path], tiny_folder: Path, tmp_path: Path
) -> None:
    """Also when the arithmetic is bfloat16: the rounded copies are not what is saved."""
    for dtype in ("float32", "bfloat16"):
        save(load(folders[family], head="language", tuning=tuning, dtype=dtype), tiny_folder, tmp_path / dtype)
        mine, theirs = plain(tmp_path / dtype).state_dict(), plain(folders[family]).state_dict()
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_a_reward_model_of_which_only_the_head_was_trained_keeps_its_exact_body(tiny_folder: Path, tmp_path: Path) -> None:
    model = load(tiny_folder, head="score", tuning=LastLayers(layers=0), dtype="bfloat16")
    save(model, tiny_folder, tmp_path / "rm")
    mine = AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm").base_model.state_dict()
    theirs = plain(tiny_folder).base_model.state_dict()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_what_is_trained_is_float32_whatever_the_arithmetic(tiny_folder: Path) -> None:
    for tuning in (Full(), LoRA()):
        model = load(tiny_folder, head="value", tuning=tuning, dtype="bfloat16")
        assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
        (batch,) = pack(samples()[:4], tokens=4000)
        out = model(batch, READS)
        assert out.get("logp").dtype == torch.float32
        exact = load(tiny_folder, head="value", tuning=Full(), dtype="float32")(batch, READS)
        assert (out.get("logp") - exact.get("logp")).abs().max() < 0.05
        assert not torch.equal(out.get("logp"), exact.get("logp"))


def test_the_tokenizer_and_its_template_go_along(tiny_folder: Path, own_template: Template, tmp_path: Path) -> None:
    save(frozen(tiny_folder), tiny_folder, tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    rows = [{"role": "user", "content": "Hi!"}]
    assert tokenizer.apply_chat_template(rows, add_generation_prompt=True, return_dict=False) == list(own_template.prompt([Message("user", "Hi!")]))
    config = AutoConfig.from_pretrained(tmp_path / "out")
    assert config.architectures == ["LlamaForCausalLM"]
    assert "xwin" not in (tmp_path / "out" / "config.json").read_text()


def test_generate_of_a_saved_model_agrees_with_the_packed_model(tiny_folder: Path, tmp_path: Path) -> None:
    """Greedy tokens of transformers' own generate are the most likely ones of the packed model, step by step, left padding included."""
    model = frozen(tiny_folder)
    save(model, tiny_folder, tmp_path / "out")
    network = plain(tmp_path / "out")
    short, long = [70, 80, 90], [10, 20, 30, 40, 50, 60, 70]
    ids, attended = torch.tensor([[2] * 4 + short, long]), torch.tensor([[0] * 4 + [1] * 3, [1] * 7])
    written = network.generate(  # type: ignore[operator]
        input_ids=ids, attention_mask=attended, max_new_tokens=6, do_sample=False
    )[:, 7:].tolist()
    for prompt, tokens in zip((short, long), written, strict=True):
        for n in range(len(tokens)):
            before = (*prompt, *tokens[:n])
            options = [Sample(str(t), (*before, t), (False,) * len(before) + (True,)) for t in range(259)]
            logp = said(model, pack(options, tokens=4000, share=True))["logp"]
            assert logp[str(tokens[n])][-1] == pytest.approx(max(v[-1] for v in logp.values()), abs=1e-5)
            if tokens[n] == 2:
                break


def test_what_cannot_be_loaded_says_why(tmp_path: Path, tiny_folder: Path) -> None:
    with pytest.raises(ModelError, match="cannot be loaded"):
        load(tmp_path / "nothing", head="language", tuning=Frozen(), dtype="float32")
    reward = load(tiny_folder, head="score", tuning=Frozen(), dtype="float32")
    save(reward, tiny_folder, tmp_path / "rm")
    with pytest.raises(ModelError, match="is a reward model"):
        load(tmp_path / "rm", head="language", tuning=Frozen(), dtype="float32")
