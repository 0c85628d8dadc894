"""Tokenizers to try templates on: small trained ones of each kind that models have, and real ones from packages."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from xwin.data.template import VICUNA_SYSTEM
from xwin.models.hub import cache_folder

LLAMA_CPP = "llama-cpp-python==0.3.36"
"""MIT. Its source package holds vocabularies (GGUF) and chat templates of many models."""
MISTRAL_COMMON = "mistral-common==1.13.1"
"""Apache-2.0. Its wheel holds SentencePiece models of Mistral's tokenizers, which are like Llama's."""

CORPUS = [f"{VICUNA_SYSTEM} USER: Hi! ASSISTANT: Hello.</s>USER: Who are you? ASSISTANT:", "a  b\n\n c USER ASSISTANT", "user assistant system"] * 3
CHATML = (
    "{% for message in messages %}{{ bos_token if loop.first }}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + eos_token + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def byte_level(tokenizer: Tokenizer) -> None:
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()


def metaspace(tokenizer: Tokenizer) -> None:
    """As transformers 5 writes Llama 2's: a space before the first word of a text, and before no other piece."""
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])


def legacy(tokenizer: Tokenizer) -> None:
    """As the files of Llama 2 have it: a space before every text between special tokens."""
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])


FORMS = (byte_level, metaspace, legacy)
SPECIALS = ["<unk>", "<s>", "</s>", "<|im_start|>"]


def write_tokenizer(folder: Path, form: Callable[[Tokenizer], None], specials: list[str] = SPECIALS, **more: Any) -> Path:
    """A trained BPE tokenizer of a kind that models have, with merges across words' beginnings, `<s>` first and `</s>` as the end."""
    fallback = form is not byte_level
    tokenizer = Tokenizer(models.BPE(byte_fallback=fallback, unk_token="<unk>" if fallback else None))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace() if fallback else pre_tokenizers.ByteLevel(add_prefix_space=False)  # learns within words
    first = [*specials, *(f"<0x{b:02X}>" for b in range(256))] if fallback else specials
    alphabet = [] if fallback else pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=640, special_tokens=first, initial_alphabet=alphabet, show_progress=False))
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = [t for t in content["added_tokens"] if t["content"] in specials]
    content["pre_tokenizer"] = None
    tokenizer = Tokenizer.from_str(json.dumps(content))
    form(tokenizer)
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in specials])
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True, "chat_template": CHATML}
    return save(folder, tokenizer, **(named | more))


def save(folder: Path, tokenizer: Tokenizer, **settings: Any) -> Path:
    """The tokenizer as a Hugging Face folder."""
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False} | settings
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    return folder


def fetched(package: str) -> Path:
    """Where the files of a package are once it was fetched; they stay with the models."""
    return cache_folder() / "tests" / package


def fetch(package: str) -> Path:
    """The files of a package that are tokenizers or templates, taken out of its archive; nothing is installed."""
    to = fetched(package)
    if to.exists():
        return to
    part = to.with_name(f".{package}.tmp")
    shutil.rmtree(part, ignore_errors=True)
    kind = "--no-binary=:all:" if package == LLAMA_CPP else "--only-binary=:all:"
    subprocess.run([sys.executable, "-m", "pip", "download", "--no-deps", kind, "-q", "-d", str(part), package], check=True, capture_output=True)
    (archive,) = part.iterdir()
    for name, data in _members(archive):
        (part / name).write_bytes(data)
    archive.unlink()
    part.rename(to)
    return to


def _members(archive: Path) -> Iterator[tuple[str, bytes]]:
    """(file name, bytes) of vocabularies and chat templates."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            yield from ((Path(name).name, wheel.read(name)) for name in wheel.namelist() if ".model" in name)
        return
    with tarfile.open(archive) as source:
        for member in source:
            path = Path(member.name)
            if "llama.cpp/models" in member.name and path.suffix in {".gguf", ".jinja"}:
                data = source.extractfile(member)
                assert data is not None
                yield path.name, data.read()


def gguf_folder(gguf: Path, to: Path) -> Path:
    """The tokenizer of a GGUF file as transformers reads it."""
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(to)
    return to


def sentencepiece_folder(model: Path, to: Path, form: Callable[[Tokenizer], None] = metaspace) -> Path:
    """A byte-pair SentencePiece model as transformers' converter makes it."""
    from transformers.tokenization_utils_base import generate_merges

    pieces = list(_pieces(model.read_bytes()))
    special = [text for text, _, kind in pieces if kind in {2, 3, 4}]  # unknown, control, user defined
    vocabulary = {text: i for i, (text, _, _) in enumerate(pieces)}
    known = {text: score for text, score, kind in pieces if kind == 1}
    merges = generate_merges({text: vocabulary[text] for text in known}, known)
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    form(tokenizer)
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", vocabulary["<s>"])])
    return save(to, tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def _pieces(data: bytes) -> Iterator[tuple[str, float, int]]:
    """(text, score, type) of each piece: field 1 of a ModelProto, whose fields 1, 2 and 3 these are (sentencepiece_model.proto)."""
    for field, value in _fields(data):
        if field == 1:
            piece = dict(_fields(value))
            yield piece[1].decode(), struct.unpack("<f", piece[2])[0], piece.get(3, 1)


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """(number, value) of each field of a protobuf message."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(data):
        key = varint()
        kind = key & 7
        if kind == 0:
            yield key >> 3, varint()
            continue
        size = varint() if kind == 2 else {1: 8, 5: 4}[kind]
        yield key >> 3, data[at : at + size]
        at += size
