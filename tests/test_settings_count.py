"""The list of all settings, frozen: a new one, a lost one, or another default is a decision and not an accident."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from xwin.recipe.explain import FAMILIES, SINGLE, _default, _root, _written
from xwin.spec import Kind, Spec, lookup, names

FROZEN = Path(__file__).with_name("settings.txt")


def every_setting() -> list[str]:
    """One line per setting of each kind and of what is inside it, with its default.  Example: "stages/sft.optim.lr = 1e-05" """
    roots: dict[str, type[Spec]] = dict(SINGLE)
    roots |= {f"{family}/{name}": lookup(_root(family), name) for family in FAMILIES for name in names(f"xwin.{family}")}
    return sorted(line for name, spec in roots.items() for line in _settings(name, spec))


def _settings(path: str, spec: type[Spec], given: object = None) -> Iterator[str]:
    """`given`: what the field that holds these settings is by default, if anything."""
    for key, field in spec.model_fields.items():
        if key == "kind":
            continue
        value = getattr(given, key) if isinstance(given, spec) else field.default
        name = f"{path}.{field.alias or key}"
        yield f"{name} = {_default(field) if given is None else _written(value)}"
        for one in dict.fromkeys(_specs(field.annotation)):
            kind = one.model_fields.get("kind")
            yield from _settings(f"{name}.{kind.default}" if kind else name, one, value if isinstance(value, one) else None)


def _specs(annotation: Any) -> Iterator[type[Spec]]:
    """The settings inside a field; kinds have a place of their own in the list."""
    if isinstance(annotation, type) and issubclass(annotation, Spec) and not issubclass(annotation, Kind):
        yield annotation
    for arm in get_args(annotation):
        yield from _specs(arm)


def test_the_settings_are_those_of_the_list() -> None:
    now, listed = every_setting(), FROZEN.read_text(encoding="utf-8").splitlines()
    new, gone = sorted(set(now) - set(listed)), sorted(set(listed) - set(now))
    message = "".join([*(f"\n  + {line}" for line in new), *(f"\n  - {line}" for line in gone)])
    assert now == listed, (
        f"settings changed:{message}\n"
        "Is each new one needed, and is there a test in which it changes a result? Then write the list anew: python tests/test_settings_count.py"
    )


def test_the_list_goes_into_every_setting() -> None:
    now = {line.partition(" = ")[0] for line in every_setting()}
    assert {
        "recipe.seed",
        "models.path",
        "stages/sft.optim.lr",
        "stages/rl.tune.lora.rank",
        "stages/rl.critic.optim.lr",
        "objectives/ppo.clip",
    } <= now
    assert {"stages/evaluate.contenders.model", "stages/sft.guards.above", "recipe.models.path"} <= now


if __name__ == "__main__":
    FROZEN.write_text("".join(f"{line}\n" for line in every_setting()), encoding="utf-8")
    print(f"{FROZEN}: {len(every_setting())} settings")
