"""`xwin export`: the model of a stage as a folder for everybody."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from xwin.errors import UserError


def register(app: typer.Typer) -> None:
    """Adds the command `export`."""
    app.command("export")(export)


def export(
    model: Annotated[str, typer.Argument(metavar="RUN:STAGE", show_default=False, help="A finished stage, such as runs/tiny-s0:ppo.")],
    to: Annotated[Path, typer.Option(metavar="DIR", show_default=False, help="A folder that does not exist yet.")],
    adapter: Annotated[bool, typer.Option("--adapter", help="Only the LoRA adapter, as a peft folder.")] = False,
    temperature: Annotated[float, typer.Option(min=0, help="Written into generation_config.json; 0: greedy.")] = 0.7,
    licence: Annotated[str, typer.Option(metavar="ID", help="Of this model, for its card: apache-2.0, llama2 ...")] = "",
    data_licence: Annotated[
        list[str] | None,
        typer.Option(metavar="DATA=TEXT", show_default=False, help="Of data the recipe reads; may be given again."),
    ] = None,
) -> None:
    """Export a stage's model: safetensors, tokenizer with its chat template, generation config and a model card.

    Plain `transformers` and `vllm` load the folder; docs/inference.md shows how.

    Examples:

      xwin export runs/tiny-s0:ppo --to my-model

      xwin export runs/tiny-s0:sft --to my-adapter --adapter
    """
    from xwin.cli._places import ELSEWHERE, RUNS, find, run_of
    from xwin.run.directory import RunDirectory

    run, colon, stage = model.rpartition(":")
    if not colon or not run or model.startswith(ELSEWHERE):
        raise UserError("is not a stage of a run", model, "name RUN:stage, such as runs/tiny-s0:ppo")
    source = Path(find(model).path)
    directory = RunDirectory(run_of(run, RUNS)).stage(stage.partition("/")[0], {})

    from xwin.serving.export import export_adapter, export_model
    from xwin.serving.model_card import Lineage, model_card

    line = Lineage.of(directory.folder.parents[1], directory.name, source.name)
    card = model_card(line, licence=licence, licences=_licences(data_licence or ()), adapter=adapter)
    if adapter:
        export_adapter(directory, source, to, card, line.start())
    else:
        export_model(directory, source, to, card, temperature)
    typer.echo(f"{'adapter' if adapter else 'model'} of {model} in {to}")


def _licences(given: Sequence[str]) -> dict[str, str]:
    """Data -> licence."""
    pairs = [text.rpartition("=") for text in given]
    wrong = next((text for text, (data, _, licence) in zip(given, pairs, strict=True) if not (data and licence)), None)
    if wrong is not None:
        raise UserError(f"is no DATA=TEXT: {wrong!r}", "--data-licence", "write it so: ./chat.jsonl=cc-by-4.0")
    return {data: licence for data, _, licence in pairs}
