"""Every recipe that comes along can be read and planned."""

from pathlib import Path

import pytest

from xwin.recipe.plan import make_plan
from xwin.recipe.schema import read_recipe
from xwin.run.directory import RunDirectory

FOLDER = Path(__file__).parents[1] / "recipes"
RECIPES = sorted(FOLDER.glob("*.yaml"))


def test_there_are_recipes() -> None:
    assert {"smoke.yaml"} <= {path.name for path in RECIPES}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_reads_and_plans(path: Path, tmp_path: Path) -> None:
    read = read_recipe(path)
    plan = make_plan(read, RunDirectory(tmp_path / "run"))
    assert set(plan.order) == set(read.recipe.stages)
    assert {stage.status for stage in plan.stages} == {"run"}
    assert all(stage.summary for stage in plan.stages if stage.spec.kind != "prompts")
    assert read.recipe.name == path.stem
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_says_in_its_first_line_what_it_is_for(path: Path) -> None:
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# ")
    assert len(first) > 20
