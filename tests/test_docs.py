"""Whole recipes in the documentation plan, and its code runs."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import xwin.objectives
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


@pytest.fixture
def more_objectives(tmp_path: Path) -> Iterator[Path]:
    """A folder whose files are objectives, too."""
    xwin.objectives.__path__.append(str(tmp_path))
    yield tmp_path
    xwin.objectives.__path__.remove(str(tmp_path))
    sys.modules.pop("xwin.objectives.slic", None)


def test_the_objective_of_the_documentation_is_one(more_objectives: Path) -> None:
    import torch

    from xwin.data.batch import Outputs, Sample, pack
    from xwin.objectives.base import Objective
    from xwin.spec import lookup, names

    page = (ROOT / "docs" / "add-an-objective.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    (more_objectives / "slic.py").write_text(code)
    assert "slic" in names(Objective.package)
    objective = lookup(Objective, "slic")(margin=2.0)
    pairs = [Sample(f"{side}{i}", (1, 2, 3), (False, True, True), bond=str(i)) for i in range(2) for side in "cr"]
    (batch,) = pack(pairs, tokens=12)
    told = {"c0": -1.0, "r0": -1.5, "c1": -1.0, "r1": -4.0}
    logp = torch.zeros(12)
    for segment, name in enumerate(batch.ids):
        start = int(batch.starts[segment])
        logp[start + 1 : start + 3] = told[name] / 2
    loss = objective.loss(batch, Outputs(logp=logp))
    assert sorted(loss.values.tolist()) == [0.0, 1.5]  # 2 - (-1) + (-1.5); 2 - (-1) + (-4) is below 0
