"""What a tokenizer of the `tokenizers` library does around its model, and how to make it do something else."""

from __future__ import annotations

import copy
import json
from collections.abc import Collection
from enum import StrEnum
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from xwin.data.conversation import Json
from xwin.errors import ModelError

RULES = ("normalizer", "pre_tokenizer", "decoder")


class Prefix(StrEnum):
    """Where a tokenizer puts the space of a text's beginning (SentencePiece: the dummy prefix)."""

    NEVER = "never"
    FIRST = "first"
    """Before the first text only; nothing after a special token."""
    ALWAYS = "always"
    """Before every text, also between special tokens (Llama's tokenizer of the older kind, `legacy`)."""


def rules_of(tokenizer: Tokenizer) -> Json:
    """How a tokenizer treats text around its model: normalizer, pre_tokenizer and decoder, as in its JSON."""
    parts = {name: getattr(tokenizer, name) for name in RULES}
    return {name: None if part is None else json.loads(part.__getstate__()) for name, part in parts.items()}


def apply_rules(tokenizer: Tokenizer, rules: Json) -> None:
    """Makes a tokenizer follow other rules; the inverse of `rules_of`."""
    made = Tokenizer.from_str(json.dumps(rules | {"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {}, "merges": []}}))
    for name in RULES:
        setattr(tokenizer, name, getattr(made, name))


def prefix_of(rules: Json) -> Prefix:
    """What the rules of a tokenizer say about the space of a text's beginning."""
    found = {_habit(node) for node in _nodes(rules["normalizer"]) + _nodes(rules["pre_tokenizer"])}
    return Prefix.ALWAYS if Prefix.ALWAYS in found else Prefix.FIRST if Prefix.FIRST in found else Prefix.NEVER


def with_prefix(rules: Json, prefix: Prefix) -> Json:
    """The rules with another habit: NEVER, or FIRST where it is ALWAYS. The input is left alone."""
    changed = copy.deepcopy(rules)
    for key in ("normalizer", "pre_tokenizer", *(("decoder",) if prefix is Prefix.NEVER else ())):
        changed[key] = _stripped(changed[key], prefix)
    if prefix is Prefix.FIRST and changed["pre_tokenizer"] is None:
        changed["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    return changed


def _nodes(node: Json) -> list[Json]:
    """A normaliser or pre-tokeniser and all that it is made of."""
    if not isinstance(node, dict):
        return []
    return [node, *(part for key in ("normalizers", "pretokenizers", "decoders") for child in node.get(key, ()) for part in _nodes(child))]


def _habit(node: Json) -> Prefix:
    kind = node["type"]
    if kind == "Metaspace":
        return Prefix(node.get("prepend_scheme", "always"))
    always = kind == "Prepend" or (kind == "ByteLevel" and node.get("add_prefix_space"))
    return Prefix.ALWAYS if always else Prefix.NEVER


def _stripped(node: Json, prefix: Prefix) -> Json:
    if not isinstance(node, dict):
        return node
    if node["type"] == "Prepend" or (node["type"] == "Strip" and node.get("start", 0) > 0):
        return None
    for key in ("normalizers", "pretokenizers", "decoders"):
        if key in node:
            node[key] = [part for part in (_stripped(child, prefix) for child in node[key]) if part is not None]
    if node["type"] == "Metaspace":
        node["prepend_scheme"] = prefix.value
    if node["type"] == "ByteLevel":
        node["add_prefix_space"] = False
    return node


def as_text(tokenizer: Tokenizer, controls: Collection[str], turned: Collection[str]) -> Tokenizer:
    """A copy that takes special tokens for text, and a text as it is: nothing cut off, nothing filled up.

    Args:
        tokenizer: left alone.
        controls: all special tokens.
        turned: those of them that the tokenizer does not call special.

    Raises:
        ModelError: a special token that is typed would still become one.
    """
    made = _plain(Tokenizer.from_str(_source(tokenizer, turned)) if turned else copy.deepcopy(tokenizer))
    typed = _typed(made, controls)
    if typed:  # its merges, or its pieces, spell special tokens
        made = _plain(Tokenizer.from_str(_source(made, turned, unspelled=typed)))
        typed = _typed(made, typed)
    if typed:
        raise ModelError(
            f"the tokenizer makes a special token of the typed text {sorted(typed)[0]!r}", fix="use a tokenizer that can tell them apart"
        )
    return made


def _typed(tokenizer: Tokenizer, controls: Collection[str]) -> set[str]:
    """Special tokens whose text, when typed, becomes the token."""
    texts = [text for control in controls for text in (control, f" {control}", f"a{control}a")]
    found = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    ids = {tokenizer.token_to_id(control): control for control in controls}
    return {ids[i] for each in found for i in each.ids if i in ids}


def _source(tokenizer: Tokenizer, turned: Collection[str], unspelled: Collection[str] = ()) -> str:
    """The JSON of a tokenizer for which `turned` are special and that cannot spell `unspelled`."""
    source = json.loads(tokenizer.to_str())
    for token in source["added_tokens"]:
        token["special"] = token["special"] or token["content"] in turned
    model = source["model"]
    if model["type"] == "BPE":
        model["merges"] = [merge for merge in model["merges"] if "".join(merge) not in unspelled]
    elif model["type"] == "Unigram":
        model["vocab"] = [[piece, -1e9 if piece in unspelled else score] for piece, score in model["vocab"]]
    return json.dumps(source)


def _plain(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def open_tokenizer(folder: Path) -> Any:
    """transformers' tokenizer of a Hugging Face folder, as everybody else will load it.

    Raises:
        ModelError: there is none, or it is not one of the `tokenizers` library.
    """
    from transformers import AutoTokenizer

    if not any((folder / name).exists() for name in ("tokenizer.json", "tokenizer.model")):
        raise ModelError("has no tokenizer.json", str(folder), "save its tokenizer with transformers' fast tokenizer first")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"its tokenizer cannot be loaded ({error})", str(folder), "save it again with transformers' fast tokenizer") from error
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError("its tokenizer is not a fast one", str(folder), "save it again with transformers' fast tokenizer")
    return tokenizer
