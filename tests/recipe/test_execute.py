"""Running a recipe: every stage once, in order; again: nothing; after a stop: the rest."""

import io
import json
import os
import signal
from pathlib import Path

import pytest

from xwin.errors import CheckpointError, Interrupted, RunBusy
from xwin.recipe.execute import run
from xwin.run.console import Console
from xwin.run.directory import RunDirectory


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """One cache of models for all tests of this file."""
    monkeypatch.setenv("XWIN_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def carry_out(recipe: Path, *sets: str) -> tuple[RunDirectory, str]:
    """The run directory and what the console said."""
    said = io.StringIO()
    done = run(recipe, sets, recipe.parent / "run", Console(stream=said))
    return done, said.getvalue()


def lines(said: str, word: str) -> list[str]:
    """The stages of lines such as "sft  done in 0:00:01"."""
    return [line.split()[0] for line in said.splitlines() if f"  {word}" in line]


def test_a_run_makes_everything_once_and_then_nothing(recipe: Path) -> None:
    done, said = carry_out(recipe)
    assert lines(said, "done in") == ["prompts", "sft", "rm", "best"]
    assert said.rstrip().endswith(f"report: {done.path / 'report.html'}")
    assert (done.path / "report.html").exists()
    before = {path: path.read_bytes() for path in sorted((done.path / "stages").rglob("*")) if path.is_file()}
    _, again = carry_out(recipe)
    assert lines(again, "skipped:") == ["prompts", "sft", "rm", "best"]
    assert lines(again, "done in") == []
    assert before == {path: path.read_bytes() for path in sorted((done.path / "stages").rglob("*")) if path.is_file()}


def test_the_directory_says_what_the_run_was(recipe: Path) -> None:
    done, _ = carry_out(recipe, "best.steps=4")
    manifest = json.loads((done.path / "manifest.json").read_text())
    assert manifest["recipe"] == "tiny" and manifest["seed"] == 1
    assert manifest["stages"] == ["prompts", "sft", "rm", "best"]
    assert manifest["set"] == ["best.steps=4"]
    assert set(manifest["inputs"]) == {str(recipe), "base", "./pairs.jsonl"}
    assert (done.path / "recipe.yaml").read_text() == recipe.read_text()
    resolved = json.loads((done.path / "recipe.resolved.json").read_text())
    assert resolved["stages"]["best"]["steps"] == 4
    assert resolved["stages"]["sft"]["kind"] == "tune"
    events = (done.path / "events.jsonl").read_text().splitlines()
    assert [json.loads(line)["stage"] for line in events] == ["best"]
    record = done.stage("sft", {}).record()
    assert record and record.metrics == {"loss": 0.5} and record.seconds is not None


def test_one_changed_setting_runs_one_stage(recipe: Path) -> None:
    carry_out(recipe)
    done, said = carry_out(recipe, "best.objective.clip=0.2")
    assert lines(said, "done in") == ["best"]
    assert lines(said, "skipped:") == ["prompts", "sft", "rm"]
    assert "clip=0.2" in (done.path / "stages" / "best" / "final" / "weights.txt").read_text()
    _, back = carry_out(recipe)
    assert lines(back, "done in") == []
    assert "clip=0.1" in (done.path / "stages" / "best" / "final" / "weights.txt").read_text()


def test_a_tampered_artefact_stops_the_run_and_names_the_file(recipe: Path) -> None:
    done, _ = carry_out(recipe)
    weights = done.path / "stages" / "sft" / "final" / "weights.txt"
    weights.write_text("tampered")
    with pytest.raises(CheckpointError, match=r"sft/final/weights\.txt"):
        carry_out(recipe)


def test_two_runs_in_one_directory_are_refused(recipe: Path) -> None:
    with RunDirectory(recipe.parent / "run").locked(), pytest.raises(RunBusy, match=f"process {os.getpid()} on"):
        carry_out(recipe)


def test_a_signal_stops_the_run_where_nothing_is_lost(recipe: Path) -> None:
    class Impatient(Console):
        """Somebody presses Ctrl-C when the last stage begins."""

        def stage(self, name: str, kind: str, text: str) -> None:
            super().stage(name, kind, text)
            if name == "best":
                os.kill(os.getpid(), signal.SIGINT)

    said = io.StringIO()
    with pytest.raises(Interrupted) as caught:
        run(recipe, (), recipe.parent / "run", Impatient(stream=said))
    assert caught.value.exit_code == 130
    assert lines(said.getvalue(), "done in") == ["prompts", "sft", "rm"]
    _, rest = carry_out(recipe)
    assert lines(rest, "skipped:") == ["prompts", "sft", "rm"]
    assert lines(rest, "done in") == ["best"]
