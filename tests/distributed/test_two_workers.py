"""Two workers, real processes that talk over gloo, against one process that does the same: gradients, parameters, metrics, checkpoints, folders."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from xwin.distributed.world import World
from xwin.errors import ModelError, StepRefused, UserError, WorkerLost
from xwin.learning import checkpoint
from xwin.learning.learner import Learner
from xwin.learning.optim import Optim
from xwin.models import causal
from xwin.models.tuning import Full

from .cases import CASES, Case, gradient, rows, steps, trained, whole
from .ranks import PUBLISHED, RESUMED, reading

pytestmark = pytest.mark.timeout(600)  # two processes that import torch, on a machine that may be busy
SAME = {"float32": 1e-5, "bfloat16": 2e-2}
"""Of the norm of a parameter's gradient."""
SAME_PARAMETERS = {"float32": 1e-6, "bfloat16": 1e-5}
"""Of the norm of a parameter after three steps of SGD."""
REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True)
class Pair:
    """What the two workers found, and the models and checkpoints they had."""

    folder: Path
    found: tuple[dict[str, Any], dict[str, Any]]

    def same(self, *path: str) -> Any:
        """What both found, which must be equal where it can be compared."""
        first, second = self.found
        for name in path:
            first, second = first[name], second[name]
        return first


def one() -> World:
    """This process, on its CPU."""
    return replace(World.alone(), device=torch.device("cpu"))


def drawn_untied(folder: Path, to: Path) -> None:
    """A model of the same shape whose head is not its embedding, and twice as wide in spread."""
    shutil.copytree(folder, to)
    config = AutoConfig.from_pretrained(folder)
    config.tie_word_embeddings = False
    World.alone().seed(4, "untied")
    network: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    network.save_pretrained(to)


@pytest.fixture(scope="module")
def pair(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("pair")
    shutil.copytree(tiny_folder, folder / "tied")
    drawn_untied(tiny_folder, folder / "untied")
    (folder / "published").mkdir()
    for name, case in RESUMED.items():
        learner = begun(case, folder)
        checkpoint.save(folder / "one" / name, 2, {"policy": learner.state()}, {"steps_done": learner.steps_done})
    torn = checkpoint.save(folder / "torn", 1, {"policy": CASES["sft"].learner(folder, one()).state()}, {})
    with (torn / "state.json").open("a") as file:  # the second of its files, so the second worker reads it
        file.write(" ")
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        port = door.getsockname()[1]
    command = [sys.executable, "-W", "error", "-m", "tests.distributed.ranks", str(folder), str(port)]
    subprocess.run(command, check=True, timeout=560, cwd=REPOSITORY, env=os.environ | {"OMP_NUM_THREADS": "1"})
    first, second = (pickle.loads((folder / f"{rank}.pickle").read_bytes()) for rank in range(2))
    return Pair(folder, (first, second))


def begun(case: Case, folder: Path) -> Learner:
    """After two steps in one process."""
    learner = case.learner(folder, one())
    for batches in steps(rows(case.objective))[:2]:
        learner.step(batches)
    return learner


def gap(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference, over that of what is expected."""
    return float((found - expected).norm() / expected.norm().clamp(min=1e-30))


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], bound: float) -> None:
    assert found.keys() == expected.keys()
    worst = max(expected, key=lambda name: gap(found[name], expected[name]))
    assert gap(found[worst], expected[worst]) <= bound, worst


@pytest.fixture(scope="module", params=list(CASES))
def case(request: pytest.FixtureRequest) -> str:
    return request.param


def test_a_step_of_two_workers_is_the_step_of_one(case: str, pair: Pair) -> None:
    """The gradient, the parameters after steps with uneven shares and with an empty one, and every metric."""
    expected, dtype = trained(CASES[case], pair.folder, one()), CASES[case].dtype
    first, second = (found["trained"][case] for found in pair.found)
    assert_close(first["gradient"], expected["gradient"], SAME[dtype])
    assert_close(first["ends"], expected["ends"], SAME_PARAMETERS[dtype])
    assert all(torch.equal(first["ends"][name], x) for name, x in second["ends"].items()), "both workers gather the same"
    assert first["said"] == second["said"], "the same metrics on every worker"
    for said, alone in zip(first["said"], expected["said"], strict=True):
        assert said.keys() == alone.keys()
        for name, measure in alone.items():
            loose = 5e-2 if dtype == "bfloat16" else 1e-4
            assert said[name].value == pytest.approx(measure.value, rel=loose, abs=loose), name
        assert said["tokens"] == alone["tokens"], "empty batches are not counted"
    assert first["dtypes"] == {torch.float32}, "masters and reduced gradients"


def test_workers_tell_each_other_what_they_have(pair: Pair) -> None:
    for found in pair.found:
        said = found["speaking"]
        assert said["gathered"] == [{"rank": 0}, {"rank": 1}]
        assert said["sum"] == [2.0, 10.0]
        assert said["failed"] == "row 7: is broken"


def test_meeting_nobody_ends_with_an_explanation() -> None:
    with pytest.raises(WorkerLost, match="worker 1 of 2 did not meet the others within 1 seconds"):
        World.join(1, 2, "127.0.0.1:9", backend="gloo", limit=1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_worker_that_needs_a_gpu_and_sees_none_says_so() -> None:
    with pytest.raises(UserError, match="worker 3: sees no GPU"):
        World.join(3, 4, "127.0.0.1:9", backend="nccl")


def test_forward_and_evaluation_say_what_one_process_says(pair: Pair) -> None:
    expected = reading(pair.folder, one())
    for found in pair.found:
        said = found["reading"]
        for who in ("frozen", "lora", "origin"):
            assert len(said[who]) == len(expected[who])
            for mine, alone in zip(said[who], expected[who], strict=True):
                torch.testing.assert_close(mine, alone, atol=1e-5, rtol=1e-5)
        assert said["loss"]["loss"].value == pytest.approx(expected["loss"]["loss"].value, rel=1e-6)
        assert said["loss"]["loss"].count == expected["loss"]["loss"].count
        assert not all(torch.equal(a, b) for a, b in zip(said["lora"], said["origin"], strict=True)), "adapters were off"


@pytest.mark.parametrize("name", list(RESUMED))
def test_a_checkpoint_goes_from_one_process_to_two_and_back(name: str, pair: Pair) -> None:
    """What is loaded is bit for bit what was saved; a step in between moves it as one process would."""
    case = RESUMED[name]
    straight = begun(case, pair.folder)
    for found in pair.found:
        loaded = found["resumed"][name]["loaded"]
        assert loaded.keys() == whole(straight).keys()
        assert all(torch.equal(loaded[key], x) for key, x in whole(straight).items())
    saved = pair.found[0]["resumed"][name]
    back = case.learner(pair.folder, one())
    state = checkpoint.load(saved["path"], {"policy": back.state()})
    back.steps_done = state["steps_done"]
    assert all(torch.equal(saved["saved"][key], x) for key, x in whole(back).items())
    assert sorted(path.name for path in saved["path"].iterdir() if path.suffix == ".safetensors")[0].startswith("shard-00001")
    later = steps(rows(case.objective))
    gradient(straight, later[2])
    for batches in (later[0], later[1]):
        ours, theirs = back.step(batches), straight.step(batches)
        assert ours["lr"] == theirs["lr"], "the schedule goes on"
        assert ours["loss"].value == pytest.approx(theirs["loss"].value, rel=1e-4)
    weights = {key: x for key, x in whole(straight).items() if not key.endswith(("exp_avg", "exp_avg_sq", "step"))}
    found = {key: x for key, x in whole(back).items() if key in weights}
    assert_close(found, weights, 1e-3)  # AdamW blows up what rounding does to a gradient near 0


@pytest.mark.parametrize("name", ["full", "lora"])
def test_the_best_parameters_come_back_on_every_worker(name: str, pair: Pair) -> None:
    for found in pair.found:
        assert found["best"][f"{name} moved"], "there was something to bring back"
        assert found["best"][f"{name} lost"] == []


def test_a_step_that_is_refused_is_refused_by_all_with_the_names_of_all(pair: Pair) -> None:
    first, second = (found["broken"] for found in pair.found)
    assert [str(error) for error in first["refused"]] == [str(error) for error in second["refused"]]
    bad, idle = first["refused"]
    assert isinstance(bad, StepRefused)
    assert bad.samples == ("s3",)
    assert "stopped before the update" in str(bad)
    assert isinstance(idle, StepRefused)
    assert sorted(idle.samples) == [f"s{k}" for k in range(8)], "of both workers"
    assert first["moved"] == second["moved"] == []
    assert first["next"]["loss"] == second["next"]["loss"], "the next good step is taken, and its loss is a number"


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_the_folder_that_two_publish_is_the_one_that_one_publishes(name: str, pair: Pair, tmp_path: Path) -> None:
    PUBLISHED[name].learner(pair.folder, one()).publish(tmp_path / "out")
    ours, theirs = pair.folder / "published" / name, tmp_path / "out"
    files = sorted(path.relative_to(theirs) for path in theirs.rglob("*") if path.is_file())
    assert sorted(path.relative_to(ours) for path in ours.rglob("*") if path.is_file()) == files
    for file in files:
        if file.suffix != ".safetensors":
            assert (ours / file).read_bytes() == (theirs / file).read_bytes(), file
            continue
        found, expected = load_file(ours / file), load_file(theirs / file)
        assert found.keys() == expected.keys()
        for key, x in expected.items():
            assert found[key].dtype == x.dtype
            assert gap(found[key], x) <= 1e-6, key


def test_damage_is_heard_of_by_all_whoever_finds_it(pair: Pair) -> None:
    first, second = (found["torn"] for found in pair.found)
    assert first == second
    assert "its digest is not the one that was written" in first


def test_a_checkpoint_that_one_cannot_write_fails_for_all(pair: Pair) -> None:
    first, second = (found["full_disk"] for found in pair.found)
    assert first == second != ""


def test_what_cannot_be_sharded_is_refused_with_the_setting_to_change(tiny_folder: Path) -> None:
    model = causal.load(tiny_folder, head="language", tuning=Full(), dtype="float32")
    with pytest.raises(ModelError, match=r"optim\.moments: moments of 8 bits .*\n.*workers to 1"):
        Learner(model, tiny_folder, World(0, 2, torch.device("cpu")), CASES["sft"].objective, Optim(moments="8bit"))


def test_a_checkpoint_of_two_lists_the_parts_of_both(pair: Pair) -> None:
    path = pair.found[0]["resumed"]["full"]["path"]
    shards = [file for file in path.iterdir() if file.suffix == ".safetensors"]
    assert len(shards) == 2
    sizes = [file.stat().st_size for file in shards]
    assert max(sizes) < 0.6 * sum(sizes), "each wrote about half"
    assert json.loads((path / "state.json").read_text())["state"] == {"steps_done": 3}
