"""`--set`: only what exists can be changed, also a default, and mistakes name the option."""

from pathlib import Path
from typing import Any

import pytest

from xwin.errors import RecipeError
from xwin.recipe.schema import read_recipe


def settings(recipe: Path, *sets: str) -> dict[str, Any]:
    return read_recipe(recipe, sets).recipe.settings()


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        ("seed=3", ["seed"], 3),
        ("name=other", ["name"], "other"),
        ("best.objective.clip=0.05", ["stages", "best", "objective", "clip"], 0.05),
        ("stages.best.objective.clip=5e-2", ["stages", "best", "objective", "clip"], 0.05),
        ("best.steps=7", ["stages", "best", "steps"], 7),
        ("models.base.path=random:2x32", ["models", "base", "path"], "random:2x32"),
        ("sft.data.1=prompts/test", ["stages", "sft", "data"], ["prompts", "prompts/test"]),
        ("sft.data=prompts", ["stages", "sft", "data"], "prompts"),
        ("prompts.families=[word_limit, bullets]", ["stages", "prompts", "families"], ["word_limit", "bullets"]),
        ("best.critic=null", ["stages", "best", "critic"], None),
        ("best.objective=ppo", ["stages", "best", "objective", "clip"], 0.2),
        ("best.objective.kind=ppo", ["stages", "best", "objective", "clip"], 0.1),
    ],
)
def test_a_setting_is_changed(recipe: Path, text: str, path: list[str], value: Any) -> None:
    found = settings(recipe, text)
    for key in path:
        found = found[key]
    assert found == value


def test_setting_one_part_of_a_default_keeps_the_rest_of_the_default(recipe: Path) -> None:
    assert settings(recipe, "sft.speed.lr=1e-3")["stages"]["sft"]["speed"] == {"lr": 1e-3, "warmup": 0.0}


def test_one_part_of_a_default_kind_can_be_set(recipe: Path) -> None:
    recipe.write_text(recipe.read_text().replace(", objective: {kind: ppo, clip: 0.1}", ""))
    found = settings(recipe, "best.objective.dual_clip=2")["stages"]["best"]["objective"]
    assert (found["kind"], found["clip"], found["dual_clip"]) == ("ppo", 0.3, 2.0)


def test_a_kind_given_by_its_name_can_be_refined(recipe: Path) -> None:
    recipe.write_text(recipe.read_text().replace("{kind: ppo, clip: 0.1}", "ppo"))
    assert settings(recipe, "best.objective.clip=0.4")["stages"]["best"]["objective"]["clip"] == 0.4


def test_later_options_win(recipe: Path) -> None:
    assert settings(recipe, "seed=3", "seed=4")["seed"] == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("best.clipp=1", "there is no 'clipp' in stages.best"),
        ("best.objective.clipp=1", "--set best.objective.clipp=1: there is no 'clipp' in stages.best.objective\n    fix: did you mean 'clip'?"),
        ("bst.steps=1", "there is no stage or setting 'bst'\n    fix: did you mean 'best'?"),
        ("models.bse.path=./x", "there is no 'bse' in models\n    fix: did you mean 'base'?"),
        ("sft.data.7=prompts", "there is no '7' in stages.sft.data"),
        ("seed.x=1", "there is no 'x' in seed"),
        ("seed", "needs the form key=value"),
        ("=3", "needs the form key=value"),
        ("seed=[", "not YAML"),
        ("seed=abc", "--set seed=abc: needs a whole number, not the text 'abc'"),
        ("best.objective.clip=-1", "--set best.objective.clip=-1: must be above 0, not -1"),
        ("best.objective.clip=", "--set best.objective.clip=: needs a number or a list (a number each), not null"),
        ("best.scorer=sft", "--set best.scorer=sft: needs a RewardModel, but stage 'sft' makes a Model"),
        ("best.objective.kind=grpoo", "unknown kind 'grpoo'"),
    ],
)
def test_a_wrong_option_is_named(recipe: Path, text: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        read_recipe(recipe, [text])
    assert message in str(caught.value)


def test_all_wrong_options_are_listed(recipe: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        read_recipe(recipe, ["a=1", "b=2"])
    assert len(caught.value.problems) == 2


def test_a_stage_may_be_named_like_a_key_of_the_recipe(recipe: Path) -> None:
    recipe.write_text(recipe.read_text().replace("  sft:", "  data:").replace("sft", "data"))
    found = settings(recipe, "data.speed.lr=1e-3", f"data={recipe.parent}")
    assert (found["stages"]["data"]["speed"]["lr"], found["data"]) == (1e-3, str(recipe.parent))
