"""`xwin generate` as a person meets it."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from inside import xwin

PROGRAM = [sys.executable, "-c", "from xwin.cli.main import main; main()"]


@pytest.fixture
def place(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with questions as AlpacaEval has them, and the tiny model beside it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XWIN_CACHE", str(tmp_path / "cache"))
    (tmp_path / "model").symlink_to(tiny_folder)
    rows = [{"prompt": f"Question {i}?", "answer": str(i)} for i in range(6)]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_questions_become_outputs(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["generate", "./model", "questions.jsonl", "--out", "a.jsonl", "-n", "2", "--max-tokens", "6", "--template", "vicuna"]
    assert xwin(monkeypatch, *command) == 0
    rows = [json.loads(line) for line in (place / "a.jsonl").read_text().splitlines()]
    assert len(rows) == 12
    assert (rows[1]["instruction"], rows[1]["generator"], rows[1]["meta"]["answer"]) == ("Question 0?", "./model#1", "0")
    about = json.loads((place / "a.jsonl.about.json").read_text())
    assert (about["n"], about["sampling"]["max_tokens"], about["engine"]) == (2, 6, "local")
    assert xwin(monkeypatch, *command) == 0
    assert "12 of 12 answers are there" in capsys.readouterr().err
    assert xwin(monkeypatch, *command, "--seed", "1") == 2
    assert "made otherwise: seed was 0, not 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--out", "none/a.jsonl"], "cannot be written there"),
        (["--top-p", "0"], "--top-p"),
        (["--min-p", "1"], "--min-p"),
        (["--template", "vicunna"], "did you mean 'vicuna'?"),
        (["--engine", "vllmm"], "there is no engine 'vllmm'"),
        (["--engine", "remote"], "remote"),
    ],
)
def test_a_mistake_is_told(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], change: list[str], message: str) -> None:
    assert xwin(monkeypatch, "generate", "./model", "questions.jsonl", "--out", "a.jsonl", *change) == 2
    assert message in capsys.readouterr().err
    assert not (place / "a.jsonl").exists()


def test_a_model_whose_tokenizer_is_another_ones_is_refused(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tiny_folder: Path
) -> None:
    from serving.folders import copied

    wrong = copied(tiny_folder, place / "wrong", vocab_size=200)
    assert xwin(monkeypatch, "generate", str(wrong), "questions.jsonl", "--out", "a.jsonl") == 2
    assert "the embedding has 200 rows" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_command_goes_on_to_the_same_file(place: Path) -> None:
    rows = [{"prompt": f"Question {i}?"} for i in range(40)]
    (place / "many.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [*PROGRAM, "generate", "./model", "many.jsonl", "-n", "4", "--max-tokens", "200", "--temperature", "1"]
    subprocess.run([*command, "--out", "whole.jsonl"], check=True, capture_output=True)
    killed, kills = place / "killed.jsonl", 0
    while not killed.exists() or killed.read_text().count("\n") < 160:
        process = subprocess.Popen([*command, "--out", "killed.jsonl"], stderr=subprocess.DEVNULL)
        before = killed.read_text().count("\n") if killed.exists() else 0
        while process.poll() is None and not (killed.exists() and killed.read_text().count("\n") >= before + 60):
            time.sleep(0.005)
        process.send_signal(signal.SIGTERM if kills else signal.SIGKILL)
        assert process.wait() in (0, -signal.SIGKILL, 143)
        kills += 1
    assert kills >= 2
    assert killed.read_bytes() == (place / "whole.jsonl").read_bytes()
