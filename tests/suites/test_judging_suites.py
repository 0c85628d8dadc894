"""MT-bench and judge quality as suites of a recipe: the numbers by hand, against a real endpoint, and their boards in the report."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from engines.endpoint import Endpoint, Say, endpoint
from scorers.test_judge import FIRST, longer
from stages.small import Done, carry_out, failure, ids, pairs, write

from suites.public import ROOT
from xwin.run.facts import read_run
from xwin.run.report import write_report
from xwin.run.statistics import proportion
from xwin.scorers._judge_parsing import is_switched
from xwin.scorers._pairwise import Pair
from xwin.stages.evaluate import Evaluate
from xwin.suites._alpaca_labels import read_labels
from xwin.suites._judge_quality import report
from xwin.suites._judge_votes import VoteSet, read_votes
from xwin.suites._mt_bench import read_answers

QUESTIONS = {81: "writing", 82: "writing", 111: "math"}
GOOD, BAD, ODD = "good", "bad", "odd"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What judges answer is kept elsewhere than in the cache of other tests."""
    monkeypatch.setenv("XWIN_CACHE", str(tmp_path / "cache"))


def table(done: Done) -> dict[tuple[str, str], dict[str, Any]]:
    rows = json.loads((done.stage("report") / "table.json").read_text())
    return {(row["model"], row["metric"]): row for row in rows}


def judge(server: Endpoint) -> dict[str, Any]:
    return {"kind": "remote", "model": "toy", "key": None, "endpoint": server.url}


def exam(folder: Path) -> dict[str, Any]:
    """FastChat's files: three questions, and the reference answers of the one about math."""
    write(folder / "question.jsonl", [{"question_id": i, "category": c, "turns": [f"first of {i}", f"second of {i}"]} for i, c in QUESTIONS.items()])
    choices = [{"index": 0, "turns": ["ref one", "ref two"]}]
    write(folder / "reference.jsonl", [{"question_id": 111, "model_id": "gpt-4", "choices": choices}])
    return {"kind": "mt_bench", "data": "./question.jsonl", "references": "./reference.jsonl", "max_tokens": 12}


def said_by(body: dict[str, Any], name: str) -> str:
    """The answer that is judged: the last one of this assistant."""
    return re.findall(rf"{name} answered:\n(.*?)(?:\n\n|$)", body["messages"][-1]["content"], re.DOTALL)[-1].strip()


GRADES = {GOOD: "[[9]]", BAD: "[[3]]", ODD: "no grade"}


def graded(body: dict[str, Any], number: int) -> Say:
    return Say(GRADES.get(said_by(body, "The assistant"), "[[5]]"))


def compared(body: dict[str, Any], number: int) -> Say:
    """good beats everything; of two others the one shown first wins."""
    first, second = said_by(body, "Assistant A"), said_by(body, "Assistant B")
    return Say("[[B]]" if second == GOOD != first else "[[A]]")


def scripted(text: str) -> dict[str, Any]:
    """An engine that always answers this."""
    return {"kind": "scripted", "other": ids(text)}


def test_mt_bench_grades_every_row(tmp_path: Path, tiny_folder: Path) -> None:
    """Both rows answer "good" everywhere: 9 in each turn and category, and no difference between them."""
    rows = [{"name": "one", "model": "base"}, {"name": "two", "model": "base", "template": "own", "before": "one"}]
    with endpoint(graded) as server:
        suite = {**exam(tmp_path), "engine": judge(server)}
        stages = {"report": {"kind": "evaluate", "contenders": rows, "engine": scripted(GOOD), "suites": [suite]}}
        done = carry_out(tmp_path, tiny_folder, stages)
        assert len(server.asked) == 12  # the own template keeps the space before the answer, so the two rows' answers are not the same
        assert sum("ref one" in body["messages"][-1]["content"] for body in server.asked) == 4  # math, first and second turn
    found = table(done)
    metrics = ["mt_bench", "mt_bench_1", "mt_bench_2", "mt_bench/writing", "mt_bench/math"]
    assert [metric for model, metric in found if model == "one"] == metrics
    assert {row["value"] for row in found.values()} == {9.0}
    whole = found["two", "mt_bench"]
    assert (whole["n"], whole["p"], whole["against"]) == (3, 1.0, "one")
    other = 3.841459 / 6.841459  # Wilson's upper end of 0 of 3: so many questions may have another grade, 1 to 10
    assert (whole["low"], whole["high"]) == (pytest.approx(9 - 8 * other, abs=1e-5), pytest.approx(9 + other, abs=1e-5))
    assert whole["note"] == "judged by toy"
    assert found["two", "mt_bench/writing"]["n"] == 2
    (answers,) = read_answers(done.stage("report") / "mt_bench-one.json")
    assert (answers.model, set(answers.turns.values())) == ("one", {(GOOD, GOOD)})
    grades = json.loads((done.stage("report") / "mt_bench-grades-one.json").read_text())
    assert [(g["turn"], g["score"], g["judgment"], g["judge"]) for g in grades] == [(turn, 9.0, "[[9]]", "toy") for turn in (1, 2) * 3]
    page = write_report(done.path).read_text()
    assert "MT-bench, grades from 1 to 10" in page
    assert "mt_bench by category" in page


def test_grades_by_hand_with_one_that_cannot_be_read(tmp_path: Path, tiny_folder: Path) -> None:
    """Grades 9 9 | 3 3 | 5 -: all 29 / 5; the interval is of the questions' means 9, 3, 5."""

    def rule(body: dict[str, Any], number: int) -> Say:
        text = body["messages"][-1]["content"]
        if "first of 111" in text:
            return Say("no grade" if "second of 111" in text else "[[5]]")
        return Say("[[9]]" if "first of 81" in text else "[[3]]")

    with endpoint(rule) as server:
        suite = {**exam(tmp_path), "engine": judge(server), "retries": 1}
        stages = {"report": {"kind": "evaluate", "contenders": [{"name": "one", "model": "base"}], "engine": scripted(GOOD), "suites": [suite]}}
        found = table(carry_out(tmp_path, tiny_folder, stages))
        assert len(server.asked) == 6 + 1  # the unreadable one once more
    whole = found["one", "mt_bench"]
    assert whole["value"] == pytest.approx(29 / 5)
    assert 3 <= whole["low"] < 17 / 3 < whole["high"] <= 9
    assert whole["note"] == "judged by toy, 1 of 6 judgements could not be read and are left out"
    assert [found["one", f"mt_bench{part}"]["value"] for part in ("_1", "_2", "/writing", "/math")] == [pytest.approx(17 / 3), 6.0, 6.0, 5.0]
    assert "low" not in found["one", "mt_bench/math"]  # of one question there is no interval


def test_mt_bench_pairs_are_played_against_the_reference(tmp_path: Path, tiny_folder: Path) -> None:
    """The tiny model writes noise; of two answers of which none is good the one shown first wins: ties by order alone."""
    rows = [{"name": "one", "model": "base"}, {"name": "two", "model": "base", "template": "own"}]
    with endpoint(compared) as server:
        suite = {**exam(tmp_path), "engine": judge(server), "mode": "pairs"}
        stages = {"report": {"kind": "evaluate", "contenders": rows, "reference": "two", "suites": [suite]}}
        done = carry_out(tmp_path, tiny_folder, stages)
        assert len(server.asked) == 12
    (row,) = json.loads((done.stage("report") / "table.json").read_text())
    assert (row["model"], row["metric"], row["value"], row["against"], row["n"]) == ("one", "mt_bench_wins", 0.5, "two", 3)
    assert row["note"] == "0 won, 0 lost, 6 ties (6 by order alone); judged by toy"
    assert "mt_bench_wins, %" in write_report(done.path).read_text()
    games = json.loads((done.stage("report") / "mt_bench-games-one.json").read_text())
    assert {(g["model_1"], g["model_2"], g["g1_verdict"], g["g2_verdict"], g["winner"]) for g in games} == {("one", "two", "A", "A", "tie")}


def test_mt_bench_asks_nothing_twice(tmp_path: Path, tiny_folder: Path) -> None:
    """Run again elsewhere, neither the judge nor the model is asked: what they answered is kept."""
    rows = [{"name": "one", "model": "base"}]
    with endpoint(graded) as server:
        suite = {**exam(tmp_path), "engine": judge(server)}
        stages = {"report": {"kind": "evaluate", "contenders": rows, "suites": [suite]}}
        first = table(carry_out(tmp_path, tiny_folder, stages))
        asked = len(server.asked)
        (tmp_path / "run").rename(tmp_path / "before")
        assert table(carry_out(tmp_path, tiny_folder, stages)) == first
        assert len(server.asked) == asked


def test_questions_that_need_reference_answers_say_so(tmp_path: Path, tiny_folder: Path) -> None:
    with endpoint(graded) as server:
        suite = {**exam(tmp_path), "engine": judge(server), "references": None}
        stages = {"report": {"kind": "evaluate", "contenders": [{"name": "one", "model": "base"}], "suites": [suite]}}
        error = failure(tmp_path, tiny_folder, stages)
        assert "math are judged against reference answers" in str(error)
        assert not server.asked


def llmbar(folder: Path) -> str:
    """Four pairs; people prefer the first output, the second, the second, the first; a judge of the file is right twice in both orders."""
    told = [("aa", "b", 1), ("a", "bbb", 2), ("aaaa", "b", 2), ("a", "b", 1)]
    rows = [
        {"subset": "Natural" if i < 2 else "Hard", "instruction": f"q{i}", "output_1": a, "output_2": b, "label": label, "judges": {"old": [1, 1]}}
        for i, (a, b, label) in enumerate(told)
    ]
    return f"./{write(folder / 'llmbar.jsonl', rows).name}"


def test_a_judge_is_measured_against_the_votes_of_people(tmp_path: Path, tiny_folder: Path) -> None:
    """The judge prefers the longer output: right, right, wrong; of two of one length what it sees first, so its orders disagree there."""
    with endpoint(longer) as server:
        suite = {"kind": "judge_quality", "sets": {"llmbar": llmbar(tmp_path)}, "engine": judge(server)}
        done = carry_out(tmp_path, tiny_folder, {"report": {"kind": "evaluate", "suites": [suite]}})
        assert len(server.asked) == 8
    found = table(done)
    ours = found["toy", "judge_agreement/llmbar"]
    assert (ours["value"], ours["n"]) == ((1 + 1 + 0 + 0.5) / 4, 4)
    assert ours["low"] < ours["value"] < ours["high"]
    assert "note" not in ours  # everything was read, and nothing is published of this judge
    assert found["toy", "judge_consistent/llmbar"]["value"] == 0.75
    assert found["toy", "judge_agreement/llmbar/Natural"]["value"] == 1.0
    biases = [found["toy", f"judge_{name}/llmbar"] for name in ("first", "consistent", "kappa")]
    assert all(row["low"] <= row["value"] <= row["high"] for row in biases)
    assert found["old", "judge_agreement/llmbar"]["value"] == 0.5
    assert ("old", "judge_agreement/llmbar/Natural") not in found  # parts are of those that are asked now, and of the baseline
    assert found["the longer output", "judge_agreement/llmbar"]["value"] == 0.5  # right, right, wrong, and "equal" where people chose
    page = write_report(done.path).read_text()
    assert "<h3>Judges" in page
    assert "toy on llmbar/Natural" in page


def test_a_judge_that_goes_by_order_varies_from_seed_to_seed(tmp_path: Path, tiny_folder: Path) -> None:
    """It prefers what it sees first. Under each seed the order is drawn anew, and a vote counts against the majority of the other three."""
    votes = llmbar(tmp_path)
    with endpoint(lambda body, number: Say(FIRST)) as server:
        suite = {"kind": "judge_quality", "sets": {"llmbar": votes}, "engine": judge(server), "seeds": 4}
        found = table(carry_out(tmp_path, tiny_folder, {"report": {"kind": "evaluate", "suites": [suite]}}))
    wrong = []
    for i in range(4):
        said = [2 if is_switched(f"q{i}", seed) else 1 for seed in (1, 2, 3, 4)]
        wrong += [vote != (2 if sum(said) - vote >= 5 else 1) for vote in said]
    assert any(wrong)
    assert found["toy", "judge_variance/llmbar"]["value"] == pytest.approx(sum(wrong) / 16)
    assert found["toy", "judge_first/llmbar"]["value"] == 1.0
    assert found["toy", "judge_consistent/llmbar"]["value"] == 0.0


def test_alpaca_eval_against_the_outputs_of_a_file(tmp_path: Path, tiny_folder: Path) -> None:
    """Instructions 0 to 4 with reference outputs; both rows answer "good", which is longer than two of the first four and as long as one."""
    texts = ["x", "yy", " good", "a longer one", "never asked"]
    rows = [{"instruction": f"q{i}", "output": text.strip(), "generator": "davinci"} for i, text in enumerate(texts)]
    (tmp_path / "davinci.json").write_text(json.dumps(rows))
    both = [{"name": "one", "model": "base"}, {"name": "two", "model": "base", "before": "one"}]
    with endpoint(longer) as server:
        suite = {"kind": "alpaca_eval", "data": "./davinci.json", "judge": {"engine": judge(server)}, "first": 4, "sampling": {"max_tokens": 12}}
        done = carry_out(tmp_path, tiny_folder, {"report": {"kind": "evaluate", "contenders": both, "engine": scripted(GOOD), "suites": [suite]}})
        assert len(server.asked) == 3  # the third output is equal, and both rows answer alike
    found = table(done)
    one, two = found["one", "alpaca_eval/davinci"], found["two", "alpaca_eval/davinci"]
    assert (one["value"], one["n"], one["stderr"]) == (0.625, 4, pytest.approx(0.4787 / 2, abs=1e-4))
    assert one["low"] < 0.625 < one["high"]
    assert one["note"] == "2 won, 1 lost, 1 equal"
    assert found["one", "alpaca_length/davinci"]["value"] == len(GOOD)
    assert (two["p"], two["against"]) == (1.0, "one")
    (left,) = read_labels(done.stage("report") / "alpaca_eval-davinci-one.json")
    assert (left.model, [row.preference for row in left.rows]) == ("one", [2.0, 2.0, 1.5, 1.0])
    page = write_report(done.path).read_text()
    assert "win rate on AlpacaEval, against davinci" in page
    assert "win rate against length" in page
    assert "<h3>Leaderboard" in page
    assert "<h3>AlpacaEval" not in page


def test_alpaca_eval_against_two_models_keeps_both_apart(tmp_path: Path, tiny_folder: Path) -> None:
    """ "good" is longer than what the first wrote and shorter than what the second did."""
    for name, text in (("short", "x"), ("long", "a longer one")):
        (tmp_path / f"{name}.json").write_text(json.dumps([{"instruction": "q", "output": text, "generator": name}]))
    with endpoint(longer) as server:
        suite = {"kind": "alpaca_eval", "judge": {"engine": judge(server)}, "sampling": {"max_tokens": 12}}
        suites = [{**suite, "data": "./short.json"}, {**suite, "data": "./long.json"}]
        stage = {"kind": "evaluate", "contenders": [{"name": "one", "model": "base"}], "engine": scripted(GOOD), "suites": suites}
        done = carry_out(tmp_path, tiny_folder, {"report": stage})
        found = table(done)
        assert [found["one", f"alpaca_eval/{name}"]["value"] for name in ("short", "long")] == [1.0, 0.0]
        assert "<h3>AlpacaEval" in write_report(done.path).read_text()
        stage["suites"] = [suites[0], suites[0]]
        assert "another suite of this kind writes rows of the same names" in str(failure(tmp_path, tiny_folder, {"report": stage}))
    stage["suites"] = [{"kind": "harness", "tasks": tasks, "data": "./rows"} for tasks in (["mmlu", "gsm8k"], ["gsm8k"])]
    assert "suites[1]: another suite of this kind writes" in str(failure(tmp_path, tiny_folder, {"report": stage}))


def test_suites_of_one_kind_may_stand_together_where_their_rows_do_not_meet() -> None:
    tasks = [{"kind": "harness", "tasks": ["mmlu"]}, {"kind": "harness", "tasks": ["ifeval"], "chat": True}]
    stage = Evaluate.model_validate({"contenders": [{"name": "one", "model": "base"}], "suites": tasks})
    assert not stage.check()
    judges = [{"kind": "judge_quality", "sets": {"x": "./x.jsonl"}, "engine": {"kind": "remote", "model": name}} for name in ("a", "b")]
    assert not Evaluate.model_validate({"suites": judges}).check()
    assert len(Evaluate.model_validate({"suites": [*judges, judges[0]]}).check()) == 1


def test_what_suites_ask_is_looked_for_in_what_the_models_learned(tmp_path: Path, tiny_folder: Path) -> None:
    """One turn of six, one instruction of two and one question of four are in the data of sft."""
    (tmp_path / "davinci.json").write_text(json.dumps([{"instruction": f"do {i}", "output": GOOD, "generator": "davinci"} for i in range(2)]))
    learned = ["second of 82", "do 1", "q3"]
    chat = [{"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "yes"}]} for text in learned]
    write(tmp_path / "chat.jsonl", chat)
    with endpoint(graded) as server:
        suites = [
            {**exam(tmp_path), "engine": judge(server)},
            {"kind": "alpaca_eval", "data": "./davinci.json", "judge": {"engine": judge(server)}, "sampling": {"max_tokens": 12}},
            {"kind": "judge_quality", "sets": {"llmbar": llmbar(tmp_path)}},
        ]
        stages = {
            "sft": {"kind": "sft", "init": "base", "data": "./chat.jsonl", "epochs": 1},
            "report": {"kind": "evaluate", "contenders": [{"name": "sft", "model": "sft"}], "engine": scripted(GOOD), "suites": suites},
        }
        found = table(carry_out(tmp_path, tiny_folder, stages))
    shares = {metric: (row["value"] * row["n"], row["n"]) for (_, metric), row in found.items() if metric.startswith("overlap/")}
    assert shares == {"overlap/mt_bench": (1, 6), "overlap/alpaca_eval/davinci": (1, 2), "overlap/llmbar": (1, 4)}


def test_a_reward_model_may_be_the_judge(tmp_path: Path, tiny_folder: Path) -> None:
    """It has learned to prefer one of two answers; people say the same, then the opposite."""
    good, bad = "yes, with pleasure", "no"
    write(tmp_path / "pairs.jsonl", pairs(good, bad, 12))
    votes = [{"instruction": f"Say it {i}.", "output_1": good, "output_2": bad, "label": 1 + i % 2, "judges": {}} for i in range(4)]
    write(tmp_path / "votes.jsonl", votes)
    stages = {
        "rm": {"kind": "reward_model", "init": "base", "data": "./pairs.jsonl", "epochs": 6, "optim": {"lr": 3e-3}},
        "report": {"kind": "evaluate", "suites": [{"kind": "judge_quality", "sets": {"votes": "./votes.jsonl"}, "reward_model": "rm"}]},
    }
    found = table(carry_out(tmp_path, tiny_folder, stages))
    assert found["rm", "judge_agreement/votes"]["value"] == 0.5
    assert found["rm", "judge_consistent/votes"]["value"] == 1.0


@pytest.mark.parametrize(
    ("suite", "rows"),
    [({"kind": "mt_bench", "mode": "pairs"}, 1), ({"kind": "mt_bench"}, 0), ({"kind": "alpaca_eval"}, 0), ({"kind": "harness"}, 0)],
)
def test_a_suite_that_asks_models_needs_rows(tmp_path: Path, tiny_folder: Path, suite: dict[str, Any], rows: int) -> None:
    exam(tmp_path)
    judge = {"kind": "remote", "model": "toy", "key": None}
    more = {"mt_bench": {"data": "./question.jsonl", "engine": judge}, "alpaca_eval": {"data": "./question.jsonl", "judge": {"engine": judge}}}
    stage = {"kind": "evaluate", "contenders": [{"name": "one", "model": "base"}][:rows], "suites": [suite | more.get(suite["kind"], {})]}
    assert f"rows, and there are {rows}" in str(failure(tmp_path, tiny_folder, {"report": stage}))


def test_a_model_without_an_engine_asks_nobody(tmp_path: Path, tiny_folder: Path) -> None:
    suite = {"kind": "judge_quality", "sets": {"votes": llmbar(tmp_path)}, "model": "base"}
    error = failure(tmp_path, tiny_folder, {"report": {"kind": "evaluate", "suites": [suite]}})
    assert "an engine must ask the model" in str(error)


def test_what_is_not_known_has_no_number(tmp_path: Path, tiny_folder: Path) -> None:
    """An interval that is not known is left out of the table, and read back as not known."""
    row = {"instruction": "q", "output_1": "a", "output_2": "b", "label": 1, "judges": {"old": [1, 1]}}
    suite = {"kind": "judge_quality", "sets": {"one": f"./{write(tmp_path / 'one.jsonl', [row]).name}"}}
    done = carry_out(tmp_path, tiny_folder, {"report": {"kind": "evaluate", "suites": [suite]}})
    assert "NaN" not in (done.stage("report") / "table.json").read_text()
    kappa = next(cell for cell in read_run(done.path).table if (cell.model, cell.metric) == ("old", "judge_kappa/one"))
    assert math.isnan(kappa.low)


def kappa(first: list[int], second: list[int]) -> float:
    """Cohen 1960: (agreement - agreement by chance) / (1 - agreement by chance)."""
    n = len(first)
    seen = sum(a == b for a, b in zip(first, second, strict=True)) / n
    chance = sum(first.count(vote) * second.count(vote) for vote in (0, 1, 2)) / n**2
    return (seen - chance) / (1 - chance)


def test_kappa_and_its_interval_by_leaving_each_pair_out() -> None:
    """Second implementation: the published formula, ten times over nine of ten pairs; t with 9 degrees of freedom is 2.262157."""
    first, second = [1, 1, 2, 0, 2, 2, 1, 0, 1, 2], [1, 2, 2, 0, 2, 1, 1, 1, 1, 2]
    pairs = tuple(Pair(f"q{i}", "a", "b") for i in range(10))
    found = report(VoteSet("pandalm", "votes.jsonl", pairs, tuple(zip(first, second, strict=True)), ())).people["kappa_12"]
    left = [kappa(first[:i] + first[i + 1 :], second[:i] + second[i + 1 :]) for i in range(10)]
    half = 2.262157 * (9 / 10 * sum((k - sum(left) / 10) ** 2 for k in left)) ** 0.5
    assert (found.value, found.n) == (pytest.approx(kappa(first, second)), 10)
    assert (found.low, found.high) == (pytest.approx(found.value - half, rel=1e-5), pytest.approx(min(found.value + half, 1.0), rel=1e-5))


def test_biases_have_the_interval_of_the_pairs_they_rest_on(tmp_path: Path) -> None:
    """Four pairs, both orders. First shown: 1 1 2 2 -> of pair 1 both votes, of 2 none, of 3 and 4 one: (2 + 0 + 1 + 1) / 8 over 4 pairs. Longer by
    more than 30: pairs 1 and 2, one vote of two. Both orders agree on 3 and 4, not on 1 and 2. A vote 1.0 is a vote for output 1."""
    votes = [[1, 2], [2, 1], [1.0, 1], ["2", "2"]]
    texts = [("a" * 40, "b"), ("a" * 40, "b"), ("a", "b"), ("a", "b")]
    rows = [
        {"instruction": f"q{i}", "output_1": a, "output_2": b, "label": 1, "judges": {"x": said}}
        for i, ((a, b), said) in enumerate(zip(texts, votes, strict=True))
    ]
    quality = report(read_votes(write(tmp_path / "votes.jsonl", rows))).judges[0]
    assert quality.n_unread == 0
    first, longer_one, consistent = quality.prefers_first, quality.prefers_longer, quality.consistent
    assert first and longer_one and consistent
    assert [(found.value, found.n) for found in (first, longer_one, consistent)] == [(50.0, 4), (50.0, 2), (50.0, 4)]
    wilson = proportion(2, 4)
    assert (consistent.low, consistent.high) == (100 * wilson.low, 100 * wilson.high)
    assert first.low == 0.0 < 50.0 < first.high  # 1, 0, 1/2, 1/2: t(3) * sqrt(1/6 / 4) = 0.65
    assert quality.variance is None


@pytest.mark.skipif(not (ROOT / "human_agreement").exists(), reason=f"the public sets of human votes are not in {ROOT}")
def test_the_published_judges_from_a_recipe(tmp_path: Path, tiny_folder: Path) -> None:
    """PandaLM's test set, as `xwin eval judge-quality` has it (tests/cli/test_judge.py)."""
    (tmp_path / "pandalm.jsonl.gz").write_bytes((ROOT / "human_agreement" / "pandalm_testset.jsonl.gz").read_bytes())
    suite = {"kind": "judge_quality", "sets": {"pandalm": "./pandalm.jsonl.gz"}}
    found = table(carry_out(tmp_path, tiny_folder, {"report": {"kind": "evaluate", "suites": [suite]}}))
    assert [round(found[f"people {pair}", "judge_kappa/pandalm"]["value"], 4) for pair in ("1 and 2", "1 and 3", "2 and 3")] == [
        0.8829,
        0.8926,
        0.9009,
    ]
    assert found["people 1 and 2", "judge_kappa/pandalm"]["note"] == "published, of all 999 pairs: 0.852"
    shares = [found[judge, "judge_agreement/pandalm"]["value"] for judge in ("gpt35", "pandalm7b", "the longer output")]
    assert [round(100 * share, 2) for share in shares] == [70.45, 65.50, 59.30]
    assert "not reproducible from the 484 that are here: agreement 71.07" in found["gpt35", "judge_agreement/pandalm"]["note"]
