"""docs/inference.md: its Python blocks run against an exported model, its commands are ones that the program knows."""

import re
import shlex
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import typer

from serving.folders import published
from serving.scripted_server import scripted_server
from xwin.cli.main import app, main
from xwin.data.template import Template, export_template

PAGE = (Path(__file__).parents[2] / "docs" / "inference.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE))
COMMANDS = [line.partition("  #")[0].strip() for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]


def blocks(section: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", SECTIONS[section], re.DOTALL)


@pytest.fixture
def place(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which `my-model` is an exported stage."""
    import shutil

    monkeypatch.chdir(tmp_path)
    model = shutil.copytree(tiny_folder, tmp_path / "trained")
    export_template(model, "vicuna")
    published(tmp_path / "runs" / "tiny-s0", "ppo", "rl", model, {}, {"init": "base"})
    monkeypatch.setattr(sys, "argv", ["xwin", "export", "runs/tiny-s0:ppo", "--to", "my-model"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    return tmp_path


def test_transformers_writes_with_the_published_prompt(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    for block in blocks("With transformers"):
        exec(block, names)
    assert capsys.readouterr().out == names["output"] + "\n"
    written = names["samples"].shape[1] - names["inputs"]["input_ids"].shape[1]
    assert written == 4096 or names["samples"][0, -1] == names["tokenizer"].eos_token_id


@pytest.mark.skipif(find_spec("vllm") is None, reason="vllm is not installed")
def test_vllm_writes_with_the_published_prompt(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    (block,) = blocks("With vLLM")
    exec(block, names)
    assert len(names["outputs"]) == 1


def test_the_openai_client_talks_to_the_server(tiny_folder: Path, tiny_template: Template, capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = blocks("As a server")
    with scripted_server(tiny_folder, tiny_template) as running:
        names: dict[str, Any] = {}
        exec(block.replace("http://127.0.0.1:8000", running.url), names)
        assert capsys.readouterr().out == "Hello, can you help me?\nHello, can you help me?"
        names["client"].close()


@pytest.mark.parametrize("command", [line for line in COMMANDS if line.startswith("xwin ") and not line.startswith("xwin eval")])
def test_a_command_of_the_page_is_one_of_the_program(command: str) -> None:
    _, name, *arguments = shlex.split(command)
    group = typer.main.get_command(app)
    group.commands[name].make_context(name, arguments)  # type: ignore[attr-defined] - raises where an option is none
