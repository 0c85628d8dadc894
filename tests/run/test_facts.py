import dataclasses
import json
import math

import pytest
from synthetic_run import finished_run, running_run, table, write, write_lines, write_plan

from xwin.errors import UserError
from xwin.run.facts import facts, final_table, read_run


def test_the_facts_of_a_finished_run_have_the_promised_shape(tmp_path):
    found = facts(finished_run(tmp_path / "tiny-s1"))
    assert list(found) == ["recipe", "seed", "stages", "table"]
    assert (found["recipe"], found["seed"]) == ("tiny", 1)
    published = {"reward": 1.322, "kl": 3.41, "length": 24.6, "verified": 0.654}
    assert found["stages"]["ppo"] == {"kind": "rl", "status": "published", "metrics": published}
    assert all(list(row) == ["model", "metric", "value", "low", "high", "n"] for row in found["table"])
    names = {row["metric"] for row in found["table"]}
    assert {"accuracy", "accuracy/chain_sum", "rm_accuracy", "longer_wins", "win_rate", "kl", "length"} <= names


def test_what_is_not_a_number_is_null(tmp_path):
    run = finished_run(tmp_path / "tiny-s1")
    write_lines(run / "stages/pairs/events.jsonl", [{"time": 1, "stage": "pairs", "step": 0, "name": "accepted", "value": "nan"}])
    write(run / "stages/pairs/manifest.json", {"stage": "pairs", "kind": "pairs", "status": "running"})
    found = facts(run)
    assert found["stages"]["pairs"]["metrics"] == {"accepted": None}
    assert next(r for r in found["table"] if r["metric"] == "longer_wins")["low"] is None
    json.dumps(found, allow_nan=False)


def test_stages_come_in_plan_order_and_those_not_begun_wait(tmp_path):
    found = facts(running_run(tmp_path / "tiny-s1"))
    states = [(name, stage["status"]) for name, stage in found["stages"].items()]
    assert states[:5] == [("prompts", "published"), ("warm", "published"), ("sft", "published"), ("pairs", "running"), ("rm", "waiting")]
    assert found["stages"]["rm"]["kind"] == "reward_model"
    assert found["table"] == []


def test_a_line_that_is_half_written_is_no_defect(tmp_path):
    run = read_run(running_run(tmp_path / "tiny-s1"))
    pairs = next(s for s in run.stages if s.name == "pairs")
    assert [e.value for e in pairs.events] == [0.4, 0.5]
    assert pairs.seconds == 1.0
    assert pairs.metrics == {"accepted": 0.5}
    assert run.remarks == ()


def test_a_broken_line_in_the_middle_and_a_broken_file_are_named(tmp_path):
    run = finished_run(tmp_path / "tiny-s1")
    (run / "stages/sft/events.jsonl").write_text('{"time": 1, "stage": "sft", "step": 0, "name": "loss", "value": 2}\n{"ti\n{"time": 2}\n')
    (run / "stages/rm/manifest.json").write_text("{")
    write_lines(run / "stages/report/samples.jsonl", [{"prompt": "no answers"}])
    found = read_run(run)
    assert found.remarks == (
        "stages/sft/events.jsonl: 1 of its lines are not JSON, the first is line 2; left out",
        "stages/sft/events.jsonl: 1 of its rows are not what was expected; left out",
        "stages/rm/manifest.json: not JSON; left out",
        "stages/report/samples.jsonl: 1 of its rows are not what was expected; left out",
    )
    assert [e.value for e in found.stages[2].events] == [2.0]


def test_a_step_repeated_after_a_crash_counts_once(tmp_path):
    run = tmp_path / "tiny-s1"
    write_plan(run)
    rows = [{"time": t, "stage": "sft", "step": 3, "name": "loss", "value": v} for t, v in ((1, 0.9), (2, 0.8))]
    write_lines(run / "stages/sft/events.jsonl", rows)
    assert [e.value for e in read_run(run).stages[2].events] == [0.8]


def test_events_of_the_run_serve_a_stage_whose_own_are_gone(tmp_path):
    run = tmp_path / "tiny-s1"
    write_plan(run)
    write_lines(run / "events.jsonl", [{"time": 1, "stage": "sft", "step": 0, "name": "loss", "value": "inf"}])
    sft = read_run(run).stages[2]
    assert math.isinf(sft.events[0].value)


def test_a_run_that_has_only_a_lock_takes_name_and_seed_from_its_folder(tmp_path):
    run = tmp_path / "my-own-s17"
    run.mkdir()
    (run / ".lock").touch()
    assert facts(run) == {"recipe": "my-own", "seed": 17, "stages": {}, "table": []}


def test_superseded_stages_are_not_stages_of_the_run(tmp_path):
    run = finished_run(tmp_path / "tiny-s1")
    (run / "stages/.old/sft-00000000").mkdir(parents=True)
    assert ".old" not in facts(run)["stages"]


def test_a_path_that_is_no_run_names_one_nearby(tmp_path):
    finished_run(tmp_path / "runs/tiny-s1")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    for name, what in (("empty", "holds no run"), ("file", "is not a folder"), ("gone", "no such folder")):
        with pytest.raises(UserError, match=what) as error:
            facts(tmp_path / name)
        assert error.value.fix == f"give a run directory: {tmp_path}/runs/tiny-s1"


def test_values_are_frozen(tmp_path):
    with pytest.raises(dataclasses.FrozenInstanceError):
        read_run(finished_run(tmp_path / "tiny-s1")).recipe = "other"  # type: ignore[misc]


def test_the_final_table_is_models_by_metrics_in_percent():
    found = final_table(table())
    assert found[0] == ["model", "accuracy, %", "win_rate, %", "rm_accuracy, %", "longer_wins, %", "kl, nats", "length, tokens", "n", "paired test"]
    assert found[6] == [
        *("ppo", "66.8 [61.8, 71.8]", "61.8 [57.8, 65.8]", "", "", "2.70 [2.30, 3.10]", "25.0 [23.0, 27.0]", "360", "+5.7 vs sft2, p = 0.021"),
    ]
    assert found[1][-1] == ""
    assert found[7][3:5] == ["78.7 [74.2, 82.6]", "43.0"]


def test_the_final_table_shows_the_metrics_that_are_named():
    found = final_table(table(), ["accuracy/chain_sum"])
    assert found[0] == ["model", "chain_sum, %", "n"]
    assert [row[0] for row in found[1:]] == ["base", "base, vicuna", "sft", "best", "sft2", "ppo"]


def test_the_final_table_takes_the_facts_as_printed(tmp_path):
    rows = facts(finished_run(tmp_path / "tiny-s1"))["table"]
    assert final_table(rows)[1][:2] == ["base", "31.0 [26.0, 36.0]"]


def test_a_tiny_p_is_not_called_zero():
    before = {"model": "a", "metric": "accuracy", "value": 0.5, "n": 9}
    after = {"model": "b", "metric": "accuracy", "value": 1.0, "n": 9, "p": 1e-9, "against": "a"}
    found = final_table([before, after])
    assert found == [["model", "accuracy, %", "n", "paired test"], ["a", "50.0", "9", ""], ["b", "100.0", "9", "+50.0 vs a, p < 0.001"]]
