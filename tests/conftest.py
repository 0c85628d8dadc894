"""What many tests share: the tiny random model, its templates, and learners over it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

THREADS = "1" if "PYTEST_XDIST_WORKER" in os.environ else "2"
os.environ.setdefault("OMP_NUM_THREADS", THREADS)  # before torch is imported, which the light tests never do

if TYPE_CHECKING:
    from xwin.data.template import Template
    from xwin.learning.learner import Learner

MakeLearner = Callable[..., "Learner"]


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of 2 layers, 64 wide, with a byte tokenizer whose pad token is its end token. Not to be written to."""
    from xwin.models.hub import ModelSource, fetch

    cache = tmp_path_factory.mktemp("tiny")
    return fetch(ModelSource(path="random:2x64"), cache, cache)


@pytest.fixture(scope="session")
def tiny_template(tiny_folder: Path) -> Template:
    """Vicuna over the tiny model's tokenizer."""
    from xwin.data.template import load_template

    return load_template(tiny_folder, "vicuna")


@pytest.fixture(scope="session")
def own_template(tiny_folder: Path) -> Template:
    """The tiny model's own chat template (ChatML)."""
    from xwin.data.template import load_template

    return load_template(tiny_folder, "own")


@pytest.fixture
def with_other_tokens(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """with_other_tokens({"a": "zz", "b": None}): a copy of the tiny model whose tokenizer has other words, or lacks some."""

    def make(change: dict[str, str | None]) -> Path:
        to = shutil.copytree(tiny_folder, tmp_path_factory.mktemp("other") / "model")
        path = to / "tokenizer.json"
        tokenizer = json.loads(path.read_text(encoding="utf-8"))
        words = tokenizer["model"]["vocab"]
        for old, new in change.items():
            number = words.pop(old)
            words |= {} if new is None else {new: number}
        path.write_text(json.dumps(tokenizer), encoding="utf-8")
        return to

    return make


@pytest.fixture
def make_learner(tiny_folder: Path) -> MakeLearner:
    """make_learner(objective, head=..., tune=..., dtype=..., seed=..., **fields of Learner): a learner over the tiny model."""
    from xwin.distributed.world import World
    from xwin.learning.learner import Learner
    from xwin.models.causal import load
    from xwin.models.tuning import Frozen, Full

    def make(objective: Any = None, *, head: Any = "language", tune: Any = None, dtype: str = "float32", seed: int = 0, **fields: Any) -> Learner:
        world = World.alone()
        world.seed(seed, "init")
        tuning = tune or (Full() if objective else Frozen())
        model = load(tiny_folder, head=head, tuning=tuning, dtype=dtype, head_seed=seed)
        return Learner(model, tiny_folder, world, objective, **fields)

    return make
