"""A server of forks, runs that are made once, and a small disk."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from .chain import write_recipe
from .forks import Forks
from .short import SHORT


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


@pytest.fixture
def short(tmp_path: Path) -> Path:
    return write_recipe(tmp_path, SHORT)


@pytest.fixture(scope="session")
def killed(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed in sft after a few checkpoints. Not to be written to."""
    recipe = write_recipe(tmp_path_factory.mktemp("killed"), SHORT)
    run = recipe.parent / "run"
    events = run / "stages" / "sft" / "events.jsonl"
    attempt = forks.start("run", recipe, "--dir", run)
    assert attempt.until(lambda: events.exists() and b'"step": 4,' in events.read_bytes()), attempt.said
    attempt.send(signal.SIGKILL)
    assert attempt.wait() == -signal.SIGKILL, attempt.said
    return run


@pytest.fixture(scope="session")
def finished(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run. Not to be written to."""
    recipe = write_recipe(tmp_path_factory.mktemp("finished"), SHORT)
    done = forks.run("run", recipe, "--dir", recipe.parent / "run")
    assert done.status == 0, done.said
    return recipe.parent / "run"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 24 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root may mount a small disk to fill")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "none", str(place)], capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)
