"""The plan: order, what a stage is made of, and that exactly what changed is run again."""

import json
import time
from pathlib import Path

import pytest

from xwin.recipe.plan import Plan, default_directory, in_order, make_plan, plan_json, plan_rows, ready
from xwin.recipe.schema import read_recipe
from xwin.run.artifacts import Conversations, Model, RewardModel
from xwin.run.directory import RunDirectory, StageRecord


def planned(recipe: Path, *sets: str) -> Plan:
    return make_plan(read_recipe(recipe, sets), RunDirectory(recipe.parent / "run"))


def begin(plan: Plan, name: str) -> None:
    """Starts a stage as the execution does."""
    stage = next(stage for stage in plan.stages if stage.name == name)
    inputs = {ref: found.digest for ref, found in stage.inputs.items()}
    stage.directory.begin(StageRecord(name, stage.spec.kind, stage.fingerprint, "running", inputs, stage.spec.settings(), time.time()))


def finish(plan: Plan) -> None:
    """Publishes every stage that is not, with empty outputs."""
    for stage in plan.stages:
        if stage.status == "skip":
            continue
        begin(plan, stage.name)
        for output in stage.directory.files:
            path = stage.directory.out(output)
            path.mkdir() if not path.suffix else path.write_text("")
            if path.is_dir():
                (path / "config.json").write_text("{}")
        stage.directory.publish({}, seconds=0.0)


def statuses(plan: Plan) -> dict[str, str]:
    return {stage.name: stage.status for stage in plan.stages}


def reasons(plan: Plan) -> dict[str, str]:
    return {stage.name: stage.reason for stage in plan.stages}


def test_stages_come_after_what_they_need_and_else_in_the_order_of_the_file(recipe: Path) -> None:
    assert planned(recipe).order == ["prompts", "sft", "rm", "best"]


def test_order_is_stable() -> None:
    assert in_order({"d": ["b"], "c": [], "b": ["a"], "a": []}) == ["c", "a", "b", "d"]


def test_references_know_what_they_point_at(recipe: Path) -> None:
    plan = planned(recipe)
    best = next(stage for stage in plan.stages if stage.name == "best")
    assert {ref: found.artifact for ref, found in best.inputs.items()} == {"sft": Model, "rm": RewardModel, "prompts/test": Conversations}
    assert best.needs == ("sft", "rm", "prompts")


def test_what_is_trained_keeps_the_dtype_of_its_root_and_the_template_it_was_last_taught(recipe: Path) -> None:
    """The stage `rm` starts from `sft`, which learns Vicuna, and teaches none itself."""
    found = {ref: (r.template, r.dtype) for stage in planned(recipe).stages for ref, r in stage.inputs.items()}
    assert found["base"] == ("own", "bfloat16")
    assert found["sft"] == found["rm"] == ("vicuna", "bfloat16")
    assert found["prompts"] == found["./pairs.jsonl"] == ("", "")


def test_inputs_get_their_paths_when_they_are_made(recipe: Path) -> None:
    plan = planned(recipe)
    best = next(stage for stage in plan.stages if stage.name == "best")
    assert best.inputs["sft"].path is None
    found = ready(best, {stage.name: stage for stage in plan.stages})
    stages = recipe.parent / "run" / "stages"
    assert found["sft"].path == stages / "sft" / "final"
    assert found["prompts/test"].path == stages / "prompts" / "test.jsonl"


def test_nothing_is_done_twice(recipe: Path) -> None:
    first = planned(recipe)
    assert set(statuses(first).values()) == {"run"}
    assert set(reasons(first).values()) == {"not done yet"}
    finish(first)
    assert set(statuses(planned(recipe)).values()) == {"skip"}


@pytest.mark.parametrize(
    ("change", "again"),
    [
        ("best.objective.clip=0.2", {"best"}),
        ("best.steps=11", {"best"}),
        ("sft.speed.lr=1e-3", {"sft", "rm", "best"}),
        ("prompts.test=9", {"prompts", "sft", "rm", "best"}),
        ("models.base.template=vicuna", {"sft", "rm", "best"}),
        ("seed=2", {"prompts", "sft", "rm", "best"}),
        ("name=other", set()),
    ],
)
def test_a_change_runs_its_stage_and_what_depends_on_it(recipe: Path, change: str, again: set[str]) -> None:
    finish(planned(recipe))
    found = statuses(planned(recipe, change))
    assert {name for name, status in found.items() if status == "run"} == again
    assert {name for name, status in found.items() if status == "skip"} == found.keys() - again


def test_a_changed_file_runs_what_reads_it(recipe: Path) -> None:
    finish(planned(recipe))
    (recipe.parent / "pairs.jsonl").write_text('{"prompt": "x", "chosen": "y", "rejected": "z"}\n')
    plan = planned(recipe)
    assert statuses(plan) == {"prompts": "skip", "sft": "skip", "rm": "run", "best": "run"}
    assert reasons(plan)["rm"] == "its input ./pairs.jsonl changed"
    assert reasons(plan)["best"] == "its input rm changed"


def test_comments_order_and_spelling_of_the_recipe_change_nothing(recipe: Path) -> None:
    finish(planned(recipe))
    text = recipe.read_text().replace("clip: 0.1", "clip: 1e-1").replace("seed: 1", "# a comment\nseed: 1")
    head, tail = text.split("  best:")
    best, rest = tail.split("\n", 1)
    recipe.write_text(f"{head}{rest}  best:{best}\n")
    assert set(statuses(planned(recipe)).values()) == {"skip"}


def test_the_reason_names_the_setting_that_changed(recipe: Path) -> None:
    finish(planned(recipe))
    assert reasons(planned(recipe, "best.objective.clip=0.2"))["best"] == "objective.clip was 0.1, is 0.2"
    assert reasons(planned(recipe, "seed=2"))["prompts"] == "the seed or the code of its kind changed"


def test_a_setting_changed_back_brings_the_old_stage_back(recipe: Path) -> None:
    finish(planned(recipe))
    finish(planned(recipe, "best.steps=11"))
    plan = planned(recipe)
    assert statuses(plan)["best"] == "skip"
    assert reasons(plan)["best"] == "done before, comes back from .old"


def test_a_stopped_stage_is_resumed(recipe: Path) -> None:
    plan = planned(recipe)
    begin(plan, "prompts")
    assert statuses(planned(recipe))["prompts"] == "resume"
    assert reasons(planned(recipe))["prompts"] == "stopped before its first checkpoint"
    (plan.stages[0].directory.checkpoints / "step-000040").mkdir(parents=True)
    (plan.stages[0].directory.checkpoints / "step-000060.tmp").mkdir()
    assert reasons(planned(recipe))["prompts"] == "stopped after step 40"


def test_a_raised_revision_of_a_nested_kind_runs_the_stage_again(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from xwin.objectives.ppo import Ppo

    finish(planned(recipe))
    monkeypatch.setattr(Ppo, "revision", 99)
    assert statuses(planned(recipe)) == {"prompts": "skip", "sft": "skip", "rm": "skip", "best": "run"}


def test_the_plan_as_rows_and_json(recipe: Path) -> None:
    plan = planned(recipe)
    rows = plan_rows(plan)
    assert rows[1]["what"] == "2 epochs"
    assert rows[3]["needs"] == "sft, rm, prompts/test"
    values = json.loads(plan_json(plan))
    assert values["recipe"] == "tiny" and values["seed"] == 1 and values["stages"] == rows
    assert default_directory(plan.read) == Path("runs/tiny-s1")
