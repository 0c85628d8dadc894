"""`xwin generate`: answers to a file of prompts, the input of evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xwin.cli._speaker import DType, Dtype, EngineOption, Speaker, TemplateOption, open_speaker, sampling_of
from xwin.errors import DataError

if TYPE_CHECKING:
    from xwin.data.conversation import Conversation
    from xwin.data.sources import Rows
    from xwin.engines.base import Sampling

Stop = Annotated[list[str] | None, typer.Option(metavar="TEXT", help="Ends an answer, and is left out of it; may be given again.")]


def register(app: typer.Typer) -> None:
    """Adds the command `generate`."""
    app.command("generate")(generate)


def generate(  # noqa: PLR0913, PLR0917 - an option each
    model: Annotated[
        str, typer.Argument(metavar="MODEL", show_default=False, help="RUN:stage (runs/tiny-s0:ppo), a folder, hf:org/name, or pypi:name==version.")
    ],
    prompts: Annotated[str, typer.Argument(metavar="PROMPTS", show_default=False, help="Prompts in any format that `xwin data check` knows.")],
    out: Annotated[Path, typer.Option(metavar="FILE.jsonl", show_default=False, help="Where answers go. If it has some, it goes on.")],
    n: Annotated[int, typer.Option("-n", min=1, help="Answers to each prompt.")] = 1,
    first: Annotated[int | None, typer.Option(min=1, metavar="N", show_default=False, help="Only the first N prompts.")] = None,
    temperature: Annotated[float, typer.Option(min=0, help="0: always the most likely token.")] = 0.7,
    top_p: Annotated[float, typer.Option(help="Only the most likely tokens that hold this share.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="Only this many of the most likely tokens; 0: all.")] = 0,
    min_p: Annotated[float, typer.Option(help="Only tokens at least this share as likely as the likeliest.")] = 0.0,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, tokens.")] = 512,
    stop: Stop = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same answers.")] = 0,
    template: TemplateOption = "auto",
    dtype: Dtype = DType.float32,
    engine: EngineOption = "local",
) -> None:
    """Answer a file of prompts, n times each: a line of JSON per answer, in order. Stop it, kill it, run it again: it goes on where it ended.

    A line has id, sample, instruction, output, generator, finish ("stop", or "length": cut off by max_tokens) and both lengths in tokens.
    `xwin eval judge` reads it. With -n above 1 the generators are MODEL#0, MODEL#1 ...: FILE:MODEL#0 names the first one's answers.

    Examples:

      xwin generate runs/tiny-s0:ppo questions.jsonl --out answers.jsonl

      xwin generate hf:org/name prompts.parquet --out sampled.jsonl -n 8 --temperature 1
    """
    from xwin.cli.judge import require_place

    require_place(out)
    sampling = sampling_of(temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p, max_tokens=max_tokens, stop=tuple(stop or ()))
    rows = _prompts(prompts)
    speaker = open_speaker(model, template, dtype, engine)
    about = _about(speaker, rows.digest, {"dtype": dtype.value, "engine": engine, "n": n, "sampling": sampling.settings(), "seed": seed})
    _answer(speaker, rows[:first], sampling, about, out)
    speaker.engine.close()


def _answer(speaker: Speaker, prompts: Any, sampling: Sampling, about: dict[str, Any], out: Path) -> None:
    """Writes what is missing, and says how it went."""
    from xwin.run.console import Console
    from xwin.run.signals import stop_on_signals
    from xwin.serving.answers import Asking, open_answers, write_answers

    asking = Asking(prompts, sampling, about["n"], about["seed"], speaker.name)
    keys = asking.keys()
    with stop_on_signals() as flag, open_answers(out, about, keys) as file:
        before = file.lines
        if before:
            typer.echo(f"{out}: {before} of {len(keys)} answers are there", err=True)
        with Console(json=True).progress("generate", len(keys), "answers", done=before) as shown:

            def told(rollout: Any) -> None:
                shown.advance(tokens=len(rollout.completion))
                flag.obey()

            if before < len(keys):
                write_answers(asking, speaker.engine, speaker.words, file, told)
    typer.echo(f"{len(keys)} answers in {out}", err=True)


def _prompts(source: str) -> Rows[Conversation]:
    """The prompts of a file; of chats, what stands before the last answer."""
    from xwin.data.formats import Makes
    from xwin.data.sources import load
    from xwin.models.hub import cache_folder

    rows = load(source, makes=Makes.CONVERSATIONS, cache=cache_folder() / "data")
    if not len(rows):
        raise DataError("holds no prompts", source)
    return rows


def _about(speaker: Speaker, prompts: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Everything that the answers depend on."""
    from xwin.data.template import template_digest
    from xwin.models.hub import digest_folder

    words = template_digest(speaker.folder, speaker.template)
    return {"model": speaker.name, "weights": digest_folder(speaker.folder), "template": words, "prompts": prompts, **settings}
