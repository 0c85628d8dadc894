"""A Llama model as a Hugging Face folder: its shape, the names of its weights and the files around them. Needs NumPy only, not torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file
from tokenizers import Tokenizer

from xwin.errors import StorageError


@dataclass(frozen=True, slots=True)
class LlamaShape:
    """What config.json says about a Llama model.  Example: SmolLM2-135M is LlamaShape(30, 576, 1536, 9, 3, 64, 49152, 8192, 1e5, 1e-5)."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    context: int
    rope_theta: float
    norm_eps: float


@dataclass(frozen=True, slots=True)
class Specials:
    """Ids of the special tokens and the chat template; an id of None means that the model has no such token."""

    bos: int | None
    eos: int | None
    pad: int | None
    unk: int | None
    chat_template: str | None
    add_bos: bool = False
    add_eos: bool = False


KNOWN_SHAPES = {
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53": LlamaShape(30, 576, 1536, 9, 3, 64, 49152, 8192, 1e5, 1e-5),
}
"""sha256 of a GGUF file -> the shape of its model, embeddings tied: what a plan says of the demo's model before it is fetched."""

LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""Part of a layer as GGUF calls it -> as Hugging Face calls it."""


def weight_shapes(shape: LlamaShape, *, tied: bool) -> dict[str, tuple[int, ...]]:
    """Every weight a Llama model of this shape has, by its Hugging Face name; [out, in] for matrices."""
    d, q, kv, ffn = shape.hidden, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim, shape.intermediate
    parts: dict[str, tuple[int, ...]] = {
        "attn_norm": (d,),
        "attn_q": (q, d),
        "attn_k": (kv, d),
        "attn_v": (kv, d),
        "attn_output": (d, q),
        "ffn_norm": (d,),
        "ffn_gate": (ffn, d),
        "ffn_up": (ffn, d),
        "ffn_down": (d, ffn),
    }
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (shape.vocab, d), "model.norm.weight": (d,)}
    for layer in range(shape.layers):
        shapes |= {f"model.layers.{layer}.{LAYER_NAMES[part]}.weight": size for part, size in parts.items()}
    return shapes if tied else shapes | {"lm_head.weight": (shape.vocab, d)}


def write_folder(to: Path, shape: LlamaShape, weights: Mapping[str, np.ndarray], tokenizer: Tokenizer, specials: Specials) -> None:
    """Writes config.json, generation_config.json, model.safetensors (float32), tokenizer.json and tokenizer_config.json.

    Args:
        to: an existing folder.
        shape: the model's shape.
        weights: by Hugging Face name; without "lm_head.weight" the head is tied to the embedding.
        tokenizer: complete, special tokens included.
        specials: ids of special tokens.

    Raises:
        StorageError: the weights cannot be written, for instance because the disk is full.
    """
    ends = {"bos_token_id": specials.bos, "eos_token_id": specials.eos, "pad_token_id": specials.pad}
    _write_json(to / "config.json", llama_config(shape, tied="lm_head.weight" not in weights) | ends)
    _write_json(to / "generation_config.json", ends)
    _write_json(to / "tokenizer_config.json", _tokenizer_config(tokenizer, specials, shape.context))
    (to / "tokenizer.json").write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
    floats = {name: np.ascontiguousarray(weight, dtype=np.float32) for name, weight in weights.items()}
    try:
        save_file(floats, to / "model.safetensors", metadata={"format": "pt"})
    except SafetensorError as error:
        raise StorageError(f"the weights cannot be written ({error})", str(to), "make room, or set XWIN_CACHE to another folder") from error
    (to / "model.safetensors").chmod(0o644)  # save_file leaves it to the owner alone


def llama_config(shape: LlamaShape, *, tied: bool) -> dict[str, Any]:
    """What config.json says of a Llama model of this shape, special tokens left out."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": shape.layers,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocab,
        "max_position_embeddings": shape.context,
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.rope_theta},
        "rms_norm_eps": shape.norm_eps,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "tie_word_embeddings": tied,
        "initializer_range": 0.02,
        "use_cache": True,
        "dtype": "float32",
    }


def _tokenizer_config(tokenizer: Tokenizer, specials: Specials, context: int) -> dict[str, Any]:
    ids = {"bos_token": specials.bos, "eos_token": specials.eos, "pad_token": specials.pad, "unk_token": specials.unk}
    named = {name: tokenizer.id_to_token(i) for name, i in ids.items() if i is not None}
    template = {} if specials.chat_template is None else {"chat_template": specials.chat_template}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context,
        "add_bos_token": specials.add_bos,
        "add_eos_token": specials.add_eos,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        **named,
        **template,
    }


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
