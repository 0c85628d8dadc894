"""A tiny random Llama with a byte tokenizer, as a Hugging Face folder: for tests and smoke runs. Made from a fixed seed, with NumPy alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from xwin.models._llama import LlamaShape, Specials, weight_shapes, write_folder
from xwin.seeds import generator

REVISION = 1
"""Raised whenever the same shape gives another model; part of the cached folder's name."""

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
"""Ids 0, 1, 2. Byte b has id 3 + b. As in SmolLM2 the padding token is the end token, 2."""

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
CONTEXT = 1024
EMBEDDING_STD = 0.05
"""Small, because the embedding is also the head: the spread of the logits is sqrt(hidden) times this, 0.4 nats at 64."""


def write_random(layers: int, hidden: int, to: Path) -> None:
    """Writes the random model of this size.

    Args:
        layers: number of layers, at least 1.
        hidden: width, a multiple of 16; heads are 32 wide where that divides it, else 16.
        to: an existing, empty folder.
    """
    shape = random_shape(layers, hidden)
    weights = {name: _weight(name, size) for name, size in weight_shapes(shape, tied=True).items()}
    write_folder(to, shape, weights, byte_tokenizer(), Specials(bos=1, eos=2, pad=2, unk=0, chat_template=CHAT_TEMPLATE))


def random_shape(layers: int, hidden: int) -> LlamaShape:
    """The shape of the random model of this size."""
    head_dim = 32 if hidden % 32 == 0 else 16
    heads = hidden // head_dim
    return LlamaShape(
        layers=layers,
        hidden=hidden,
        intermediate=4 * hidden,
        heads=heads,
        kv_heads=heads // 2 if heads % 2 == 0 else heads,
        head_dim=head_dim,
        vocab=len(SPECIALS) + 256,
        context=CONTEXT,
        rope_theta=10000.0,
        norm_eps=1e-5,
    )


def _weight(name: str, size: tuple[int, ...]) -> np.ndarray:
    """Norms are one; the embedding has EMBEDDING_STD; a matrix halves the spread of its input, 0.5 / sqrt(in)."""
    if len(size) == 1:
        return np.ones(size, dtype=np.float32)
    std = EMBEDDING_STD if "embed_tokens" in name else 0.5 / size[1] ** 0.5
    return generator(0, "random model", name).normal(0.0, std, size).astype(np.float32)


def byte_tokenizer() -> Tokenizer:
    """One token a byte, no merges; encodes every text and decodes it back."""
    vocab = {token: i for i, token in enumerate([*SPECIALS, *map(byte_letter, range(256))])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS])
    return tokenizer


def byte_letter(byte: int) -> str:
    """The printable letter that stands for a byte in a byte-level vocabulary: itself if it prints in Latin-1, else the next free one from 256 on."""
    if _prints(byte):
        return chr(byte)
    return chr(256 + sum(not _prints(b) for b in range(byte)))


def _prints(byte: int) -> bool:
    return 33 <= byte <= 126 or 161 <= byte <= 172 or 174 <= byte <= 255
