"""The program as a person meets it: help, version, messages, exit codes."""

import json
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from inside import xwin

from xwin.cli.main import main


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "tiny.yaml"
    path.write_text("name: tiny\nstages:\n  prompts: {kind: prompts, train: 16, validation: 8, test: 8}\n")
    return path


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["plan", "--help"], ["explain", "--help"], ["init", "--help"]])
def test_help_teaches_with_examples(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert xwin(monkeypatch, *arguments) == 0
    assert "xwin " in capsys.readouterr().out


def test_the_version_is_printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert xwin(monkeypatch, "--version") == 0
    assert capsys.readouterr().out.startswith("xwin-lm ")


def test_an_unknown_command_is_a_user_error(monkeypatch: pytest.MonkeyPatch) -> None:
    assert xwin(monkeypatch, "rnu") == 2


def test_a_plan_is_a_table_or_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], recipe: Path) -> None:
    assert xwin(monkeypatch, "plan", "tiny.yaml") == 0
    assert "not done yet" in capsys.readouterr().out
    assert xwin(monkeypatch, "plan", "tiny.yaml", "--json", "--set", "seed=4") == 0
    values = json.loads(capsys.readouterr().out)
    assert values["directory"] == "runs/tiny-s4"
    assert [row["stage"] for row in values["stages"]] == ["prompts"]
    assert not Path("runs").exists()  # a plan leaves nothing behind


def test_a_run_with_json_prints_one_object_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], recipe: Path
) -> None:
    assert xwin(monkeypatch, "run", "tiny.yaml", "--json") == 0
    said = capsys.readouterr()
    facts = json.loads(said.out)
    assert facts["recipe"] == "tiny"
    assert facts["stages"]["prompts"]["status"] == "published"
    assert "prompts  done in" in said.err
    assert Path("runs/tiny-s0/stages/prompts/train.jsonl").exists()


def test_mistakes_go_to_stderr_without_a_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], recipe: Path) -> None:
    assert xwin(monkeypatch, "plan", "tiny.yaml", "--set", "prompts.trian=3") == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: 1 mistake in the recipe:\n  --set prompts.trian=3")
    assert "Traceback" not in said.err


def test_a_missing_recipe_is_a_user_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], recipe: Path) -> None:
    assert xwin(monkeypatch, "run", "none.yaml") == 2
    assert "no such recipe" in capsys.readouterr().err


def test_explain_lists_kinds_and_shows_settings(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert xwin(monkeypatch, "explain") == 0
    listed = capsys.readouterr().out
    assert all(word in listed for word in ("stages", "prompts", "objectives", "ppo", "gae"))
    assert xwin(monkeypatch, "explain", "ppo.clip") == 0
    shown = capsys.readouterr().out
    assert "above 0" in shown and "0.2" in shown
    assert xwin(monkeypatch, "explain", "ppo.clipp") == 2
    assert "did you mean 'clip'?" in capsys.readouterr().err


def test_the_traceback_of_a_bug_does_not_hold_a_secret(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A bug is an error that is not ours; the program has set the hook that prints it."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-PLANTED0001")
    monkeypatch.setattr(sys, "argv", ["xwin", "explain"])
    with suppress(SystemExit):
        main()
    try:
        raise RuntimeError("no such key: sk-PLANTED0001")
    except RuntimeError as error:
        sys.excepthook(type(error), error, error.__traceback__)
    said = capsys.readouterr().err
    assert said.startswith("Traceback") and said.endswith("RuntimeError: no such key: <OPENAI_API_KEY>\n")
    assert "PLANTED" not in said
