"""What can be known of a model's folder before any weight is loaded: its architecture, and that its tokenizer fits its embedding."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

from xwin.data._export import read_json
from xwin.data._rules import open_tokenizer
from xwin.errors import ModelError


def require_usable(folder: Path) -> None:
    """Sees to it that the model in a Hugging Face folder can be trained and asked.

    Raises:
        ModelError: transformers does not know the architecture, or it writes no text, or the tokenizer has ids without a row in the embedding.
    """
    config = read_json(folder / "config.json")
    _require_known(config, folder)
    rows = config.get("vocab_size", config.get("text_config", {}).get("vocab_size"))
    largest = max(open_tokenizer(folder).backend_tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    if rows is not None and largest >= rows:
        what = f"the tokenizer has ids up to {largest}, and the embedding has {rows} rows"
        raise ModelError(what, str(folder), "use the tokenizer the model was trained with, or resize the embedding and save the model again")


def _require_known(config: dict[str, Any], folder: Path) -> None:
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    kind = str(config.get("model_type"))
    if kind not in CONFIG_MAPPING:
        what = f"the architecture '{kind}' is unknown to transformers {version('transformers')}, and code that a model brings is not run"
        raise ModelError(what, str(folder), "use a model of a published architecture, or a version of transformers that has it")
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or config.get("is_encoder_decoder"):
        what = f"the architecture '{kind}' is no language model that writes from left to right"
        raise ModelError(what, str(folder), "use a causal language model, such as a llama, mistral or qwen2")
