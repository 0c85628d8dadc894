"""Stage kinds of the recipe engine's own tests: real stages that do next to nothing, found by file name like any other."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import xwin.stages

RECIPE = """\
name: tiny
seed: 1
models:
  base: {path: "random:2x64", template: own, dtype: bfloat16}
stages:
  prompts: {kind: prompts, train: 16, validation: 8, test: 8}
  best: {kind: improve, policy: sft, scorer: rm, prompts: prompts/test, critic: {init: rm}, objective: {kind: ppo, clip: 0.1}}
  sft: {kind: tune, init: base, data: [prompts, prompts/worked]}
  rm: {kind: judge, init: sft, data: ./pairs.jsonl}
"""


@pytest.fixture(autouse=True)
def kinds() -> Iterator[None]:
    """Stage kinds of the folder kinds/, for the length of one test."""
    folder = str(Path(__file__).parent / "kinds")
    xwin.stages.__path__.append(folder)
    yield
    xwin.stages.__path__.remove(folder)
    for path in Path(folder).glob("*.py"):
        sys.modules.pop(f"xwin.stages.{path.stem}", None)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe of four stages, and the file of pairs it names."""
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    return tmp_path / "tiny.yaml"
