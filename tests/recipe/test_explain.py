"""Explanations come from the docstrings of the code itself."""

from pathlib import Path

import pytest

import xwin
from xwin.errors import UserError
from xwin.recipe.explain import FAMILIES, all_kinds, explain, markdown
from xwin.spec import names


def test_every_kind_is_listed_with_a_line() -> None:
    lines = all_kinds()
    assert {(line.family, line.name) for line in lines} >= {("objectives", name) for name in names("xwin.objectives")}
    assert all(line.text for line in lines)


def test_every_folder_of_kinds_is_listed() -> None:
    folders = {path.parent.name for path in Path(xwin.__file__).parent.glob("*/base.py")}
    assert set(FAMILIES) == folders


def test_a_default_list_of_kinds_is_written_by_name() -> None:
    found = {setting.name: setting.default for setting in explain("evaluate")[0].settings}
    assert found["suites"].startswith("[") and '""' not in found["suites"]


def test_a_setting_has_type_default_range_and_meaning() -> None:
    (page,) = explain("ppo.clip")
    (setting,) = page.settings
    assert page.title == "objectives/ppo.clip"
    assert (setting.type, setting.default, setting.limits) == ("a number or a list (a number each)", "0.2", "above 0")
    assert "ratio" in setting.text


def test_a_range_inside_a_choice_is_found() -> None:
    (page,) = explain("ppo.dual_clip")
    assert (page.settings[0].type, page.settings[0].limits) == ("a number or null", "above 1")


def test_a_kind_lists_its_settings_and_references_say_what_they_want() -> None:
    (page,) = explain("improve")
    found = {setting.name: setting for setting in page.settings}
    assert found["policy"].type == "a reference to a Model"
    assert found["policy"].default == "required"
    assert found["objective"].default == "ppo"
    assert found["steps"].limits == "at least 1"


def test_a_path_goes_into_nested_settings_and_kinds() -> None:
    assert explain("tune.speed.lr")[0].title == "stages/tune.speed.lr"
    assert explain("improve.objective.clip")[0].settings[0].name == "clip"
    assert explain("improve.objective.value.clip")[0].title == "stages/improve.objective.value.clip"
    assert explain("improve.critic.init")[0].settings[0].type == "a reference to a RewardModel"
    names = [setting.name for setting in explain("tune.speed")[0].settings]
    assert names == ["speed", "lr", "warmup"]


def test_a_closed_choice_is_explained_by_kind() -> None:
    (page,) = explain("sft.tune")
    assert "lora" in page.settings[0].type and page.settings[0].default == "full"
    assert explain("sft.tune.lora.rank")[0].settings[0].limits == "at least 1"


def test_the_recipe_and_its_models_are_explained() -> None:
    assert {"name", "seed", "data", "models", "stages", "trackers", "workers", "ray"} == {setting.name for setting in explain("recipe")[0].settings}
    assert explain("models.path")[0].settings[0].default == "required"


@pytest.mark.parametrize(("name", "near"), [("pp0", "ppo"), ("ppo.clipp", "clip"), ("improve.critic.intt", "critic"), ("ppo.clip.x", "clip")])
def test_what_does_not_exist_says_what_is_nearest(name: str, near: str) -> None:
    with pytest.raises(UserError, match=near):
        explain(name)


def test_the_committed_page_of_the_math_is_what_the_docstrings_say() -> None:
    page = (Path(__file__).parents[2] / "docs" / "objectives.md").read_text(encoding="utf-8")
    assert page == markdown(), "write it anew: scripts/docs"


@pytest.mark.parametrize("family", ["objectives", "credit"])
def test_every_method_on_the_page_has_a_source_its_columns_and_its_settings(family: str) -> None:
    sections = dict(part.partition("\n")[::2] for part in markdown().split("\n### ")[1:])
    for name in names(f"xwin.{family}"):
        assert "arXiv:" in sections[name] or "19" in sections[name], name
        assert "Reads " in sections[name], name
        assert all(f"| `{setting.name}` |" in sections[name] for setting in explain(f"{family}/{name}")[0].settings)


def test_settings_inside_settings_are_on_the_page() -> None:
    page = markdown()
    for line in ("| `kl.estimator` | ", "| `weighting.fixed_length.tokens` | ", "| `correction.mask.low` | "):
        assert line in page
    assert "Reads the columns `advantage`, `old_logp`. The reference's log-probs too when KL is in the loss." in page
