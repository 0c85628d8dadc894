"""`xwin plan` as a person calls it: two tables that stay readable on a narrow terminal, one JSON object, and mistakes in the options."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console as Rich

from xwin.recipe._machines import named
from xwin.recipe._needs import needs, needs_table
from xwin.recipe.plan import make_plan
from xwin.recipe.schema import read_recipe
from xwin.run.console import Console
from xwin.run.directory import RunDirectory

SMOKE = Path(__file__).parents[2] / "recipes" / "smoke.yaml"


def xwin(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from xwin.cli.main import main; main()", "plan", *arguments, "--dir", str(folder / "run")]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "100"})


def test_plan_prints_what_is_needed_below_what_is_done(tmp_path: Path) -> None:
    done = xwin(str(SMOKE), folder=tmp_path)
    assert done.returncode == 0, done.stderr
    plan, estimate = done.stdout.split("\nEstimate for this machine")
    assert "not done yet" in plan
    assert "parameters  trained" in estimate and "\nppo " in estimate and "\nprompts " not in estimate
    assert "\nTime: " in estimate and "assumed.\n" in estimate


def test_json_is_one_object_with_the_estimate_of_each_stage(tmp_path: Path) -> None:
    done = xwin(str(SMOKE), "--gpu", "h100", "--count", "8", "--json", folder=tmp_path)
    values = json.loads(done.stdout)
    assert values["machine"]["name"] == "8 x h100"
    parts = values["estimates"]["sft"]["memory_gib"]
    assert set(parts) == {"weights", "gradients", "optimizer", "activations", "logits", "cache", "process"}
    assert values["estimates"]["sft"]["peak_gib"] <= sum(parts.values()) + 0.01


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--gpu", "h10"], "error: --gpu: there is no GPU 'h10' in the table\n  fix: did you mean 'h100'?"),
        (["--count", "4"], "error: --count: counts GPUs, and none is named"),
        (["--gpu", "h100", "--count", "0"], "--count"),
    ],
)
def test_mistakes_in_the_options_exit_with_2_and_a_message(tmp_path: Path, options: list[str], said: str) -> None:
    done = xwin(str(SMOKE), *options, folder=tmp_path)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("width", [80, 120])
def test_on_a_terminal_no_number_is_broken(tmp_path: Path, width: int) -> None:
    found = needs(make_plan(read_recipe(SMOKE, []), RunDirectory(tmp_path / "run")), named("h100", 1))
    stream = io.StringIO()
    console = Console(stream=stream)
    console._rich = Rich(file=stream, force_terminal=True, color_system=None, width=width)
    title, header, rows = needs_table(found)
    console.table(title, header, rows)
    lines = stream.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    for row in rows:
        assert any(all(cell in line for cell in row[:5]) for line in lines), row
