"""A raft stage that was killed, at a chosen moment or between any two file operations, ends as one that nothing disturbed."""

import signal
from pathlib import Path

import pytest

from xwin.seeds import generator

from .chain import content, difference, write_recipe
from .forks import Forks

RECIPE = """\
# A round asks more prompts than a block of generation holds, so that a kill may find half a round on the disk.
name: rounds
seed: 0
models:
  base: {path: "random:2x64", template: vicuna, dtype: float32}
stages:
  prompts: {kind: prompts, families: [chain_sum], train: 140, validation: 4, test: 4}
  raft:
    kind: raft
    init: base
    prompts: prompts/train
    validation: prompts/validation
    scorer: {kind: length, shape: {kind: linear, price: 0.1}}
    steps: 4
    prompts_per_step: 135
    n: 2
    minibatches: 2
    optim: {lr: 1.0e-3}
    sampling: {max_tokens: 4}
    checkpoint_every: 0
"""
BLOCK = 256
"""Lines of the first block: 128 prompts, 2 answers each."""


@pytest.fixture(scope="module")
def rounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("rounds"), RECIPE)


@pytest.fixture(scope="module")
def undisturbed(forks: Forks, rounds: Path) -> Path:
    done = forks.run("run", rounds, "--dir", rounds.parent / "undisturbed")
    assert done.status == 0, done.said
    return rounds.parent / "undisturbed"


def test_a_kill_in_the_middle_of_a_round_changes_nothing(forks: Forks, rounds: Path, undisturbed: Path) -> None:
    run = rounds.parent / "killed"
    answers = run / "stages" / "raft" / "checkpoints" / "round-001.jsonl"
    attempt = forks.start("run", rounds, "--dir", run)
    assert attempt.until(lambda: answers.exists() and answers.read_bytes().count(b"\n") >= BLOCK), attempt.said
    attempt.send(signal.SIGKILL)
    assert attempt.wait() == -signal.SIGKILL, attempt.said
    last = forks.run("run", rounds, "--dir", run)
    assert last.status == 0, last.said
    assert "raft: going on from step" in last.said
    assert difference(content(undisturbed), content(run)) == []
    assert {path.name for path in (run / "stages" / "raft").iterdir()} == {"events.jsonl", "final", "kept.jsonl", "manifest.json", "rollouts.jsonl"}


@pytest.mark.slow
def test_crashes_between_any_two_file_operations_change_nothing(forks: Forks, rounds: Path, undisturbed: Path) -> None:
    run, crashes, draw = rounds.parent / "crashed", 0, generator(20261123, "crashes")
    for _ in range(40):
        attempt = forks.run("run", rounds, "--dir", run, crash_at=int(draw.integers(10, 60)))
        if attempt.status == 0:
            break
        assert attempt.status == -signal.SIGKILL, attempt.said
        crashes += 1
    assert crashes >= 3
    assert difference(content(undisturbed), content(run)) == []
