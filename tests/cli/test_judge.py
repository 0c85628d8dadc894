"""`xwin eval judge`, `judge-quality` and `mt-bench` as a person meets them, against a real endpoint; a kill included."""

from __future__ import annotations

import gzip
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from statistics import stdev
from typing import Any

import pytest
from engines.endpoint import Endpoint, Say, endpoint, failing
from scorers.test_judge import FIRST, SECOND, longer, shown

import xwin as package
from xwin.cli.main import main

DATA = Path(os.environ.get("XWIN_TEST_DATA") or Path(__file__).parents[3] / "shared" / "data")
PEOPLE = DATA / "human_agreement"
needs_people = pytest.mark.skipif(not PEOPLE.exists(), reason=f"the public sets of human votes are not in {PEOPLE}")
REANNOTATED = DATA / "alpaca_eval" / "judge_seed_reannotation.jsonl.gz"
needs_reannotations = pytest.mark.skipif(not REANNOTATED.exists(), reason=f"the re-annotations are not in {REANNOTATED.parent}")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with nothing near it, and a cache of its own."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("XWIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("XWIN_DATA", raising=False)


def xwin(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Runs the program in this process and returns its exit code."""
    monkeypatch.setattr(sys, "argv", ["xwin", "eval", *map(str, arguments)])
    try:
        main()
    except SystemExit as done:
        return int(done.code or 0)
    return 0


def outputs(name: str, **texts: str | dict[str, str]) -> Path:
    """A file of alpaca_eval's layout: instruction -> output, or model -> instruction -> output."""
    path = Path(name)
    sets = {model: told if isinstance(told, dict) else texts for model, told in texts.items() if isinstance(told, dict)} or {path.stem: texts}
    rows = [{"instruction": q, "output": a, "generator": model} for model, told in sets.items() for q, a in told.items()]
    path.write_text(json.dumps(rows))
    return path


def by(server: Endpoint) -> tuple[str, ...]:
    return ("--judge", "remote:toy", "--endpoint", server.url, "--key", "")


MINE = {"q1": "a longer answer", "q2": "b", "q3": "the same", "q4": "", "q5": "c" * 100_000}
THEIRS = {"q1": "short", "q2": "a longer one", "q3": "the same", "q4": "something", "q5": "d"}


def refuses_long(body: dict[str, Any], number: int) -> Say:
    return failing(400, "maximum context length") if len(body["messages"][-1]["content"]) > 50_000 else longer(body, number)


def test_a_win_rate_by_a_judge_as_json_and_as_labels(monkeypatch, capsys):
    outputs("mine.json", **MINE), outputs("theirs.json", **THEIRS)
    with endpoint(refuses_long) as server:
        assert xwin(monkeypatch, "judge", "mine.json", "--against", "theirs.json", *by(server), "--out", "labels.json", "--json") == 0
        found = json.loads(capsys.readouterr().out)
        assert len(server.asked) == 4
    (row,) = found["models"]
    assert (row["model"], row["win_rate"], row["n_total"], row["n_draws"]) == ("mine", 37.5, 4, 1)  # won q1, lost q2 and q4, q3 equal
    assert (row["avg_length"], row["low"] <= 37.5 <= row["high"]) == ((15 + 1 + 8 + 0 + 100_000) // 5, True)
    account = found["account"]
    assert (account["n_pairs"], account["n_equal"], account["n_questions"], account["n_unread"], account["n_refused"]) == (5, 1, 4, 1, 1)
    assert account["examples"] == ["(maximum context length)"]
    assert (found["judge"]["name"], found["judge"]["against"], len(found["judge"]["prompt"])) == ("remote:toy", "theirs", 12)
    labels = json.loads(Path("labels.json").read_text())
    assert [label["preference"] for label in labels] == [2.0, 1.0, 1.5, 1.0, None]
    assert {(label["generator_1"], label["generator_2"], label["annotator"]) for label in labels} == {("theirs", "mine", "remote:toy")}
    assert xwin(monkeypatch, "alpaca", "labels.json", "--json") == 0  # what is written is what alpaca_eval writes
    again = json.loads(capsys.readouterr().out)["models"][0]
    assert {k: v for k, v in again.items() if k != "length_controlled_winrate"} == {k: v for k, v in row.items() if k != "length_controlled_winrate"}


def test_for_people_what_went_wrong_is_said(monkeypatch, capsys):
    outputs("mine.json", a="one two", b="x", odd="y"), outputs("theirs.json", a="one", b="xyz", odd="z")
    rule = lambda body, number: Say("Beide gut.") if "odd" in body["messages"][-1]["content"] else longer(body, number)  # noqa: E731
    with endpoint(rule) as server:
        assert xwin(monkeypatch, "judge", "mine.json", "--against", "theirs.json", *by(server)) == 0
    said = capsys.readouterr().out
    assert "mine against theirs: win rate 50.00 %" in said
    assert "1 pairs have no label and are left out (0 questions refused)" in said
    assert "'Beide gut.'" in said
    assert "1 questions were asked again" in said


def test_both_orders_show_the_position_bias(monkeypatch, capsys):
    outputs("mine.json", a="1", b="2"), outputs("theirs.json", a="3", b="4")
    with endpoint(lambda body, number: Say(FIRST)) as server:
        assert xwin(monkeypatch, "judge", "mine.json", "--against", "theirs.json", *by(server), "--orders", "both", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["models"][0]["win_rate"] == 50.0
    first, consistent = found["account"]["first_preferred"], found["account"]["consistent"]
    assert (first["value"], first["n"], consistent["value"], found["account"]["n_questions"]) == (1.0, 2, 0.0, 4)
    assert first["low"] < 1.0 == first["high"]  # of two pairs: Wilson


def test_different_instructions_are_refused_with_the_difference_unless_common(monkeypatch, capsys):
    outputs("mine.json", a="1", only_mine="2"), outputs("theirs.json", a="33", only_theirs="4")
    with endpoint(longer) as server:
        assert xwin(monkeypatch, "judge", "mine.json", "--against", "theirs.json", *by(server)) == 2
        said = capsys.readouterr().err
        assert "1 only in mine ('only_mine'); 1 only in theirs ('only_theirs')" in said
        assert not server.asked
        assert xwin(monkeypatch, "judge", "mine.json", "--against", "theirs.json", *by(server), "--common", "--json") == 0
        assert json.loads(capsys.readouterr().out)["models"][0]["n_total"] == 1
    outputs("theirs.json", other="1")
    with endpoint(longer) as server:
        assert xwin(monkeypatch, "judge", "mine.json", "--against", "theirs.json", *by(server), "--common") == 2
    assert "no instruction in common" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"output": "x"}], "neither an instruction nor an idx"),
        ([{"instruction": "a"}], "has no output"),
        ([{"instruction": "a", "output": None}], "has no output"),
        ([{"instruction": "a", "output": 3}], "output must be text"),
        ([{"instruction": "a", "output": "x"}, {"instruction": "a", "output": "y"}], "there twice"),
        ([{"idx": 3, "output": "x"}], "names instruction 3 by its number alone"),
        ([{"messages": [{"role": "user", "content": "a"}]}], "has no answer"),
        ([{"instruction": "a", "output": "x", "generator": "m"}, {"instruction": "a", "output": "y", "generator": "n"}], "holds 2 models"),
    ],
)
def test_outputs_that_cannot_be_judged_name_file_and_row(monkeypatch, capsys, rows, said):
    Path("mine.json").write_text(json.dumps(rows))
    outputs("theirs.json", a="1")
    with endpoint(longer) as server:
        assert xwin(monkeypatch, "judge", "mine.json", "--against", "theirs.json", *by(server)) == 2
    message = capsys.readouterr().err
    assert said in message
    assert "mine.json" in message


def test_outputs_are_read_from_what_people_have(monkeypatch, capsys):
    outputs("theirs.json", a="1")
    outputs("many.json", one={"a": "22"}, two={"a": ""})
    Path("samples.jsonl").write_text(json.dumps({"prompt": "a", "answers": {"sft": {"text": "333", "passed": True}}}) + "\n")
    Path("chat.jsonl").write_text(json.dumps({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "4444"}]}) + "\n")
    with endpoint(longer) as server:
        for name, model, rate in [
            ("many.json:one", "one", 100.0),
            ("many.json:two", "two", 0.0),
            ("samples.jsonl", "sft", 100.0),
            ("chat.jsonl", "chat", 100.0),
        ]:
            assert xwin(monkeypatch, "judge", name, "--against", "theirs.json", *by(server), "--json") == 0
            row = json.loads(capsys.readouterr().out)["models"][0]
            assert (row["model"], row["win_rate"]) == (model, rate)
        assert xwin(monkeypatch, "judge", "many.json:three", "--against", "theirs.json", *by(server)) == 2
        assert "holds no model 'three'" in capsys.readouterr().err


def test_public_references_and_numbered_outputs_come_from_the_tables(monkeypatch, capsys):
    Path("tables").mkdir()
    rows = [
        {"idx": i, "instruction": f"q{i}", "lc_instruction_difficulty": 0, "reference_davinci003": "abc", "reference_gpt4_1106": ""} for i in range(3)
    ]
    Path("tables/instructions.jsonl.gz").write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    Path("mine.jsonl").write_text("".join(json.dumps({"idx": i, "model": "m", "output": "x" * (2 * i)}) + "\n" for i in range(3)))
    with endpoint(longer) as server:
        for name, rate in [("davinci003", 100 / 3), ("gpt4_1106", 100 * 2.5 / 3)]:
            assert xwin(monkeypatch, "judge", "mine.jsonl", "--against", name, "--tables", "tables", *by(server), "--json") == 0
            found = json.loads(capsys.readouterr().out)
            assert (found["judge"]["against"], found["models"][0]["win_rate"]) == (name, pytest.approx(rate))


def test_a_judge_may_be_a_file_of_settings_and_its_mistakes_have_lines(monkeypatch, capsys):
    outputs("mine.json", a="1"), outputs("theirs.json", a="22")
    with endpoint(longer) as server:
        Path("judge.yaml").write_text(f"model: toy\nendpoint: {server.url}\nkey: null\nusd_in: 1000\nusd_out: 0\n")
        assert xwin(monkeypatch, "judge", "mine.json", "--against", "theirs.json", "--judge", "judge.yaml", "--json") == 0
        first = json.loads(capsys.readouterr().out)["account"]
        assert xwin(monkeypatch, "judge", "mine.json", "--against", "theirs.json", "--judge", "judge.yaml", "--json") == 0
        second = json.loads(capsys.readouterr().out)["account"]
        assert len(server.asked) == 1
    assert first["usd"] == first["usd_now"] > 0
    assert (second["usd"], second["usd_now"]) == (first["usd"], 0.0)  # what was paid before is known, and not paid again
    Path("judge.yaml").write_text("model: toy\nkey: sk-abc-123\nretires: 3\n")
    assert xwin(monkeypatch, "judge", "mine.json", "--against", "theirs.json", "--judge", "judge.yaml") == 2
    said = capsys.readouterr().err
    assert "judge.yaml:2" in said
    assert "never the key itself" in said
    assert "sk-abc" not in said
    assert "did you mean 'retries'" in said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--judge", "remote:toy", "--endpoint", "localhost:1/v1"), "an endpoint is http"),
        (("--judge", "remote:toy", "--key", "", "--out", "nowhere/labels.json"), "cannot be written there"),
        (("--judge", "remote:toy", "--key", "NOT_SET_ANYWHERE"), "NOT_SET_ANYWHERE holds no key"),
        (("--judge", "nobody"), "is not a model"),
        (("--judge", "reward:nobody"), "is not a reward model"),
        (("--judge", "none.yaml"), "none.yaml"),
        (("--judge", "remote:toy", "--key", "", "--prompt", "none.txt"), "cannot be read as a prompt"),
        (("--judge", "remote:toy", "--key", "", "--endpoint", "http://127.0.0.1:9/v1"), "cannot be reached"),
    ],
)
def test_a_judge_that_is_not_there_is_an_error_with_a_fix(monkeypatch, capsys, options, said):
    outputs("mine.json", a="1"), outputs("theirs.json", a="22")
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    assert xwin(monkeypatch, "judge", "mine.json", "--against", "theirs.json", "--out", "labels.json", *options) in {1, 2}
    assert said in capsys.readouterr().err
    assert not Path("labels.json").exists()


def test_an_endpoint_that_fails_half_way_loses_nothing(monkeypatch, capsys):
    outputs("mine.json", **{f"q{i}": "mine" for i in range(20)}), outputs("theirs.json", **{f"q{i}": "their" for i in range(20)})
    with endpoint(lambda body, number: failing(401) if number == 12 else longer(body, number)) as server:
        assert xwin(monkeypatch, "judge", "mine.json", "--against", "theirs.json", *by(server), "--json") == 1
        assert "answers 401" in capsys.readouterr().err
        before = len(server.asked)
        assert xwin(monkeypatch, "judge", "mine.json", "--against", "theirs.json", *by(server), "--json") == 0
        assert len(server.asked) - before == 20 - (before - 1)  # all that were answered were kept
    assert json.loads(capsys.readouterr().out)["models"][0]["n_total"] == 20


def test_after_a_kill_nothing_that_was_answered_is_asked_again(tmp_path):
    outputs("mine.json", **{f"q{i}": "mine" for i in range(60)}), outputs("theirs.json", **{f"q{i}": "their" for i in range(60)})
    command = [sys.executable, "-c", "from xwin.cli.main import main; main()", "eval", "judge", "mine.json", "--against", "theirs.json", "--json"]
    env = {**os.environ, "PYTHONPATH": str(Path(package.__file__).parents[1])}
    with endpoint(lambda body, number: Say(FIRST if shown(body)[0] == "mine" else SECOND, seconds=0.1)) as server:
        killed = subprocess.Popen([*command, *by(server)], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while len(server.asked) < 20 and killed.poll() is None:
            time.sleep(0.02)
        killed.send_signal(signal.SIGKILL)
        assert killed.wait() == -signal.SIGKILL
        with sqlite3.connect(tmp_path / "cache" / "replies.sqlite") as database:
            kept = database.execute("SELECT count(*) FROM replies").fetchone()[0]
        database.close()
        before = len(server.asked)
        assert 0 < kept < 60
        done = subprocess.run([*command, *by(server)], env=env, capture_output=True, text=True, check=True)
        assert len(server.asked) - before == 60 - kept
    assert json.loads(done.stdout)["models"][0]["win_rate"] == 100.0


def test_a_model_of_ours_and_a_reward_model_judge_too(monkeypatch, capsys, tiny_folder, tmp_path):
    outputs("mine.json", a="1", b="same"), outputs("theirs.json", a="22", b="same")
    assert xwin(monkeypatch, "judge", "mine.json", "--against", "theirs.json", "--judge", tiny_folder, "--style", "token", "--json") == 2
    assert "can be read" in capsys.readouterr().err  # random weights: neither m nor M is among its five likeliest tokens
    assert (
        xwin(monkeypatch, "judge", "mine.json", "--against", "theirs.json", "--judge", f"reward:{reward_model(tiny_folder, tmp_path)}", "--json") == 0
    )
    found = json.loads(capsys.readouterr().out)
    (row,) = found["models"]
    assert (row["n_total"], row["n_draws"]) == (2, 1)
    assert 25.0 < row["win_rate"] < 75.0
    assert (found["account"]["n_questions"], found["account"]["n_equal"], found["account"]["n_unread"]) == (0, 1, 0)


def test_what_a_reward_model_cannot_read_at_once_has_no_label_and_says_why(monkeypatch, capsys, tiny_folder, tmp_path):
    folder = reward_model(tiny_folder, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 512}))
    outputs("mine.json", a="1", b="x" * 2000), outputs("theirs.json", a="22", b="y")
    assert xwin(monkeypatch, "judge", "mine.json", "--against", "theirs.json", "--judge", f"reward:{folder}", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["models"][0]["n_total"], found["account"]["n_pairs"], found["account"]["n_unread"]) == (1, 2, 1)
    (said,) = found["account"]["examples"]
    assert "tokens are more than the reward model can read, 512" in said


def reward_model(tiny_folder: Path, tmp_path: Path) -> Path:
    """The tiny model with a drawn head, published."""
    from xwin.data.template import export_template
    from xwin.distributed.world import World
    from xwin.learning.learner import Learner
    from xwin.models import causal
    from xwin.models.tuning import Full
    from xwin.objectives.bradley_terry import BradleyTerry

    folder = tmp_path / "reward"
    model = causal.load(tiny_folder, head="score", tuning=Full(), dtype="float32", head_seed=1)
    Learner(model, tiny_folder, World.alone(), BradleyTerry()).publish(folder)
    export_template(folder, "vicuna")
    return folder


def test_help_teaches_with_examples(monkeypatch, capsys):
    for command in ("judge", "judge-quality", "mt-bench"):
        assert xwin(monkeypatch, command, "--help") == 0
        assert f"xwin eval {command}" in capsys.readouterr().out


@needs_people
def test_human_agreement_on_the_public_half_of_pandalm(monkeypatch, capsys):
    assert xwin(monkeypatch, "judge-quality", PEOPLE / "pandalm_testset.jsonl.gz", "--json") == 0
    (found,) = json.loads(capsys.readouterr().out)["sets"]
    assert (found["n_pairs"], found["n_full"]) == (484, 999)
    assert {name: round(kappa["value"], 4) for name, kappa in found["people"].items()} == {"kappa_12": 0.8829, "kappa_13": 0.8926, "kappa_23": 0.9009}
    assert found["people_published"] == {"kappa_12": 0.852, "kappa_13": 0.8789, "kappa_23": 0.8617}
    judges = {row["judge"]: row for row in found["judges"]}
    assert round(judges["gpt35"]["agreement"]["value"], 2) == 70.45
    assert round(judges["pandalm7b"]["agreement"]["value"], 2) == 65.50
    assert (judges["gpt35"]["n_unread"], judges["gpt35"]["published"]["agreement"]) == (14, 71.07)
    assert xwin(monkeypatch, "judge-quality", PEOPLE / "pandalm_testset.jsonl.gz") == 0
    assert "not reproducible from the 484 that are here" in capsys.readouterr().out


@needs_people
def test_llmbar_by_subset_beside_the_published_values(monkeypatch, capsys):
    assert xwin(monkeypatch, "judge-quality", PEOPLE / "llmbar.jsonl.gz", "--json") == 0
    (found,) = json.loads(capsys.readouterr().out)["sets"]
    assert found["n_pairs"] == 430
    row = next(row for row in found["judges"] if (row["judge"], row["part"]) == ("GPT-4/Vanilla", "Natural"))
    assert (row["n"], row["published"]) == (54, {"agreement": 95.5, "consistent": 95.0, "n": 100.0})
    assert row["agreement"]["value"] == pytest.approx(100 * (2 * 54 - 8) / (2 * 54))  # 8 of 108 votes are not the label
    longest = next(row for row in found["judges"] if (row["judge"], row["part"]) == ("the longer output", ""))
    assert longest["agreement"]["value"] == pytest.approx(47.44, abs=0.005)


@needs_reannotations
def test_variance_of_the_reannotations(monkeypatch, capsys):
    """Second implementation: by hand over the votes, with the mode of three."""
    assert xwin(monkeypatch, "judge-quality", REANNOTATED, "--json") == 0
    (found,) = json.loads(capsys.readouterr().out)["sets"]
    with gzip.open(REANNOTATED, "rt") as lines:
        votes = [json.loads(line)["votes"] for line in lines]
    for row in found["judges"]:
        mine = [[v[f"{row['judge']}_seed{i}"] for i in range(4)] for v in votes]
        wrong = [said[i] != (2 if sum(said) - said[i] >= 5 else 1) for said in mine for i in range(4)]
        assert row["variance"]["value"] == pytest.approx(100 * sum(wrong) / len(wrong))
        assert row["prefers_first"]["value"] == pytest.approx(100 * sum(v == 1 for said in mine for v in said) / (4 * len(mine)))
        by_pair = [sum(said[i] != (2 if sum(said) - said[i] >= 5 else 1) for i in range(4)) / 4 for said in mine]  # the unit is the pair
        half = 196.711 * stdev(by_pair) / len(by_pair) ** 0.5  # t with 333 degrees of freedom, percent
        assert row["variance"]["low"] == pytest.approx(row["variance"]["value"] - half, abs=1e-3)
        assert row["variance"]["high"] == pytest.approx(row["variance"]["value"] + half, abs=1e-3)
        assert row["variance"]["n"] == len(mine) == 334
    assert [round(row["variance"]["value"], 2) for row in found["judges"]] == [15.72, 19.09]
    assert [row["published"]["variance"] for row in found["judges"]] == [14.93, 17.90]


def test_a_judge_of_ones_own_is_measured_on_votes_of_people(monkeypatch, capsys):
    """Three pairs: people prefer the longer twice; the judge always does. Of 6 decided votes 3 are for the output shown first."""
    pairs = [("aa", "b", 1), ("a", "bb", 2), ("a", "b" * 50, 1)]
    rows = [{"subset": "S", "input": f"q{i}", "output_1": a, "output_2": b, "label": label, "judges": {}} for i, (a, b, label) in enumerate(pairs)]
    Path("votes.json").write_text(json.dumps(rows))
    with endpoint(longer) as server:
        assert xwin(monkeypatch, "judge-quality", "votes.json", *by(server), "--json") == 0
        assert len(server.asked) == 6
    rows = {(r["judge"], r["part"]): r for r in json.loads(capsys.readouterr().out)["sets"][0]["judges"]}
    mine = rows["remote:toy", ""]
    assert mine["agreement"]["value"] == pytest.approx(200 / 3)
    assert [mine[name]["value"] for name in ("prefers_first", "consistent", "prefers_longer")] == [50.0, 100.0, 100.0]
    assert mine["prefers_longer"]["n"] == 1  # only one pair differs by more than 30 characters
    assert mine["variance"] is None
    assert rows["the longer output", ""]["agreement"]["value"] == pytest.approx(200 / 3)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"instruction": "a"}, "is no set of pairs and votes"),
        (
            {"annotator1": 3, "annotator2": 1, "annotator3": 1, "response1": "", "response2": ""},
            "annotator1 must be one of 0, 1, 2",
        ),
        ({"label": 0, "judges": {}, "input": "a", "output_1": "", "output_2": ""}, "label must be one of 1, 2"),
        ({"votes": {"x_seed0": 1}, "instruction": "a", "output_1": ""}, "needs output_1 and output_2"),
        ({"label": 1, "judges": {"x": [1]}, "input": "a", "output_1": "", "output_2": "b"}, "the votes of x must be a list of two"),
    ],
)
def test_votes_that_make_no_sense_name_the_row(monkeypatch, capsys, row, said):
    Path("votes.jsonl").write_text(json.dumps(row) + "\n")
    assert xwin(monkeypatch, "judge-quality", "votes.jsonl") == 2
    assert said in capsys.readouterr().err


def test_seeds_for_nobody_are_refused(monkeypatch, capsys):
    assert xwin(monkeypatch, "judge-quality", "votes.jsonl", "--seeds", "3") == 2
    assert "name a judge by --judge" in capsys.readouterr().err
