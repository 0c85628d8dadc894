"""Models that cannot be trained, and settings that cannot do what they say: one message each, before anything is trained."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GptOssConfig, GptOssForCausalLM, Lfm2Config, Lfm2ForCausalLM, MambaConfig, MambaForCausalLM, PreTrainedModel

from xwin.data.batch import Sample, pack
from xwin.errors import ModelError, UserError
from xwin.models.causal import load
from xwin.models.tuning import Frozen

from .small import chats, failure, prompts, write

SFT: dict[str, Any] = {"kind": "sft", "data": "./chats.jsonl", "epochs": 1}
Break = Callable[[Path], None]


def config(**changes: Any) -> Break:
    """Changes config.json."""
    return lambda folder: rewrite(folder / "config.json", lambda found: found | changes)


def rewrite(path: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def one_more_token(folder: Path) -> None:
    """An id that the embedding, of 259 rows, does not have."""
    extra = {"id": 259, "content": "<|extra|>"}
    rewrite(folder / "tokenizer.json", lambda found: found | {"added_tokens": [*found["added_tokens"], found["added_tokens"][-1] | extra]})


def no_template(folder: Path) -> None:
    rewrite(folder / "tokenizer_config.json", lambda found: {key: value for key, value in found.items() if key != "chat_template"})
    (folder / "chat_template.jinja").unlink(missing_ok=True)


def broken(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


BEFORE_ANYTHING: list[tuple[Break, dict[str, Any], str]] = [
    (config(model_type="foobar"), {}, "the architecture 'foobar' is unknown to transformers"),
    (config(model_type="t5"), {}, "'t5' is no language model that writes from left to right"),
    (one_more_token, {}, "the tokenizer has ids up to 259, and the embedding has 259 rows"),
    (no_template, {"template": "own"}, "the tokenizer has no chat template"),
    (lambda _: None, {"optim": {"lr": 1e3}}, "must be at most 0.1, not 1000.0: AdamW moves every weight by about lr in each step"),
    (lambda _: None, {"optim": {"decay": 0.5}}, "decay is read by schedule wsd alone"),
]
NAMES = ["unknown", "no-lm", "tokenizer", "template", "lr", "decay"]


def attempt(tmp_path: Path, tiny_folder: Path, spoil: Break, settings: dict[str, Any]) -> UserError:
    """A good stage, then one over a spoiled copy of the model."""
    write(tmp_path / "chats.jsonl", chats(["yes"] * 4))
    shutil.copytree(tiny_folder, tmp_path / "bad")
    (tmp_path / "bad" / "DIGEST").unlink()
    spoil(tmp_path / "bad")
    error = failure(tmp_path, tiny_folder, {"good": {**SFT, "init": "base"}, "bad": {**SFT, "init": "./bad", **settings}})
    assert isinstance(error, UserError)
    return error


@pytest.mark.parametrize(("spoil", "settings", "what"), BEFORE_ANYTHING, ids=NAMES)
def test_what_can_be_known_is_said_before_the_first_stage(
    spoil: Break, settings: dict[str, Any], what: str, tmp_path: Path, tiny_folder: Path
) -> None:
    assert what in str(attempt(tmp_path, tiny_folder, spoil, settings))
    assert not (tmp_path / "run" / "stages" / "good").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has what the others lack")
@pytest.mark.parametrize("settings", [{"tune": {"kind": "lora", "quantize": "nf4"}}, {"optim": {"moments": "8bit"}}], ids=["nf4", "8bit"])
def test_what_needs_cuda_is_refused_before_the_first_stage(settings: dict[str, Any], tmp_path: Path, tiny_folder: Path) -> None:
    error = attempt(tmp_path, tiny_folder, lambda _: None, settings)
    assert "needs bitsandbytes on a CUDA device" in error.what
    assert "pip install 'xwin-lm[cuda]'" in error.fix
    assert not (tmp_path / "run" / "stages" / "good").exists()


IN_ITS_STAGE: list[tuple[Break, dict[str, Any], str]] = [
    (broken, {}, "the weight model.layers.1.mlp.up_proj.weight holds numbers that are not finite"),
    (lambda _: None, {"tokens_per_batch": 32}, "tokens, but a batch holds 32"),
    (lambda _: None, {"tune": {"kind": "lora", "targets": ["c_attn"]}}, "tune.targets: no linear layer is named c_attn"),
    (lambda _: None, {"tune": {"kind": "last", "layers": 0}}, "tune.layers: nothing of the model would be trained"),
]


@pytest.mark.parametrize(("spoil", "settings", "what"), IN_ITS_STAGE, ids=["nan", "budget", "targets", "nothing"])
def test_what_shows_when_weights_and_rows_are_read_is_said_before_a_step(
    spoil: Break, settings: dict[str, Any], what: str, tmp_path: Path, tiny_folder: Path
) -> None:
    assert what in str(attempt(tmp_path, tiny_folder, spoil, settings))
    assert not (tmp_path / "run" / "stages" / "bad" / "events.jsonl").exists()


def test_a_budget_that_no_prompt_and_answer_fit_is_refused(tmp_path: Path, tiny_folder: Path) -> None:
    write(tmp_path / "prompts.jsonl", prompts(3))
    scorer = {"kind": "length", "shape": {"kind": "linear"}}
    rl = {"kind": "rl", "init": "base", "prompts": "./prompts.jsonl", "scorer": scorer, "critic": {"init": "base"}, "tokens_per_batch": 64}
    assert "do not fit tokens_per_batch of 64" in str(failure(tmp_path, tiny_folder, {"rl": rl}))


SHAPE = {"vocab_size": 259, "hidden_size": 32, "num_hidden_layers": 2}
MIXING: list[tuple[Callable[[], PreTrainedModel], str]] = [
    (lambda: MambaForCausalLM(MambaConfig(**SHAPE, state_size=4)), "mamba has linear_attention"),
    (
        lambda: Lfm2ForCausalLM(
            Lfm2Config(**SHAPE, intermediate_size=32, num_attention_heads=2, num_key_value_heads=2, layer_types=["conv", "full_attention"])
        ),
        "lfm2 has conv",
    ),
]


@pytest.mark.parametrize(("make", "what"), MIXING, ids=["mamba", "lfm2"])
def test_a_model_that_carries_something_from_token_to_token_beside_attention_is_refused(
    make: Callable[[], PreTrainedModel], what: str, tmp_path: Path
) -> None:
    """Packed, the end of one sample would colour the beginning of the next."""
    make().save_pretrained(tmp_path / "model")
    with pytest.raises(ModelError, match=what) as caught:
        load(tmp_path / "model", head="language", tuning=Frozen(), dtype="float32")
    assert "the samples of a pack would mix" in caught.value.what


def test_an_attention_that_is_more_than_a_softmax_over_keys_is_refused(tmp_path: Path) -> None:
    """GPT-OSS has a learned sink in each head; without it every log-probability would be another."""
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "num_local_experts": 2, "num_experts_per_tok": 1}
    shape: dict[str, Any] = {**SHAPE, **heads, "intermediate_size": 32}
    GptOssForCausalLM(GptOssConfig(**shape)).save_pretrained(tmp_path / "model")
    model = load(tmp_path / "model", head="language", tuning=Frozen(), dtype="float32")
    (batch,) = pack([Sample("a", (5, 6, 7), (False, True, True))], tokens=8)
    with pytest.raises(ModelError, match="the attention of GptOssAttention has s_aux, which packed training does not compute"):
        model(batch, frozenset({"logp"}))
