"""Trackers beside a real run: they get every step once, through kills and resumes, and cannot change or end the run."""

import json
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb_records import history

from .chain import content, difference
from .forks import Forks

LAST_BEFORE_KILL = 8
"""The kill comes when step 5 is in the log; what the service of Weights & Biases had not written then may be missing, and nothing later."""
BOTH = ("--set", "trackers=[{kind: tensorboard}, {kind: wandb}]")


def curves(run: Path) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Stage -> metric -> (step, value), as events.jsonl has them."""
    found: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for line in (run / "events.jsonl").read_text().splitlines():
        row = json.loads(line)
        found.setdefault(row["stage"], {}).setdefault(row["name"], []).append((row["step"], row["value"]))
    return found


def wandb_losses(run: Path, stage: str, needed: set[int]) -> list[tuple[int, float]]:
    """Step and loss as Weights & Biases wrote them. Its service outlives the run for a moment, so steps that must come are waited for."""
    end = time.monotonic() + 20
    while True:
        files = sorted((run / "trackers" / "wandb").glob(f"wandb/offline-run-*/*-{stage}-*.wandb"))
        found = [(row["_step"], round(row["loss"], 4)) for path in files for row in history(path)]
        if needed <= {step for step, _ in found}:
            return found
        assert time.monotonic() < end, f"missing: {sorted(needed - {step for step, _ in found})}"
        time.sleep(0.05)


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
    for stage, metrics in curves(run).items():
        expected = {step: round(value, 4) for step, value in metrics["loss"]}
        (folder,) = (run / "trackers" / "tensorboard").glob(f"{stage}-*")
        read = [(event.step, round(event.value, 4)) for event in EventAccumulator(str(folder)).Reload().Scalars("loss")]
        assert read == sorted(set(read)) and set(read) <= expected.items()
        assert len(expected) - len(read) <= 1  # the one that was being told when the kill came
        told = wandb_losses(run, stage, {step for step in expected if step > LAST_BEFORE_KILL})
        assert max(Counter(step for step, _ in told).values()) == 1
        assert set(told) <= expected.items()
    ours, theirs = (
        {k: v for k, v in content(path).items() if not k.endswith("manifest.json") and not k.startswith("last checkpoint")}
        for path in (finished, run)
    )
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
