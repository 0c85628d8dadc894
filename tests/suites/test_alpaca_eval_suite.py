"""The length-controlled win rate as a part of a recipe: the same number as the command finds in the file that the suite leaves."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from engines.endpoint import Say, endpoint
from inside import xwin
from scorers.test_judge import FIRST, SECOND, longer, shown
from stages.small import carry_out, failure

from suites.test_judging_suites import GOOD, judge, scripted, table
from xwin.run.report import write_report

COUNT = 40


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What judges answer is kept elsewhere than in the cache of other tests."""
    monkeypatch.setenv("XWIN_CACHE", str(tmp_path / "cache"))


def _packed(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))


def _tables(folder: Path) -> None:
    """AlpacaEval's tables in small: harder instructions have longer references, pairs of lengths that won and lost, no published weights."""
    folder.mkdir()
    _packed(
        folder / "instructions.jsonl.gz", ({"idx": i, "instruction": f"q{i}", "lc_instruction_difficulty": (i % 7) / 7 - 0.5} for i in range(COUNT))
    )
    gamed = ({"std_delta_len": i / 10 - 1, "instruction_difficulty": (i % 5) / 5, "preference_equiv": 0.9 - i / 25} for i in range(20))
    _packed(folder / "ae2_lc_gamed_equiv.jsonl.gz", gamed)
    _packed(folder / "ae2_glm_weights.jsonl.gz", [{"model": "other", "w_length": 0.0, "w_difficulty": 0.0, "w_model": 1.0}])
    _packed(folder / "ae2_leaderboard.jsonl.gz", [{"model": "other", "win_rate": 50.0}])


def _wavering(body: dict[str, Any], number: int) -> Say:
    """A judge that likes length, but not of every third instruction: of one that never wavers the regression would have no finite weights."""
    first, second = shown(body)
    at = re.search(r"\bq(\d+)\b", body["messages"][-1]["content"])
    assert at is not None
    return Say(FIRST if (len(first) > len(second)) == (int(at[1]) % 3 > 0) else SECOND)


def _stages(folder: Path, url: Any, *instructions: str) -> dict[str, Any]:
    """One row that always answers "good", and references of 1 to 9 characters."""
    rows = [{"instruction": text, "output": "x" * (1 + i % 9), "generator": "gpt4"} for i, text in enumerate(instructions)]
    (folder / "gpt4.json").write_text(json.dumps(rows))
    suite = {"kind": "alpaca_eval", "data": "./gpt4.json", "tables": "./tables", "judge": {"engine": url}, "sampling": {"max_tokens": 12}}
    row = {"name": "one", "model": "base"}
    return {"report": {"kind": "evaluate", "contenders": [row], "engine": scripted(GOOD), "suites": [suite]}}


def test_the_suite_and_the_command_agree(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sklearn", reason="needs scikit-learn: pip install 'xwin-lm[eval]'")
    _tables(tmp_path / "tables")
    with endpoint(_wavering) as server:
        done = carry_out(tmp_path, tiny_folder, _stages(tmp_path, judge(server), *(f"q{i}" for i in range(COUNT))))
    found = table(done)
    row, plain = found["one", "alpaca_lc/gpt4"], found["one", "alpaca_eval/gpt4"]
    left = done.stage("report") / "alpaca_eval-gpt4-one.json"
    assert xwin(monkeypatch, "eval", "alpaca", str(left), "--length-controlled", "--tables", str(tmp_path / "tables"), "--json") == 0
    (printed,) = json.loads(capsys.readouterr().out.splitlines()[-1])["models"]
    assert row["value"] == pytest.approx(printed["length_controlled_winrate"] / 100, abs=1e-12)
    assert plain["value"] == pytest.approx(printed["win_rate"] / 100, abs=1e-12)
    assert row["n"] == COUNT
    assert row["low"] < row["value"] < row["high"]
    assert row["stderr"] > 0
    assert row["note"].startswith("cross-validated, C = ")
    page = write_report(done.path).read_text()
    assert "length-controlled, %" in page


def test_other_instructions_are_refused_before_anybody_is_asked(tmp_path: Path, tiny_folder: Path) -> None:
    _tables(tmp_path / "tables")
    with endpoint(longer) as server:
        said = str(failure(tmp_path, tiny_folder, _stages(tmp_path, judge(server), "q0", "What else?")))
        assert not server.asked
    assert "1 of 2 instructions are none of AlpacaEval's and have no difficulty, first 'What else?'" in said


def test_a_missing_table_is_named(tmp_path: Path, tiny_folder: Path) -> None:
    _tables(tmp_path / "tables")
    (tmp_path / "tables" / "ae2_lc_gamed_equiv.jsonl.gz").unlink()
    with endpoint(longer) as server:
        assert "ae2_lc_gamed_equiv.jsonl.gz" in str(failure(tmp_path, tiny_folder, _stages(tmp_path, judge(server), "q0")))
        assert not server.asked
