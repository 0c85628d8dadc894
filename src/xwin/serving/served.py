"""A model that is being served: its desk, and how its texts become tokens and back."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xwin.data._export import read_json
from xwin.data._rules import open_tokenizer
from xwin.data.template import Template
from xwin.engines.base import Continuous, Engine
from xwin.errors import UserError
from xwin.serving.desk import Desk


@dataclass(frozen=True)
class Served:
    """What the routes know of a model."""

    name: str
    words: Template
    """For conversations."""
    tokenizer: Any
    """transformers', for texts that are continued as they are."""
    desk: Desk
    since: int
    """Unix seconds."""

    def tokens(self, text: str) -> tuple[int, ...]:
        """What a plain tokenizer makes of a text, a beginning-of-sequence token included where it adds one."""
        return tuple(self.tokenizer(text)["input_ids"])

    def plain(self, ids: Sequence[int]) -> str:
        """The text of an answer as it is, but for its end token."""
        return self.words.decode(ids[:-1] if ids and ids[-1] in self.words.stop else ids)


def open_desk(name: str, folder: Path, words: Template, engine: Engine, size: tuple[int, int], fault: Callable[[], None]) -> Served:
    """Opens the desk of a model.

    Args:
        name: what clients call it.
        folder: a Hugging Face folder.
        words: its template.
        engine: over the folder; used by nobody else.
        size: (the longest prompt and answer together, tokens, as far as the model can read; requests that may be live or waiting).
        fault: called when a step of the model failed.

    Raises:
        UserError: the engine cannot answer requests as they come.
    """
    if not isinstance(engine, Continuous):
        raise UserError("this engine cannot answer requests as they come", "--engine", "take local")
    config = read_json(folder / "config.json")
    readable = config.get("max_position_embeddings") or config.get("text_config", {}).get("max_position_embeddings") or size[0]
    return Served(name, words, open_tokenizer(folder), Desk(engine, min(size[0], readable), size[1], fault), int(time.time()))
