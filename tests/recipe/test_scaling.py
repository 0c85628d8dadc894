"""docs/scaling.md says what the estimator says."""

from pathlib import Path

from xwin.recipe.scaling import SHAPES, held, load, put_into, tables

PAGE = Path(__file__).parents[2] / "docs" / "scaling.md"


def test_the_tables_of_the_page_are_those_of_the_estimator() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert put_into(text) == text, "write them anew: python -m xwin.recipe.scaling docs/scaling.md"
    assert tables() in text


def test_ppo_holds_four_models_and_the_engine() -> None:
    networks = held("PPO, four models", SHAPES["7B"])
    assert [network.use.role for network in networks] == ["policy", "critic", "reference", "scorer", "engine"]
    assert networks[0].shape.parameters == 6_738_415_616  # as the authors of Llama 2 count it
    assert load("PPO, four models", 2048).tokens == 512 * (256 + 4 * 512)
