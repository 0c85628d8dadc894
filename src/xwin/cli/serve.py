"""`xwin serve`: models behind an OpenAI-compatible HTTP address."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from importlib.util import find_spec
from ipaddress import ip_address
from typing import Annotated

import typer

from xwin.cli._speaker import DType, Dtype, EngineOption, TemplateOption, open_speaker
from xwin.errors import MissingExtra, UserError

PACKAGES = ("fastapi", "uvicorn", "prometheus_client")
NAMED = re.compile(r"([\w.-]+)=(?!=)(.+)")


def register(app: typer.Typer) -> None:
    """Adds the command `serve`."""
    app.command("serve")(serve)


def serve(  # noqa: PLR0913, PLR0917 - an option each
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL...", show_default=False, help="RUN:stage, a folder, hf:org/name or pypi:name==version; NAME=MODEL names it."),
    ],
    host: Annotated[str, typer.Option(help="Address to listen at; 127.0.0.1: this machine alone.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: a free one.")] = 8000,
    key: Annotated[str, typer.Option(metavar="VARIABLE", help='Environment variable with the key that clients must send; "": none.')] = "",
    template: TemplateOption = "auto",
    dtype: Dtype = DType.float32,
    engine: EngineOption = "local",
    context: Annotated[int, typer.Option(min=8, help="Longest prompt and answer together, tokens, as far as the model can read.")] = 2048,
    rows: Annotated[int, typer.Option(min=4, help="Answers written together. The cache holds at most rows x context tokens.")] = 16,
    queue: Annotated[int, typer.Option(min=0, help="Answers that may wait for a row; more are refused with 429.")] = 64,
    max_prompt: Annotated[int | None, typer.Option(min=1, show_default=False, help="Longest prompt, tokens; default: the context.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, show_default=False, help="Longest answer, tokens; default: the context.")] = None,
    max_body: Annotated[int, typer.Option(min=1024, help="Largest request, bytes.")] = 1 << 20,
    grace: Annotated[float, typer.Option(min=0, help="Seconds that answers have to end after Ctrl-C or SIGTERM.")] = 30.0,
) -> None:
    """Serve models over OpenAI's HTTP interface: chat and text completions, streams, /healthz, /metrics. Clients are answered together.

    Examples:

      xwin serve runs/tiny-s0:ppo

      xwin serve mine=runs/tiny-s0:ppo base=hf:org/name --port 8001 --key XWIN_KEY
    """
    missing = next((name for name in PACKAGES if find_spec(name) is None), None)
    if missing is not None:
        raise MissingExtra(missing, "serve")
    secret, named = _secret(key), _named(models)

    from xwin.run.signals import stop_on_signals
    from xwin.serving.api import Limits, make_app
    from xwin.serving.meters import Meters
    from xwin.serving.served import open_desk
    from xwin.serving.server import address, listen, run

    if not _is_local(host) and not secret:
        typer.echo(f"anybody who reaches {host} can use this server: --key VARIABLE asks for a key", err=True)
    limits = Limits(max_body, max_prompt or Limits.prompt_tokens, max_tokens or Limits.max_tokens)
    with stop_on_signals() as flag, listen(host, port) as at:
        meters = Meters()
        speakers = {name: open_speaker(model, template, dtype, engine, rows=rows) for name, model in named.items()}
        size = (context, rows + queue)
        served = {name: open_desk(name, s.folder, s.words, s.engine, size, meters.faults.labels(name).inc) for name, s in speakers.items()}
        app = make_app(served, limits, meters, key=secret)
        typer.echo(f"serving {', '.join(served)} at {address(at)}/v1 (Ctrl-C stops)")
        run(app, list(served.values()), at, flag, grace=grace)
    for speaker in speakers.values():
        speaker.engine.close()
    typer.echo("stopped")


def _named(models: Sequence[str]) -> dict[str, str]:
    """Name -> model."""
    found: dict[str, str] = {}
    for model in models:
        match = NAMED.fullmatch(model)
        name, place = (match[1], match[2]) if match else (model, model)
        if name in found:
            raise UserError(f"two models are named '{name}'", fix="name one NAME=MODEL")
        found[name] = place
    return found


def _secret(variable: str) -> str:
    """The key in the environment; "" where none is wanted.

    Raises:
        UserError: the variable holds none.
    """
    secret = os.environ.get(variable, "").strip() if variable else ""
    if variable and not secret:
        raise UserError(f"the environment variable {variable} holds no key", "--key", f"export {variable}=..., or leave --key out")
    return secret


def _is_local(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
