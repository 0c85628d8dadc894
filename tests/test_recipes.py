"""Every recipe that comes along can be read and planned."""

import gzip
import json
import re
from pathlib import Path

import pytest

from xwin.errors import RecipeError
from xwin.recipe.plan import make_plan
from xwin.recipe.schema import read_recipe
from xwin.run.directory import RunDirectory


def _name(path: Path) -> str:
    """Example: "study-helpful/7b"."""
    return path.relative_to(FOLDER).with_suffix("").as_posix()


FOLDER = Path(__file__).parents[1] / "recipes"
AFTER_ANOTHER = {"study-helpful/data", "study-helpful/methods", "study-helpful/trl", "study-reasoning/methods"}
"""Recipes that read what the user has, or what another run left; tests/e2e/test_studies.py carries them out."""
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


def _found_by(path: Path, folder: Path) -> list[str]:
    """Makes what a recipe reads that another run or the user has: files of one row each, models without weights; and says so by --set."""
    text = path.read_text(encoding="utf-8")
    asked, answer = {"role": "user", "content": "Hi!"}, {"role": "assistant", "content": "Hello."}
    pair = {"id": "0", "prompt": [asked], "chosen": [answer], "rejected": [{"role": "assistant", "content": "No."}]}
    for name in set(re.findall(r"\./([\w./-]+\.jsonl(?:\.gz)?)", text)):
        row = pair if name.startswith(("preference/", "halves/", "held/")) else {"id": "0", "messages": [asked, answer]}
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with gzip.open(folder / name, "wt") if name.endswith(".gz") else (folder / name).open("w") as out:
            out.write(json.dumps(row) + "\n")
    sets = [f"data={folder}"]
    for name in re.findall(r"^  (\w+): {path: \.\./", text, re.MULTILINE):
        (folder / name).mkdir()
        scores = name == "rm" or name.startswith("gold")
        config = {"model_type": "llama", "architectures": ["LlamaForSequenceClassification" if scores else "LlamaForCausalLM"]}
        (folder / name / "config.json").write_text(json.dumps(config))
        sets.append(f"models.{name}.path={folder / name}")
    return sets


@pytest.mark.parametrize("name", sorted(AFTER_ANOTHER))
def test_a_recipe_that_comes_after_another_run_reads_and_plans(name: str, tmp_path: Path) -> None:
    path = FOLDER / f"{name}.yaml"
    read = read_recipe(path, _found_by(path, tmp_path))
    plan = make_plan(read, RunDirectory(tmp_path / "run"))
    assert set(plan.order) == set(read.recipe.stages)
    assert {stage.status for stage in plan.stages} == {"run"}
    with pytest.raises(RecipeError):
        read_recipe(path, [f"data={tmp_path / 'nowhere'}"])
