"""Trackers beside a real run: they get every step once, through kills and resumes, and cannot change or end the run."""

import json
import signal
from collections import Counter
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb_records import history

from .chain import content, difference
from .forks import Forks

BOTH = ("--set", "trackers=[{kind: tensorboard}, {kind: wandb}]")


def curves(run: Path) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Stage -> metric -> (step, value), as events.jsonl has them."""
    found: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for line in (run / "events.jsonl").read_text().splitlines():
        row = json.loads(line)
        found.setdefault(row["stage"], {}).setdefault(row["name"], []).append((row["step"], row["value"]))
    return found


def test_trackers_get_every_step_once_although_the_run_was_killed(forks: Forks, short: Path, finished: Path) -> None:
    run = short.parent / "run"
    events = run / "stages" / "sft" / "events.jsonl"
    first = forks.start("run", short, "--dir", run, *BOTH, "--set", "sft.checkpoint_every=0.05")
    assert first.until(lambda: events.exists() and b'"step": 5,' in events.read_bytes()), first.said
    first.send(signal.SIGKILL)
    first.wait()
    again = forks.run("run", short, "--dir", run, *BOTH, "--set", "sft.checkpoint_every=0.05")
    assert again.status == 0, again.said
    assert "is dropped" not in again.said and "left behind" not in again.said
    expected = curves(run)
    for stage in ("taste", "sft"):
        (folder,) = (run / "trackers" / "tensorboard").glob(f"{stage}-*")
        read = EventAccumulator(str(folder)).Reload()
        assert [(e.step, round(e.value, 4)) for e in read.Scalars("loss")] == [(s, round(v, 4)) for s, v in expected[stage]["loss"]]
        rows = [row for path in sorted((run / "trackers" / "wandb").glob(f"wandb/offline-run-*/*{stage}*.wandb")) for row in history(path)]
        told = Counter(row["_step"] for row in rows)
        steps = [step for step, _ in expected[stage]["loss"]]
        assert set(told.values()) == {1}
        assert set(steps) - set(told) <= {5, 6}  # what its own process had not yet written when the kill came
        assert {row["_step"]: row["loss"] for row in rows}.items() <= dict(expected[stage]["loss"]).items()
    ours, theirs = ({k: v for k, v in content(path).items() if not k.endswith("manifest.json")} for path in (finished, run))
    assert difference(ours, theirs) == []


@pytest.mark.slow
def test_trackers_that_fail_are_reported_once_and_the_run_is_the_same(forks: Forks, short: Path, finished: Path) -> None:
    run = short.parent / "run"
    run.mkdir()
    (run / "stages").mkdir()
    (run / "trackers").write_text("a file where their folder should be")
    done = forks.run("run", short, "--dir", run, *BOTH)
    assert done.status == 0, done.said
    for kind in ("tensorboard", "wandb"):
        assert done.said.count(f"tracker {kind}: failed and is dropped (") == 1
    assert difference(content(finished), content(run)) == []
