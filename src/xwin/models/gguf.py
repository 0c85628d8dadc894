"""GGUF files of the llama architecture -> Hugging Face folders: weights made float, tokenizer rebuilt, names mapped.

The format is described by the GGUF specification of the ggml project. Two things in it raise no error when they are read wrongly: the rows of
the query and key matrices are stored in the order of interleaved rotary embedding, and digits are split one by one before the byte-level regex.
So a conversion of a file that we know is checked against a log-likelihood that was computed another way (`KNOWN_NLL`).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from gguf import GGUFReader, ReaderTensor, TokenType, dequantize
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from xwin.errors import ModelError
from xwin.models._llama import LAYER_NAMES, LlamaShape, Specials, weight_shapes, write_folder

REVISION = 1
"""Raised whenever the same GGUF file converts to something else; part of the cached folder's name."""

KNOWN_NLL: Mapping[str, tuple[str, float]] = MappingProxyType(
    {
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53": (
            "The capital of France is Paris, and the capital of Italy is Rome. In 1969, people first walked on the Moon.",
            2.262349,
        ),
    }
)
"""sha256 of a GGUF file -> a sentence and its mean negative log-likelihood, nats a token, by a NumPy forward pass over the weights as stored."""

NLL_TOLERANCE = 1e-3
UNREADABLE = (ValueError, IndexError, KeyError, OverflowError, struct.error)
"""What the reader raises on a file that is cut off or altered."""
FIXED = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight", "output.weight": "lm_head.weight"}


def convert(gguf: Path, to: Path) -> None:
    """Writes the GGUF file as a Hugging Face folder of float32 weights.

    Args:
        gguf: a GGUF file; architecture llama, byte-level BPE tokenizer.
        to: an existing, empty folder.

    Raises:
        ModelError: the file is cut off, or its architecture or tokenizer is not supported.
    """
    reader = _open(gguf)
    shape = _shape(reader, gguf)
    tokenizer, specials = _tokenizer(reader, gguf)
    write_folder(to, shape, _weights(reader, shape, gguf), tokenizer, specials)


def check_likelihood(folder: Path, sha256: str) -> None:
    """Compares the converted model with the likelihood that is known for its GGUF file; says nothing of files that are not known.

    Raises:
        ModelError: the model loads but computes something else.
    """
    if sha256 not in KNOWN_NLL:
        return
    sentence, expected = KNOWN_NLL[sha256]
    found = sentence_nll(folder, sentence)
    if not abs(found - expected) <= NLL_TOLERANCE:
        what = f"the converted model is wrong: mean NLL of a known sentence is {found:.4f} nats, must be {expected:.4f}"
        raise ModelError(what, str(folder), "use the versions of torch and transformers that the project pins; if they are, report this as a bug")


def sentence_nll(folder: Path, sentence: str) -> float:
    """Mean negative log-likelihood of a sentence under the model of a folder, float32, nats a predicted token."""
    import torch
    from transformers import AutoModelForCausalLM

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokens = torch.tensor([tokenizer.encode(sentence, add_special_tokens=False).ids])
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True, trust_remote_code=False).eval()
    with torch.inference_mode():
        return float(model(tokens, labels=tokens).loss)


def _open(gguf: Path) -> GGUFReader:
    try:
        return GGUFReader(gguf)
    except UNREADABLE as error:
        raise ModelError(f"not a whole GGUF file ({error})", str(gguf), "fetch it again; it may be cut off") from error


def _field(reader: GGUFReader, key: str, default: Any = None) -> Any:
    field = reader.get_field(key)
    return default if field is None else field.contents()


def _need(reader: GGUFReader, key: str, gguf: Path) -> Any:
    value = _field(reader, key)
    if value is None:
        raise ModelError(f"the GGUF file lacks the field '{key}'", str(gguf), "use a GGUF file made by a current converter")
    return value


def _count(reader: GGUFReader, key: str, gguf: Path) -> int:
    value = _need(reader, key, gguf)
    if not isinstance(value, int):  # a list gives each layer its own
        raise ModelError(f"'{key}' is not one number, which is not supported", str(gguf), "use the model as safetensors")
    return value


def _shape(reader: GGUFReader, gguf: Path) -> LlamaShape:
    arch = _need(reader, "general.architecture", gguf)
    if arch != "llama":
        raise ModelError(f"architecture '{arch}' is not supported", str(gguf), "use a GGUF file of architecture 'llama', or the model as safetensors")
    for key, plain in (("llama.rope.scaling.type", "none"), ("llama.expert_count", 0)):
        if _field(reader, key, plain) != plain:
            raise ModelError(f"'{key}' = {_field(reader, key)} is not supported", str(gguf), "use the model as safetensors")
    heads, hidden = _count(reader, "llama.attention.head_count", gguf), _count(reader, "llama.embedding_length", gguf)
    grouped = reader.get_field("llama.attention.head_count_kv") is not None
    return LlamaShape(
        layers=_count(reader, "llama.block_count", gguf),
        hidden=hidden,
        intermediate=_count(reader, "llama.feed_forward_length", gguf),
        heads=heads,
        kv_heads=_count(reader, "llama.attention.head_count_kv", gguf) if grouped else heads,
        head_dim=_field(reader, "llama.attention.key_length", hidden // heads),
        vocab=len(_need(reader, "tokenizer.ggml.tokens", gguf)),
        context=_count(reader, "llama.context_length", gguf),
        rope_theta=_shortest(_field(reader, "llama.rope.freq_base", 10000.0)),
        norm_eps=_shortest(_need(reader, "llama.attention.layer_norm_rms_epsilon", gguf)),
    )


def _shortest(value: float) -> float:
    """The float32 in the file, as the shortest decimal that rounds to it: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _weights(reader: GGUFReader, shape: LlamaShape, gguf: Path) -> dict[str, np.ndarray]:
    weights = {_hf_name(tensor.name, gguf): _floats(tensor, shape, gguf) for tensor in reader.tensors}
    expected = weight_shapes(shape, tied="lm_head.weight" not in weights)
    found = {name: weight.shape for name, weight in weights.items()}
    if found != expected:
        wrong = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
        name = wrong[0]
        what = f"{len(wrong)} weights do not fit the stated shape: {name} is {found.get(name)}, must be {expected.get(name)}"
        raise ModelError(what, str(gguf), "fetch the file again, or use the model as safetensors")
    return weights


def _hf_name(name: str, gguf: Path) -> str:
    """blk.3.attn_q.weight -> model.layers.3.self_attn.q_proj.weight."""
    parts = name.split(".")
    if name in FIXED:
        return FIXED[name]
    if len(parts) == 4 and parts[0] == "blk" and parts[2] in LAYER_NAMES and parts[3] == "weight":
        return f"model.layers.{parts[1]}.{LAYER_NAMES[parts[2]]}.weight"
    raise ModelError(f"the tensor '{name}' is not part of a plain Llama model", str(gguf), "use the model as safetensors")


def _floats(tensor: ReaderTensor, shape: LlamaShape, gguf: Path) -> np.ndarray:
    try:
        weight = dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
    except NotImplementedError as error:
        what = f"the tensor '{tensor.name}' has type {tensor.tensor_type.name}, which cannot be made float"
        raise ModelError(what, str(gguf), "use a file quantised as Q4_1, Q8_0, Q4_K, Q6_K ...") from error
    if tensor.name.endswith("attn_q.weight"):
        return unpermute(weight, shape.heads)
    return unpermute(weight, shape.kv_heads) if tensor.name.endswith("attn_k.weight") else weight


def unpermute(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a query or key matrix: from pairs (x0, y0, x1, y1 ...) of interleaved rotary embedding to halves (x0, x1 ... y0, y1 ...), head by head.

    Args:
        weight: [heads * head_dim, in].
        heads: number of heads in it.
    """
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _tokenizer(reader: GGUFReader, gguf: Path) -> tuple[Tokenizer, Specials]:
    kind, pre = _need(reader, "tokenizer.ggml.model", gguf), _field(reader, "tokenizer.ggml.pre", "default")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    splitters: dict[str, pre_tokenizers.PreTokenizer] = {
        "gpt-2": byte_level,
        "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level]),
    }
    if kind != "gpt2" or pre not in splitters:
        what = f"tokenizer '{kind}' with pre-tokenizer '{pre}' is not supported"
        raise ModelError(
            what, str(gguf), f"supported: tokenizer 'gpt2' with pre-tokenizer {' or '.join(splitters)}; else use the model as safetensors"
        )
    tokens = _need(reader, "tokenizer.ggml.tokens", gguf)
    merges = [tuple(merge.split(" ", 1)) for merge in _need(reader, "tokenizer.ggml.merges", gguf)]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = splitters[pre]
    tokenizer.decoder = decoders.ByteLevel()
    types = list(zip(tokens, _need(reader, "tokenizer.ggml.token_type", gguf), strict=True))
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token, kind in types if kind == TokenType.CONTROL])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token, kind in types if kind == TokenType.USER_DEFINED])
    return tokenizer, _specials(reader)


def _specials(reader: GGUFReader) -> Specials:
    eos = _field(reader, "tokenizer.ggml.eos_token_id")
    return Specials(
        bos=_field(reader, "tokenizer.ggml.bos_token_id"),
        eos=eos,
        pad=_field(reader, "tokenizer.ggml.padding_token_id", eos),
        unk=_field(reader, "tokenizer.ggml.unknown_token_id"),
        chat_template=_field(reader, "tokenizer.chat_template"),
        add_bos=bool(_field(reader, "tokenizer.ggml.add_bos_token")),
        add_eos=bool(_field(reader, "tokenizer.ggml.add_eos_token")),
    )
