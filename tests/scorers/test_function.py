"""A function of the user: what it is given, what it may return, and what happens when it fails."""

import hashlib
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from xwin.data.rollout import Score
from xwin.scorers._outcome import ScorerError, complete, has_failed, score_of
from xwin.scorers.function import Function

from .groups import NoModels, group

SOURCE = """
import time
from xwin.data.rollout import Score

def lengths(prompt, answers):
    print("this goes nowhere near the scores")
    return [float(len(a)) + prompt.meta.get("bonus", 0) for a in answers]

def parts(prompt, answers):
    return [Score(1.0, {"a": 0.25}, "fine"), True]

def numpys(prompt, answers):
    import numpy
    return [numpy.float32(0.5), Score(numpy.float32(0.25), {"a": numpy.int64(3), "b": numpy.bool_(True)})]

def strange(prompt, answers):
    return {"raise": lambda: 1 / 0, "nan": lambda: [1.0, float("nan")], "none": lambda: [1.0, None], "few": lambda: [1.0],
            "text": lambda: ["1", 1.0], "huge": lambda: [10**400, 1.0], "number": lambda: 1.0, "inf": lambda: [Score(1.0, {"a": float("inf")}), 1.0],
            "hang": lambda: time.sleep(600)}[prompt.meta["do"]]()
"""


@pytest.fixture(autouse=True)
def rewards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with functions in the current directory, which is not on the path of this process."""
    name = f"rewards_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    return tmp_path / f"{name}.py"


def score(file: Path, function: str, **settings: Any) -> list[Score]:
    meta = settings.pop("meta", {})
    scorer = Function.model_validate({"function": f"{file.stem}:{function}", **settings}).build(NoModels())
    try:
        (row,) = scorer.score([group(["ab", "c"], name="q7", **meta)])
    finally:
        if settings.get("seconds"):
            scorer.call.workers.close()  # type: ignore[attr-defined]
    return row


@pytest.mark.parametrize("apart", [{}, {"seconds": 60}], ids=["here", "apart"])
def test_it_is_given_the_prompt_and_all_answers_and_its_numbers_are_the_scores(rewards: Path, apart: dict[str, Any]) -> None:
    assert score(rewards, "lengths", meta={"bonus": 10}, **apart) == [Score(12.0), Score(11.0)]
    assert score(rewards, "parts", **apart) == [Score(1.0, {"a": 0.25}, "fine"), Score(1.0)]
    both = score(rewards, "numpys", **apart)
    assert both == [Score(0.5), Score(0.25, {"a": 3.0, "b": 1.0})]
    assert {type(number) for s in both for number in (s.value, *s.parts.values())} == {float}  # what is written as JSON


PROBLEMS = [
    ("raise", "ZeroDivisionError", 2),
    ("nan", "not a finite number", 1),
    ("none", "not a finite number", 1),
    ("few", "1 scores for 2 answers", 2),
    ("text", "not a finite number", 1),
    ("huge", "not a finite number", 1),
    ("number", "not a list of scores", 2),
    ("inf", "not finite", 1),
]


@pytest.mark.parametrize(
    ("do", "problem", "failed", "apart"), [*((*row, {}) for row in PROBLEMS), *((*row, {"seconds": 60}) for row in PROBLEMS[:1])]
)
def test_what_is_no_score_stops_the_run_or_is_masked(rewards: Path, do: str, problem: str, failed: int, apart: dict[str, Any]) -> None:
    with pytest.raises(ScorerError, match=problem) as error:
        score(rewards, "strange", meta={"do": do}, **apart)
    assert "prompt q7" in str(error.value)
    assert f"{rewards.stem}:strange" in str(error.value)
    row = score(rewards, "strange", meta={"do": do}, on_failure="mask", **apart)
    assert sum(map(has_failed, row)) == failed
    assert all(s.value == 0.0 and problem in s.note for s in row if has_failed(s))


def test_one_that_hangs_is_killed(rewards: Path) -> None:
    with pytest.raises(ScorerError, match=r"no result within 0.5 s"):
        score(rewards, "strange", meta={"do": "hang"}, seconds=0.5)
    row = score(rewards, "strange", meta={"do": "hang"}, seconds=0.5, on_failure="mask")
    assert all(map(has_failed, row))


NOISY = """
import os, subprocess, sys, time

def talks(prompt, answers):
    os.write(1, b'{"value": [9.0, 9.0]}\\n')
    subprocess.run(["echo", "not an answer"], check=True)
    sys.__stdout__.write("nor this\\n")
    return [float(len(a)) for a in answers] + list(map(float, sys.stdin.read().split()))

def leaves(prompt, answers):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    open("pid", "w").write(str(child.pid))
    time.sleep(600)

def forks(prompt, answers):
    if os.fork() == 0:
        os.setsid()
        time.sleep(12)
        os._exit(0)
    time.sleep(600)
"""


def test_what_it_prints_by_whatever_means_is_no_answer(rewards: Path) -> None:
    rewards.write_text(NOISY)
    assert score(rewards, "talks", seconds=60) == [Score(2.0), Score(1.0)]


def test_the_limit_holds_for_what_it_has_started_too(rewards: Path) -> None:
    """A child keeps the pipes of its parent open; one that leads a session of its own is not killed and is not waited for."""
    rewards.write_text(NOISY)
    for function in ("leaves", "forks"):
        start = time.monotonic()
        row = score(rewards, function, seconds=1.0, on_failure="mask")
        assert [s.note for s in row] == ["no result within 1 s"] * 2
        assert time.monotonic() - start < 10  # the import of the worker is in it
    stat = Path("/proc") / Path("pid").read_text() / "stat"
    assert not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"


ASKS = """
import sys
from xwin.scorers._workers import Worker

worker = Worker(sys.argv[1], seconds=600.0)
worker.start()
print(worker._process.pid, flush=True)
worker.ask(None)
"""


def test_no_worker_outlives_a_killed_parent_even_in_the_middle_of_a_call(rewards: Path) -> None:
    rewards.write_text("def spins(task):\n    open('begun', 'w').close()\n    while True:\n        pass\n")
    parent = subprocess.Popen([sys.executable, "-c", ASKS, f"{rewards.stem}:spins"], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    stat = Path("/proc") / parent.stdout.readline().strip() / "stat"
    end = time.monotonic() + 60
    while not Path("begun").exists():
        assert time.monotonic() < end
        time.sleep(0.1)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    while stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < end, "the worker goes on"
        time.sleep(0.1)


def test_a_module_that_is_slow_to_import_does_not_use_up_the_limit_of_a_call(rewards: Path) -> None:
    rewards.write_text("import time\ntime.sleep(1)\n" + SOURCE)
    assert score(rewards, "lengths", seconds=0.5) == [Score(2.0), Score(1.0)]


def test_a_module_in_a_folder_may_use_its_neighbours_and_dataclasses(rewards: Path) -> None:
    folder = rewards.parent / f"folder_{rewards.stem}"
    folder.mkdir()
    (folder / "weights.py").write_text("TWO = 2.0\n")
    source = "from __future__ import annotations\nfrom dataclasses import dataclass, KW_ONLY\nfrom .weights import TWO\n"
    source += "@dataclass\nclass Row:\n    _: KW_ONLY\n    text: str\n"
    source += "def score(prompt, answers):\n    return [TWO * len(Row(text=a).text) for a in answers]\n"
    (folder / "mine.py").write_text(source)
    for apart in ({}, {"seconds": 60}):
        scorer = Function.model_validate({"function": f"{folder.name}.mine:score", **apart}).build(NoModels())
        assert scorer.score([group(["ab", "c"])]) == [[Score(4.0), Score(2.0)]]
        if apart:
            scorer.call.workers.close()  # type: ignore[attr-defined]


def test_its_file_is_part_of_the_recipe(rewards: Path) -> None:
    name = f"{rewards.stem}:lengths"
    first = Function(function=name)
    assert first.sha256 == hashlib.sha256(rewards.read_bytes()).hexdigest()
    assert Function.model_validate(first.settings()) == first
    rewards.write_text(SOURCE + "\n# changed\n")
    assert Function(function=name).sha256 != first.sha256
    with pytest.raises(ValidationError, match="is not the one"):
        Function.model_validate(first.settings())


@pytest.mark.parametrize("name", ["no colon", "a:b:c", "1a:b", ":f", "m:"])
def test_a_name_is_a_module_and_a_function(name: str) -> None:
    with pytest.raises(ValidationError):
        Function(function=name)


def test_what_cannot_be_imported_is_said_before_anything_is_scored(rewards: Path) -> None:
    with pytest.raises(ValidationError, match="there is no module 'nowhere'"):
        Function(function="nowhere:f")
    with pytest.raises(ScorerError, match="has no function 'absent'"):
        Function(function=f"{rewards.stem}:absent").build(NoModels())
    rewards.write_text("raise RuntimeError('broken')")
    for apart in ({}, {"seconds": 60, "on_failure": "mask"}):
        with pytest.raises(ScorerError, match="RuntimeError: broken") as error:
            Function.model_validate({"function": f"{rewards.stem}:lengths", **apart}).build(NoModels())
        assert error.value.where == f"{rewards.stem}:lengths"


def test_an_installed_module_will_do() -> None:
    assert Function(function="xwin.seeds:derive").sha256 is not None


def test_values_that_are_scores() -> None:
    assert [score_of(v) for v in (1, 0.5, True, Score(2.0))] == [Score(1.0), Score(0.5), Score(1.0), Score(2.0)]
    for wrong in (None, "1", float("nan"), float("inf"), [1.0], Score(float("nan"))):
        with pytest.raises(ScorerError):
            score_of(wrong)


def test_scores_of_any_scorer_are_counted() -> None:
    both = [group(["a", "b"], name="q1"), group(["c"], name="q2")]
    whole = [[Score(1.0), Score(0.0)], [Score(1.0)]]
    assert complete(both, whole) == whole
    assert complete(both, ((1.0, False), [True])) == whole
    for wrong, what in (
        (whole[:1], "scores for 1 prompts, not 2"),
        (None, "the scorer returned None, not scores for 2 prompts"),
        ([None, whole[1]], "prompt q1: the scorer returned None, not scores for 2 answers"),
        ([[1.0, None], whole[1]], "prompt q1: the scorer returned None: not a finite number"),
        ([whole[0], []], "prompt q2: the scorer returned scores for 0 answers, not 1"),
        ([whole[0], [Score(float("nan"))]], "prompt q2"),
    ):
        with pytest.raises(ScorerError, match=what):
            complete(both, wrong)
