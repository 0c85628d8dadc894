"""Workers on Ray actors: what they compute, print, refuse and survive. Everything happens once, in group.py."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray")

Found = dict[str, Any]


@pytest.fixture(scope="module")
def found(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What two workers computed."""
    return happened("compute", tiny_folder, tmp_path_factory.mktemp("group"))


@pytest.fixture(scope="module")
def hung(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What was said of two workers that hung."""
    return happened("hang", tiny_folder, tmp_path_factory.mktemp("group"))


def happened(what: str, model: Path, folder: Path) -> Found:
    """See group.py."""
    command = [sys.executable, str(Path(__file__).with_name("group.py")), what, str(model), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=280)
    assert done.returncode == 0, done.stderr
    assert not done.stdout, "Ray is quiet"
    assert not done.stderr, "Ray is quiet"
    return json.loads((folder / "found.json").read_text())


def test_workers_add_up_what_each_has(found: Found) -> None:
    assert found["sum"] == [3.0, 3.0]


def test_workers_on_a_cpu_share_its_cores(found: Found) -> None:
    share = max(1, (os.cpu_count() or 1) // 2)
    assert found["threads"] == [[share, "cpu"]] * 2


def test_an_error_of_ours_comes_with_all_it_says_and_the_group_goes_on(found: Found) -> None:
    error = {"type": "StepRefused", "where": "step 3", "what": "too large", "fix": "look", "samples": ["a", "b"]}
    assert found["refused"] == error
    assert found["after refusing"] == [3.0, 3.0]


def test_an_error_of_others_is_itself(found: Found) -> None:
    assert found["blunder"] == {"type": "ZeroDivisionError", "what": "of worker 0"}


def test_a_killed_worker_is_named(found: Found) -> None:
    error = found["killed"]
    assert error["type"] == "WorkerLost"
    assert error["where"].startswith("worker 1 (")
    assert error["what"] == "died, or its machine is gone"


@pytest.mark.slow
def test_where_a_worker_hangs_the_message_says_at_which_line_each_is(hung: Found) -> None:
    error = hung["asleep"]
    assert error["type"] == "WorkerLost"
    assert "no answer after 4 s" in error["what"]
    assert "worker 1 is at group.py:" in error["what"]
    assert "sleep" in error["what"]
    assert "worker 0 is at distributed_c10d.py:" in error["what"]
    assert "ray.seconds" in error["fix"]


@pytest.mark.slow
def test_a_worker_that_does_not_even_say_where_it_is_is_named_alone(hung: Found) -> None:
    error = hung["frozen"]
    assert error["where"].startswith("worker 1 (")
    assert "worker 0" not in error["where"]
    assert "worker 0 is at distributed_c10d.py:" in error["what"]


def test_a_group_that_lost_a_worker_is_made_anew(found: Found) -> None:
    assert found["after all"] == [3.0, 3.0]


def test_more_workers_than_the_cluster_has_are_refused_with_what_there_is(found: Found) -> None:
    cores = os.cpu_count() or 1
    assert found["too many"]["what"] == f"999 workers are asked for, and the cluster has {cores} CPU{'s' * (cores != 1)} on 1 machine"
    assert f"set workers: {cores}" in found["too many"]["fix"]


def same(rows: list[Any], others: list[Any]) -> None:
    """Equal in everything but the last bits of log-probs: fewer rows at once are added up by other kernels."""
    for row, other in zip(rows, others, strict=True):
        assert row[:3] + row[4:] == other[:3] + other[4:]
        assert row[3] == pytest.approx(other[3], abs=1e-5)


def test_answers_do_not_depend_on_the_number_of_engines(found: Found) -> None:
    same(found["two engines"], found["one engine"])


def test_engines_take_the_weights_of_the_learner_beside_them(found: Found) -> None:
    assert {row[-1] for row in found["loaded"]} == {5}, "the version of the learner, which has not moved"
    same([[*row[:-1], 0] for row in found["loaded"]], found["one engine"])


def test_weights_that_the_workers_have_can_be_read_here(found: Found) -> None:
    assert found["weights"]


def test_workers_let_go_of_what_nobody_here_has_any_more(found: Found) -> None:
    assert found["networks"] == [2, 2], "an engine and a learner"
    assert found["networks left"] == [0, 0]


def test_a_model_on_workers_says_what_a_stage_asks(found: Found) -> None:
    assert found["about"] == ["torch.float32", 1024, False, 0]


def test_what_workers_print_is_told_once_with_their_rank(found: Found) -> None:
    told: Counter[tuple[str, str]] = Counter()
    for line in found["said"]:
        ranks, _, text = line.removeprefix("workers ").removeprefix("worker ").partition(": ")
        told.update((rank, text) for rank in ranks.split(", "))
    groups = 2  # the second one after the first was lost
    assert told == {(rank, text): groups for rank in ("0", "1") for text in (f"I am {rank}", "here", "from a child")}


def test_the_handler_of_signals_stays_ours(found: Found) -> None:
    assert found["handler"]


def test_no_process_is_left(found: Found) -> None:
    assert found["left"] == []


def test_other_processes_of_this_one_are_left_alone(found: Found) -> None:
    """One whose command line has the letters "ray" in it."""
    assert found["bystander"] == 0, "it ended by itself, when its input did"
