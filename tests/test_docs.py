"""Whole recipes in the documentation plan."""

import json
import re
from pathlib import Path

import pytest

from xwin.recipe.plan import make_plan
from xwin.recipe.schema import read_recipe
from xwin.run.directory import RunDirectory

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
RECIPES = [
    pytest.param(block, id=f"{page.stem}-{number}")
    for page in PAGES
    for number, block in enumerate(re.findall(r"^```yaml\n(name:.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE))
]
FILE = re.compile(r"\./[\w*./-]+\.jsonl?")
CHAT = {"messages": [{"role": "user", "content": "Hi!"}, {"role": "assistant", "content": "Hello."}]}


def test_there_is_one() -> None:
    assert RECIPES


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_of_the_documentation_plans(recipe: str, tmp_path: Path) -> None:
    for name in FILE.findall(recipe):
        path = tmp_path / name.replace("*", "some")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(CHAT) + "\n")
    (tmp_path / "recipe.yaml").write_text(recipe)
    plan = make_plan(read_recipe(tmp_path / "recipe.yaml"), RunDirectory(tmp_path / "run"))
    assert {stage.status for stage in plan.stages} == {"run"}
