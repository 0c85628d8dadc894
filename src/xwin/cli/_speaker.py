"""The model that a person named, opened: what `chat`, `generate` and `serve` have in common."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xwin.cli._places import find
from xwin.errors import UserError
from xwin.spec import nearest

if TYPE_CHECKING:
    from xwin.data.template import Template
    from xwin.engines.base import Engine, Sampling


class DType(StrEnum):
    """Type of the arithmetic."""

    float32 = "float32"
    bfloat16 = "bfloat16"


Dtype = Annotated[DType, typer.Option(help="Type of the arithmetic.")]
TemplateOption = Annotated[
    str,
    typer.Option(metavar="T", help="vicuna, chatml, llama2, llama3, mistral, zephyr, own (the tokenizer's); auto: what a stage learned, else own."),
]
EngineOption = Annotated[str, typer.Option(metavar="KIND", help="What writes: local, or vllm where it is installed.")]


@dataclass(frozen=True)
class Speaker:
    """A model that can answer."""

    name: str
    """As the person named it."""
    folder: Path
    """A Hugging Face folder."""
    template: str
    words: Template
    engine: Engine


def open_speaker(model: str, template: str, dtype: DType, engine: str = "local", **settings: Any) -> Speaker:
    """Finds, fetches and loads a model.

    Args:
        model: see `xwin.cli._places.find`.
        template: one of data.template.NAMES, or "auto".
        dtype: type of the arithmetic.
        engine: kind of the engine.
        settings: of the engine.

    Raises:
        UserError: there is no such model, template or engine.
        ModelError: it cannot be loaded, or its tokenizer and its weights do not belong together.
    """
    from pydantic import ValidationError

    from xwin.data.template import NAMES, load_template
    from xwin.engines.base import EngineKind
    from xwin.models.usable import require_usable
    from xwin.spec import names

    if template not in (*NAMES, "auto"):
        raise UserError(f"there is no template '{template}'", "--template", nearest(template, [*NAMES, "auto"]))
    if engine not in names(EngineKind.package):
        raise UserError(f"there is no engine '{engine}'", "--engine", nearest(engine, names(EngineKind.package)))
    try:
        kind = EngineKind.choose({"kind": engine, **settings})
    except ValidationError:
        raise UserError(f"the engine '{engine}' cannot run a model that is named here", "--engine", "take local") from None
    place = find(model)
    folder = place.fetched()
    require_usable(folder)
    name = place.template if template == "auto" else template
    words = load_template(folder, name)
    return Speaker(model, folder, name, words, kind.build(folder, words.stop, dtype.value))


def sampling_of(**settings: Any) -> Sampling:
    """How answers are drawn.

    Raises:
        UserError: a setting is out of its range; names the option.
    """
    from pydantic import ValidationError

    from xwin.engines.base import Sampling

    try:
        return Sampling.model_validate(settings)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise UserError(first["msg"], f"--{str(first['loc'][0]).replace('_', '-')}") from None
