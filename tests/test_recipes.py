"""Every recipe that comes along can be read and planned."""

from pathlib import Path

import pytest

from xwin.recipe.plan import make_plan
from xwin.recipe.schema import read_recipe
from xwin.run.directory import RunDirectory


def _name(path: Path) -> str:
    """Example: "study-helpful/7b"."""
    return path.relative_to(FOLDER).with_suffix("").as_posix()


FOLDER = Path(__file__).parents[1] / "recipes"
AFTER_ANOTHER = {"study-helpful/data", "study-helpful/methods", "study-helpful/trl", "study-reasoning/methods"}
"""Recipes that read what the user has, or what another run left: tests/e2e/test_studies.py carries them out."""
RECIPES = sorted(path for path in FOLDER.rglob("*.yaml") if _name(path) not in AFTER_ANOTHER)


def test_there_are_recipes() -> None:
    assert {"smoke", "7b-rlhf", "study-helpful/7b", "study-reasoning/data"} <= {_name(path) for path in RECIPES}
    assert all((FOLDER / f"{name}.yaml").is_file() for name in AFTER_ANOTHER)


@pytest.mark.parametrize("path", RECIPES, ids=_name)
def test_a_recipe_reads_and_plans(path: Path, tmp_path: Path) -> None:
    read = read_recipe(path)
    plan = make_plan(read, RunDirectory(tmp_path / "run"))
    assert set(plan.order) == set(read.recipe.stages)
    assert {stage.status for stage in plan.stages} == {"run"}
    assert all(stage.summary for stage in plan.stages if stage.spec.kind != "prompts")
    assert read.recipe.name == _name(path).replace("/", "-")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("path", sorted(FOLDER.rglob("*.yaml")), ids=_name)
def test_a_recipe_says_in_its_first_line_what_it_is_for(path: Path) -> None:
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# ")
    assert len(first) > 20
