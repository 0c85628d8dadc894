"""The real TensorBoard and Weights & Biases: what they can read afterwards is what was told."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pydantic import ValidationError
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb_records import history, records

from xwin.errors import RecipeError
from xwin.recipe.schema import read_recipe
from xwin.run.trackers import Subject, Tensorboard, Wandb

KEY = "0123456789abcdef0123456789abcdef01234567"


def subject(folder: Path, stage: str = "sft") -> Subject:
    folder.mkdir(exist_ok=True)
    return Subject(folder, "tiny-s0", "9f21", stage, "1f09c2ab", {"lr": 1e-5})


def tell(tracker: Tensorboard | Wandb, folder: Path, *steps: int) -> None:
    sink = tracker.open(subject(folder))
    for step in steps:
        sink.tell(step, 1000.0 + step, {"loss": 1.0 / (step + 1), "reward/length": float("nan")})
    sink.close()


def test_tensorboard_reads_every_step_of_all_attempts(tmp_path: Path) -> None:
    tell(Tensorboard(), tmp_path, 0, 1, 2)
    tell(Tensorboard(), tmp_path, 3, 4)
    found = EventAccumulator(str(tmp_path / "sft-1f09c2ab")).Reload()
    assert found.Tags()["scalars"] == ["loss", "reward/length"]
    rows = [(event.step, event.value, event.wall_time) for event in found.Scalars("loss")]
    assert rows == [(step, pytest.approx(1.0 / (step + 1)), 1000.0 + step) for step in range(5)]


def test_tensorboard_can_read_what_a_kill_left(tmp_path: Path) -> None:
    sink = Tensorboard().open(subject(tmp_path))
    sink.tell(0, 1000.0, {"loss": 1.0})
    sink.tell(1, 1001.0, {"loss": 0.5})
    (file,) = (tmp_path / "sft-1f09c2ab").iterdir()  # not closed: every step is on the disk
    file.with_name("cut").write_bytes(file.read_bytes()[:-3])
    sink.close()
    file.unlink()
    file.with_name("cut").rename(file)
    tell(Tensorboard(), tmp_path, 2)
    assert [event.step for event in EventAccumulator(str(tmp_path / "sft-1f09c2ab")).Reload().Scalars("loss")] == [0, 2]


TELL = """
import sys
from pathlib import Path
from xwin.run.trackers import Subject, Wandb
sink = Wandb(project="mine").open(Subject(Path(sys.argv[1]), "tiny-s0", "9f21", "sft", "1f09c2ab", {"lr": 1e-5}))
for step in range(3):
    sink.tell(step, 1000.0 + step, {"loss": 1.0 / (step + 1), "reward/length": float("nan")})
sink.close()
"""


def test_wandb_keeps_every_step_offline_and_no_key(tmp_path: Path) -> None:
    """In a process of its own, as in life: some of it is written when the process ends."""
    environment = os.environ | {"WANDB_API_KEY": KEY}
    done = subprocess.run([sys.executable, "-c", TELL, tmp_path], capture_output=True, text=True, env=environment, check=False, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    (file,) = tmp_path.glob("wandb/offline-run-*/run-9f21-sft-1f09c2ab.wandb")
    end = time.monotonic() + 20
    while len(history(file)) < 3 and time.monotonic() < end:  # its service outlives the process for a moment
        time.sleep(0.05)
    rows = [(row["_step"], row["loss"], row["_timestamp"]) for row in history(file)]
    assert rows == [(0, 1.0, 1000.0), (1, 0.5, 1001.0), (2, pytest.approx(1 / 3), 1002.0)]
    (run,) = [record.run for record in records(file) if record.WhichOneof("record_type") == "run"]
    assert (run.project, run.run_group, run.display_name, run.run_id) == ("mine", "tiny-s0", "tiny-s0/sft", "9f21-sft-1f09c2ab")
    assert {item.key: item.value_json for item in run.config.update}["lr"] == "0.00001"
    for path in (path for path in tmp_path.rglob("*") if path.is_file()):
        assert KEY.encode() not in path.read_bytes(), path


RECIPE = """\
name: tracked
models:
  base: {path: "random:2x64"}
stages:
  sft: {kind: sft, init: base, data: ./rows.jsonl}
trackers: TRACKERS
"""


def recipe(folder: Path, trackers: str) -> Path:
    (folder / "rows.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    (folder / "tracked.yaml").write_text(RECIPE.replace("TRACKERS", trackers))
    return folder / "tracked.yaml"


def test_a_recipe_names_trackers_and_their_settings(tmp_path: Path) -> None:
    read = read_recipe(recipe(tmp_path, "[{kind: tensorboard}, {kind: wandb, project: mine}]"), ["trackers.1.mode=online"])
    assert read.recipe.trackers == (Tensorboard(), Wandb(project="mine", mode="online"))
    assert read_recipe(recipe(tmp_path, "[]")).recipe.trackers == ()


@pytest.mark.parametrize("package", ["tensorboard", "wandb"])
def test_a_package_that_is_not_installed_is_said_when_the_recipe_is_read(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(RecipeError) as caught:
        read_recipe(recipe(tmp_path, f"[{{kind: {package}}}]"))
    (problem,) = caught.value.problems
    assert problem.where == "tracked.yaml:6 trackers.0"
    assert problem.what == f"the package '{package}' is not installed"
    assert problem.fix == f"pip install 'xwin-lm[{package}]'"


@pytest.mark.parametrize(
    ("trackers", "says"),
    [
        ("[{kind: tensorboard}, {kind: tensorboard}]", "the tracker 'tensorboard' is named twice"),
        ("[{kind: mlflow}]", "unknown kind 'mlflow'"),
        ("[{kind: wandb, api_key: abc}]", "unknown setting"),
    ],
)
def test_what_is_no_tracker_is_a_mistake_of_the_recipe(trackers: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=says):
        read_recipe(recipe(tmp_path, trackers))


def test_a_mode_is_one_of_two() -> None:
    with pytest.raises(ValidationError):
        Wandb(mode="disabled")  # type: ignore[arg-type]
