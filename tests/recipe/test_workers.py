"""`workers:` of a recipe: how many is no part of what a stage is, and without Ray nothing begins."""

import io
import sys
from pathlib import Path

import pytest

from xwin.errors import MissingExtra, RecipeError
from xwin.recipe.execute import run
from xwin.recipe.plan import make_plan
from xwin.recipe.schema import read_recipe
from xwin.run.console import Console
from xwin.run.directory import RunDirectory

RECIPE = """\
name: two
models: {base: {path: "random:2x64"}}
stages:
  sft: {kind: sft, init: base, data: ./chat.jsonl}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "chat.jsonl").write_text('{"messages": [{"role": "user", "content": "Hi!"}, {"role": "assistant", "content": "Hello."}]}\n')
    (tmp_path / "two.yaml").write_text(RECIPE)
    return tmp_path / "two.yaml"


def test_one_process_is_what_a_recipe_gets_unless_it_asks(recipe: Path) -> None:
    assert read_recipe(recipe).recipe.workers == 1


def test_the_number_of_workers_is_no_part_of_a_stage(recipe: Path) -> None:
    sets = [(), ("workers=2",), ("workers=8", "ray.address=auto", "ray.retries=0", "ray.seconds=60")]
    plans = [make_plan(read_recipe(recipe, some), RunDirectory(recipe.parent / "run")) for some in sets]
    assert len({plan.stages[0].fingerprint for plan in plans}) == 1


@pytest.mark.parametrize("text", ["workers=0", "workers=-1", "workers=many", "ray.retries=-1", "ray.seconds=0", "ray.addres_=auto"])
def test_a_number_that_makes_no_sense_is_a_mistake(recipe: Path, text: str) -> None:
    with pytest.raises(RecipeError, match=text.partition("=")[0].replace(".", r"\.")):
        read_recipe(recipe, (text,))


def test_without_ray_nothing_begins_and_the_message_is_the_line_that_installs_it(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match=r"pip install 'xwin-lm\[cluster\]'"):
        run(recipe, ("workers=2",), recipe.parent / "run", Console(stream=io.StringIO()))
    assert not (recipe.parent / "run" / "stages" / "sft").exists()
