"""Spec and Kind: the folder is the registry."""

import importlib
import pkgutil
import sys
from pathlib import Path
from typing import Annotated, ClassVar

import pytest
from annotated_types import Gt
from pydantic import ValidationError

import xwin
from xwin.credit.base import Credit
from xwin.credit.gae import Gae
from xwin.engines.base import EngineKind
from xwin.objectives.base import Objective
from xwin.objectives.ppo import Ppo
from xwin.objectives.value import Value
from xwin.scorers.base import ScorerKind
from xwin.spec import Kind, Spec, lookup, names, nearest
from xwin.stages.base import Stage
from xwin.suites.base import Suite

FAMILIES: list[type[Kind]] = [Objective, Credit, EngineKind, ScorerKind, Stage, Suite]
KINDS = [(family, name) for family in FAMILIES for name in names(family.package)]


class Holder(Spec):
    objective: Objective
    credit: Credit | None = None
    more: tuple[Objective, ...] = ()


@pytest.mark.parametrize(("family", "name"), KINDS, ids=[f"{f.__name__}-{n}" for f, n in KINDS])
def test_every_file_of_a_family_defines_one_kind_that_is_named_for_it(family: type[Kind], name: str) -> None:
    found = lookup(family, name)
    assert issubclass(found, family)
    assert found.__doc__
    assert found.__module__ == f"{family.package}.{name}"
    required = [f for f, field in found.model_fields.items() if field.is_required()]
    if not required:
        assert found().kind == name
        assert family.choose({"kind": name}) == found() == family.choose(name)


@pytest.mark.parametrize(("family", "name"), KINDS, ids=[f"{f.__name__}-{n}" for f, n in KINDS])
def test_every_setting_says_what_it_is(family: type[Kind], name: str) -> None:
    assert [f for f, field in lookup(family, name).model_fields.items() if not field.description] == []


def test_the_names_of_a_family_are_its_files() -> None:
    folder = Path(xwin.__file__).parent / "objectives"
    assert names("xwin.objectives") == sorted(p.stem for p in folder.glob("*.py") if p.stem != "base" and not p.stem.startswith("_"))


def test_naming_a_kind_imports_only_its_file() -> None:
    package = importlib.import_module("xwin.objectives")
    mine = {m.name for m in pkgutil.iter_modules(package.__path__)}
    before = {n: sys.modules.pop(f"xwin.objectives.{n}") for n in mine - {"base"} if f"xwin.objectives.{n}" in sys.modules}
    try:
        Objective.choose({"kind": "sft"})
        assert {n for n in mine if f"xwin.objectives.{n}" in sys.modules} == {"base", "sft"}
    finally:
        sys.modules.update({f"xwin.objectives.{n}": module for n, module in before.items()})


def test_a_kind_is_chosen_by_mapping_by_name_or_as_it_is() -> None:
    holder = Holder.model_validate({"objective": {"kind": "ppo", "clip": 0.1}, "more": ["value", Ppo()], "credit": "gae"})
    assert holder.objective == Ppo(clip=0.1)
    assert holder.more == (Value(), Ppo())
    assert holder.credit == Gae()


def test_settings_survive_a_dump_and_a_load() -> None:
    holder = Holder(objective=Ppo(clip=0.1, dual_clip=None), credit=Gae(lam=0.9), more=(Value(clip=None), Ppo()))
    for dump in (holder.model_dump(), holder.model_dump(mode="json")):
        assert dump["objective"] == {"kind": "ppo", "clip": 0.1, "dual_clip": None}, "nulls are kept"
        again = Holder.model_validate(dump)
        assert again == holder
        assert type(again.objective) is Ppo
    assert Holder.model_validate_json(holder.model_dump_json()) == holder


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"kind": "pppo"}, "unknown kind 'pppo'"),
        ("zzz", "unknown kind 'zzz'"),
        ({"clip": 0.1}, "needs a kind: one of bradley_terry, cispo, dpo"),
        (3, "needs a kind"),
        ({"kind": 3}, "needs a kind"),
        ({"kind": "base"}, "unknown kind 'base'"),
        ({"kind": "ppo", "clipp": 1}, "Extra inputs are not permitted"),
        ({"kind": "ppo", "clip": 0}, "greater than 0"),
        (Gae(), "needs a kind"),
    ],
)
def test_a_wrong_kind_is_refused_with_what_is_wrong(value: object, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Holder.model_validate({"objective": value})


def test_an_unknown_kind_comes_with_the_nearest_name() -> None:
    with pytest.raises(ValidationError) as caught:
        Holder.model_validate({"objective": {"kind": "pppo"}})
    assert caught.value.errors()[0].get("ctx") == {"kind": "pppo", "near": "did you mean 'ppo'?"}
    assert nearest("bradley-terry", names("xwin.objectives")) == "did you mean 'bradley_terry'?"
    assert nearest("zzz", ["a", "b"]) == "one of: a, b"


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError):
        Ppo().clip = 0.3  # type: ignore[misc]


def test_a_file_with_two_kinds_is_our_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "twokinds").mkdir()
    (tmp_path / "twokinds" / "__init__.py").write_text("")
    (tmp_path / "twokinds" / "base.py").write_text("from xwin.spec import Kind\nclass Root(Kind):\n    package = 'twokinds'\n")
    (tmp_path / "twokinds" / "both.py").write_text("from twokinds.base import Root\nclass A(Root): ...\nclass B(Root): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    root = importlib.import_module("twokinds.base").Root
    with pytest.raises(LookupError, match=r"twokinds.both defines 2 kinds of Root"):
        lookup(root, "both")


def test_the_settings_of_a_spec_are_plain_json() -> None:
    class Small(Spec):
        size: Annotated[int, Gt(0)] = 3
        """How big."""
        name: str | None = None
        """What."""
        unit: ClassVar[str] = "m"

    assert Small().settings() == {"size": 3, "name": None}
    assert Small.model_fields["size"].description == "How big."
