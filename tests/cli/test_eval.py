"""`xwin eval` as a person meets it."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from xwin.cli.main import main
from xwin.suites._alpaca_leaderboard import read_leaderboard

ALPACA = Path(os.environ.get("XWIN_TEST_DATA") or Path(__file__).parents[3] / "shared" / "data") / "alpaca_eval"
needs_public_labels = pytest.mark.skipif(not (ALPACA / "instructions.jsonl.gz").exists(), reason=f"AlpacaEval's public labels are not in {ALPACA}")
KEYS = {
    "model",
    "win_rate",
    "standard_error",
    "n_wins",
    "n_wins_base",
    "n_draws",
    "n_total",
    "discrete_win_rate",
    "length_controlled_winrate",
    "avg_length",
    "low",
    "high",
}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder without public tables near it."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.delenv("XWIN_DATA", raising=False)
    monkeypatch.delenv("XWIN_TEST_DATA", raising=False)


def xwin(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    """Runs the program in this process.

    Returns:
        Its exit code.
    """
    monkeypatch.setattr(sys, "argv", ["xwin", "eval", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        main()
    return int(caught.value.code or 0)


def labels(name: str, **preferences: list[float | None]) -> Path:
    """A label file of these models, judged on instructions 0, 1, ..."""
    path = Path(name)
    lines = [{"model": m, "idx": i, "preference": p, "len_1": 5 + i, "len_2": 9 + i * i} for m, ps in preferences.items() for i, p in enumerate(ps)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def tables(folder: str, count: int) -> Path:
    """Made public tables of `count` instructions, in the layout of the real ones."""
    path = Path(folder)
    path.mkdir()
    made = {
        "instructions": [{"idx": i, "instruction": f"Question {i}?", "lc_instruction_difficulty": i / count} for i in range(count)],
        "ae2_glm_weights": [{"model": "known", "w_length": -1.0, "w_difficulty": 0.0, "w_model": 0.0}],
        "ae2_lc_gamed_equiv": [{"std_delta_len": i / 10 - 1, "instruction_difficulty": i / 20, "preference_equiv": i % 3 / 2} for i in range(20)],
        "ae2_leaderboard": [{"model": "known", "win_rate": 75.0, "length_controlled_winrate": 61.0}],
    }
    for name, rows in made.items():
        (path / f"{name}.jsonl.gz").write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    return path


def test_help_teaches_with_examples(monkeypatch, capsys):
    for command in ("alpaca", "paired", "seed-table"):
        assert xwin(monkeypatch, command, "--help") == 0
        assert f"xwin eval {command}" in capsys.readouterr().out


def test_help_of_eval_loads_nothing_heavy():
    code = (
        "import sys; sys.argv = ['xwin', 'eval', 'alpaca', '--help']\nfrom xwin.cli.main import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "assert not {'torch', 'scipy', 'sklearn'} & set(sys.modules), sys.modules.keys()"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_one_object_of_json_with_the_stated_keys(monkeypatch, capsys):
    path = labels("l.jsonl", weak=[1, 1, 2, None], strong=[2, 2, 1.5, 1])
    assert xwin(monkeypatch, "alpaca", path, "--json") == 0
    said = capsys.readouterr()
    models = json.loads(said.out)["models"]
    assert [set(model) for model in models] == [KEYS, KEYS]
    assert [model["model"] for model in models] == ["strong", "weak"]
    strong = models[0]
    assert (strong["win_rate"], strong["discrete_win_rate"], strong["n_total"], strong["avg_length"]) == (62.5, 62.5, 4, 12)  # 9 10 13 18
    assert strong["length_controlled_winrate"] is None
    assert said.err == ""


def test_annotations_of_alpaca_eval_are_a_table(monkeypatch, capsys):
    rows = [{"instruction": f"{i}?", "output_1": "a", "output_2": "bb", "generator_2": "mine", "preference": 1 + i % 2} for i in range(6)]
    Path("annotations.json").write_text(json.dumps(rows))
    assert xwin(monkeypatch, "alpaca", "annotations.json") == 0
    said = capsys.readouterr().out
    assert "mine" in said and "50.00" in said


def test_the_leaderboard_is_written_and_another_is_shown_beside_it(monkeypatch, capsys):
    path = labels("l.jsonl", a=[2, 1, 2], b=[1, 1, 2])
    Path("old.csv").write_text(",win_rate,n_total\nolder,90.0,805\na,1.0,805\n")
    assert xwin(monkeypatch, "alpaca", path, "--csv", "new.csv", "--leaderboard", "old.csv") == 0
    assert [(row.model, round(row.win_rate, 2)) for row in read_leaderboard(Path("new.csv"))] == [("older", 90.0), ("a", 66.67), ("b", 33.33)]
    assert xwin(monkeypatch, "alpaca", path, "--csv", "nowhere/new.csv") == 2
    assert "nowhere/new.csv: cannot be written there" in capsys.readouterr().err


def test_every_model_is_compared_with_one(monkeypatch, capsys):
    path = labels("l.jsonl", a=[2, 2, 2, 1], b=[1, 1, 2, 1], short=[1, 2])
    assert xwin(monkeypatch, "alpaca", path, "--against", "a") == 0
    said = capsys.readouterr()
    assert "-50.00 points" in said.out
    assert "not compared with a: different instructions: 2 only in a" in said.err
    assert xwin(monkeypatch, "alpaca", path, "--against", "a", "--json") == 0
    told = json.loads(capsys.readouterr().out)["against"]
    assert (told["model"], list(told["models"]), told["models"]["b"]["difference"], told["models"]["b"]["n"]) == ("a", ["b"], -50.0, 4)
    assert "short has no row for 2 of the 4 instructions" in said.err


def test_length_control_takes_published_weights_or_fits(monkeypatch, capsys):
    pytest.importorskip("sklearn", reason="needs scikit-learn: pip install 'xwin-lm[eval]'")
    path, folder = labels("l.jsonl", known=[2, 1, 2, 2] * 5, mine=[1, 1, 2, 1] * 5), tables("tables", 20)
    assert xwin(monkeypatch, "alpaca", path, "--length-controlled", "--json", "--tables", folder) == 0
    said = capsys.readouterr()
    models = {model["model"]: model for model in json.loads(said.out)["models"]}
    assert models["known"]["length_controlled_winrate"] == 50  # weights of 0
    assert 0 < models["mine"]["length_controlled_winrate"] < 50
    assert "known: length-controlled 50.0000 (published weights); the published weights are stale: the leaderboard says 61.0000" in said.err
    assert xwin(monkeypatch, "alpaca", path, "--length-controlled", "--fit", "2.8", "--join", "position", "--tables", folder) == 0
    assert "length-controlled" in capsys.readouterr().out


@pytest.mark.parametrize("how", ["best", "0", "-1", "nan", "inf"])
def test_an_unknown_way_to_fit_is_a_user_error(monkeypatch, capsys, how):
    assert xwin(monkeypatch, "alpaca", labels("l.jsonl", a=[2, 1]), f"--fit={how}") == 2
    assert "auto, published, cv, or a number above 0" in capsys.readouterr().err


def test_length_control_without_tables_says_where_it_looked(monkeypatch, capsys):
    assert xwin(monkeypatch, "alpaca", labels("l.jsonl", a=[2, 1]), "--length-controlled") == 2
    assert "--tables FOLDER" in capsys.readouterr().err


def test_a_bad_label_is_one_message_with_file_and_row(monkeypatch, capsys):
    path = labels("l.jsonl", a=[2, 3])
    assert xwin(monkeypatch, "alpaca", path, "--json") == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: l.jsonl:2: the preference must lie in [1, 2]")


def test_two_files_of_different_instructions_are_refused(monkeypatch, capsys):
    assert xwin(monkeypatch, "alpaca", labels("a.jsonl", a=[2, 1, 2]), labels("b.jsonl", b=[2, 1])) == 2
    assert "different instructions: 1 only in a (a.jsonl) (idx 2)" in capsys.readouterr().err
    assert xwin(monkeypatch, "alpaca", "a.jsonl", "a.jsonl") == 2
    assert "the model a is there twice" in capsys.readouterr().err


def test_files_that_name_instructions_by_text_and_by_number_meet_through_tables_beside_one_of_them(monkeypatch, capsys):
    folder = tables("tables", 4)
    labels("tables/numbers.jsonl", b=[2, 2, 1, 2])
    Path("texts.json").write_text(json.dumps([{"instruction": f"Question {i}?", "preference": 1 + i % 2} for i in range(4)]))
    assert xwin(monkeypatch, "paired", "texts.json", folder / "numbers.jsonl") == 0
    assert "texts 50.00, b 75.00" in capsys.readouterr().out


def test_a_clear_difference_is_called_real(monkeypatch, capsys):
    path = labels("l.jsonl", a=[1, 1, 1, 2] * 10, b=[2, 2, 1, 2] * 10)
    assert xwin(monkeypatch, "paired", f"{path}:a", f"{path}:b") == 0
    said = capsys.readouterr().out
    assert "a 25.00, b 75.00" in said
    assert "The difference is real" in said


def test_an_open_difference_says_how_many_more_would_decide_it(monkeypatch, capsys):
    path = labels("l.jsonl", a=[1, 2] * 10, b=[1, 2] * 8 + [2, 2, 2, 1])
    assert xwin(monkeypatch, "paired", f"{path}:a", f"{path}:b", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert set(said) == {"first", "second", "n", "win_rates", "difference", "low", "high", "p", "decided", "n_needed", "n_more"}
    assert (said["n"], said["difference"], said["decided"]) == (20, pytest.approx(5), False)
    assert said["n_more"] == said["n_needed"] - 20 > 0
    assert xwin(monkeypatch, "paired", f"{path}:a", f"{path}:b") == 0
    assert f"{said['n_more']} more" in capsys.readouterr().out


def test_equal_models_are_told_apart_by_no_number(monkeypatch, capsys):
    path = labels("l.jsonl", a=[1, 2], b=[1, 2])
    assert xwin(monkeypatch, "paired", f"{path}:a", f"{path}:b") == 0
    assert "no number of instructions" in capsys.readouterr().out


@pytest.mark.parametrize(("count", "said"), [(1, "one instruction says nothing"), (3, "6 instructions of this kind would show it")])
def test_a_difference_on_a_few_instructions_is_not_yet_real(monkeypatch, capsys, count, said):
    path = labels("l.jsonl", a=[1] * count, b=[2] * count)
    assert xwin(monkeypatch, "paired", f"{path}:a", f"{path}:b") == 0
    out = capsys.readouterr().out
    assert said in out
    assert "nan" not in out


def test_paired_refuses_what_does_not_compare(monkeypatch, capsys):
    path = labels("l.jsonl", a=[1, 2, 1], b=[1, 2])
    assert xwin(monkeypatch, "paired", f"{path}:a", f"{path}:b") == 2
    assert "different instructions" in capsys.readouterr().err
    assert xwin(monkeypatch, "paired", f"{path}:a", f"{path}:b", "--common") == 0
    assert xwin(monkeypatch, "paired", path, f"{path}:b") == 2
    assert "holds 2 models" in capsys.readouterr().err
    Path("other.jsonl").write_text("".join(json.dumps({"idx": i, "preference": 1, "len_1": 99}) + "\n" for i in range(2)))
    assert xwin(monkeypatch, "paired", f"{path}:b", "other.jsonl") == 2
    assert "judged against different references: 2 of 2" in capsys.readouterr().err


@needs_public_labels
def test_the_shared_labels_give_the_seeds_numbers(monkeypatch, capsys):
    assert xwin(monkeypatch, "alpaca", ALPACA / "ae1_labels.jsonl.gz", "--json") == 0
    models = {model["model"]: model for model in json.loads(capsys.readouterr().out)["models"]}
    assert len(models) == 42
    assert round(models["gpt4"]["win_rate"], 4) == 95.2795


@needs_public_labels
def test_labels_against_the_other_davinci_set_are_refused_where_the_right_one_is_required(monkeypatch, capsys):
    assert xwin(monkeypatch, "alpaca", ALPACA / "ae1_labels.jsonl.gz", "--reference", "davinci003") == 2
    said = capsys.readouterr().err
    assert "Mistral-7B+RAHF-DUAL+LoRA was not judged against davinci003: 774 of 805" in said
    assert "those of alt_davinci003" in said


@needs_public_labels
def test_the_seed_table_is_one_command(monkeypatch, capsys):
    assert xwin(monkeypatch, "seed-table", ALPACA) == 0
    said = capsys.readouterr().out
    assert all(mark in said for mark in ("exact from raw labels", "from published counts", "not public"))
    assert xwin(monkeypatch, "seed-table", ALPACA.parent, "--json") == 0
    cells = json.loads(capsys.readouterr().out)["cells"]
    assert len(cells) == 28
