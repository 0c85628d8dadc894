"""A server of forks and an uninterrupted run, made once."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from .chain import write_recipe
from .forks import Forks


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where models are kept, for every process of these tests."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Iterator[Forks]:
    made = Forks(tmp_path_factory.mktemp("logs"), cache)
    yield made
    made.close()


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("chain"))


@pytest.fixture(scope="session")
def reference(forks: Forks, recipe: Path) -> Path:
    """A run that nothing disturbed. Not to be written to."""
    done = forks.run("run", recipe, "--dir", recipe.parent / "reference")
    assert done.status == 0, done.said
    return recipe.parent / "reference"
