"""Reading YAML: what is a number, what is text, which line a value is on, and what is refused."""

import math
from pathlib import Path
from typing import Any

import pytest

from xwin.errors import RecipeError, UserError
from xwin.recipe.source import Source, read_source, read_value


def source(folder: Path, text: str) -> Source:
    path = folder / "tiny.yaml"
    path.write_text(text, encoding="utf-8")
    return read_source(path)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("-2.5E3", -2500.0),
        (".5", 0.5),
        ("3.", 3.0),
        ("007", 7),
        ("+4", 4),
        ("on", "on"),
        ("yes", "yes"),
        ("NO", "NO"),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("'1e-5'", "1e-5"),
        ('"true"', "true"),
        ("2026-01-01", "2026-01-01"),
        ("1_000", "1_000"),
        ("0x10", "0x10"),
        ("12:30", "12:30"),
        (".inf", math.inf),
        ("[1, a]", [1, "a"]),
        ("{kind: ppo, clip: 0.1}", {"kind": "ppo", "clip": 0.1}),
    ],
)
def test_a_scalar_is_what_a_person_expects(text: str, value: Any) -> None:
    found = read_value(text, "--set x")
    assert found == value
    assert type(found) is type(value)


def test_not_a_number_is_read_as_such() -> None:
    assert math.isnan(read_value(".nan", "--set x"))


def test_every_value_knows_its_line(tmp_path: Path) -> None:
    found = source(tmp_path, "name: a\nstages:\n  ppo:\n    objective: {kind: ppo,\n      clip: 0.1}\n    data:\n    - x\n    - y\n")
    assert found.where(("stages", "ppo", "objective", "clip")) == "tiny.yaml:5 stages.ppo.objective.clip"
    assert found.where(("stages", "ppo", "data", 1)) == "tiny.yaml:8 stages.ppo.data.1"
    assert found.where(("stages", "ppo", "missing")) == "tiny.yaml:3 stages.ppo.missing"
    assert found.where(()) == "tiny.yaml:1"


def test_a_key_given_twice_names_both_lines(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"tiny\.yaml:3 a\.x: is given twice, first on line 2"):
        source(tmp_path, "a:\n  x: 1\n  x: 2\n")


def test_all_double_keys_are_listed(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        source(tmp_path, "a: 1\na: 2\nb: 1\nb: 2\n")
    assert [problem.where for problem in caught.value.problems] == ["tiny.yaml:2 a", "tiny.yaml:4 b"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", r"tiny\.yaml:\d: not YAML"),
        ("a:\n\tb: 1", r"tiny\.yaml:2: not YAML(.|\n)*spaces, not tabs"),
        ("a: 1\n--- \nb: 1", r"not YAML"),
        ("- 1", r"a recipe is a mapping"),
        ("", r"a recipe is a mapping"),
        ("a: !!python/object:os.system x", r"tag .* is not supported"),
        ("a: !mine x", r"tag !mine is not supported"),
        ("a: &x [*x]", r"cannot contain itself"),
        ("? [a]\n: 1", r"a key must be a plain word"),
        ("a: *nope", r"not YAML: .*undefined alias"),
    ],
)
def test_what_is_no_recipe_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        source(tmp_path, text)


def test_anchors_may_repeat_a_value(tmp_path: Path) -> None:
    assert source(tmp_path, "a: &x {k: 1}\nb: *x").data == {"a": {"k": 1}, "b": {"k": 1}}


def test_a_missing_file_a_folder_and_bytes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such recipe"):
        read_source(tmp_path / "none.yaml")
    with pytest.raises(UserError, match="cannot be read"):
        read_source(tmp_path)
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not UTF-8"):
        read_source(tmp_path / "b.yaml")
