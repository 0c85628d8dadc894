"""A template written into a Hugging Face folder, so that plain transformers, and engines that use it, see the ids that were trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from xwin.data._rules import Prefix, apply_rules, prefix_of, rules_of, with_prefix
from xwin.data._tables import Tabular

GENERIC = ("PreTrainedTokenizerFast", "TokenizersBackend")
"""Classes that take tokenizer.json as it is; others build their own tokenizer from its vocabulary."""


def write_layout(folder: Path, layout: Tabular, tokenizer: Tokenizer) -> None:
    """The chat template, the end-of-sequence token and, where it must change, the tokenizer itself.

    A tokenizer that puts a space before every text between special tokens would read `</s>USER:` as `</s> USER:`; it is written as one that does so
    at the very beginning only (transformers' `legacy: false`).
    """
    settings = read_json(folder / "tokenizer_config.json")
    rules = rules_of(tokenizer)
    everywhere = prefix_of(rules) is Prefix.ALWAYS
    if everywhere:
        apply_rules(tokenizer, with_prefix(rules, Prefix.FIRST))
        settings = {key: value for key, value in settings.items() if key != "add_prefix_space"} | {"legacy": False}
    if everywhere or settings.get("tokenizer_class") not in GENERIC:
        (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
        settings["tokenizer_class"] = GENERIC[0]
    settings |= {"chat_template": layout.jinja(), "eos_token": layout.end}
    _write(folder / "tokenizer_config.json", settings)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    _set_ends(folder, layout)


def _set_ends(folder: Path, layout: Tabular) -> None:
    """Every other file that says where generation ends."""
    special = folder / "special_tokens_map.json"
    if special.exists():
        _write(special, read_json(special) | {"eos_token": layout.end})
    generation, config = folder / "generation_config.json", read_json(folder / "config.json")
    stated = read_json(generation)
    if (generation.exists() or config) and stated.get("eos_token_id", config.get("eos_token_id")) != layout.stop[0]:
        ends = {key: config[key] for key in ("bos_token_id", "pad_token_id") if key in config and not generation.exists()}
        _write(generation, ends | stated | {"eos_token_id": layout.stop[0]})


def read_json(path: Path) -> dict[str, Any]:
    """An object from a file, empty where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
