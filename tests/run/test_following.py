"""Trackers are told every step once, whatever happens to the run, and nothing that happens to them reaches it."""

import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from xwin.run.directory import RunDirectory, StageDirectory, StageRecord
from xwin.run.following import Follower
from xwin.run.log import EventLog
from xwin.run.trackers import Sink, Subject


@dataclass
class Wall:
    """A tracker that remembers what it was told; "sink.step" of a stage at which it fails or hangs may be set."""

    told: list[tuple[str, int, Mapping[str, float]]] = field(default_factory=list)
    opened: list[str] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)
    fails_at: int = -1
    hangs_at: int = -1
    released: threading.Event = field(default_factory=threading.Event)

    def open(self, subject: Subject) -> Sink:
        self.opened.append(subject.name)
        return Brush(self, subject.name)


@dataclass
class Brush:
    wall: Wall
    name: str

    def tell(self, step: int, time: float, values: Mapping[str, float]) -> None:
        if step == self.wall.fails_at:
            raise ConnectionError("the server\nis away")
        if step == self.wall.hangs_at:
            self.wall.released.wait(60)
        self.wall.told.append((self.name, step, dict(values)))

    def close(self) -> None:
        self.wall.closed.append(self.name)


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path / "run")


@pytest.fixture
def wall() -> Iterator[Wall]:
    made = Wall()
    yield made
    made.released.set()


def begin(run: RunDirectory, name: str = "sft", fingerprint: str = "a" * 64) -> StageDirectory:
    stage = run.stage(name, {})
    stage.begin(StageRecord(name, "sft", fingerprint, "running", {}, {"lr": 1e-5}, started=0.0))
    return stage


def log(stage: StageDirectory, *steps: int) -> EventLog:
    events = EventLog(stage.events, stage.name)
    for step in steps:
        events.append(step, {"loss": 1.0 / (step + 1), "lr": 2e-5})
    return events


def follow(run: RunDirectory, wall: Wall, *stages: str, patience: float = 20.0) -> tuple[Follower, list[str]]:
    said: list[str] = []
    follower = Follower("wall", wall.open, run, stages or ("sft",), said.append, every=0.01, patience=patience)
    follower.start()
    return follower, said


def attempt(run: RunDirectory, wall: Wall, *stages: str) -> list[str]:
    """Follows what is there, to the end."""
    follower, said = follow(run, wall, *stages)
    follower.finish()
    return said


def steps(wall: Wall, name: str = "sft-aaaaaaaa") -> list[int]:
    return [step for told, step, _ in wall.told if told == name]


def wait_for(what: object, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not what():  # type: ignore[operator]
        assert time.monotonic() < end, "it never came"
        time.sleep(0.005)


def test_every_step_is_told_with_all_its_numbers_while_the_run_works(run: RunDirectory, wall: Wall) -> None:
    stage = begin(run)
    follower, said = follow(run, wall)
    for step in range(5):
        log(stage, step)
        wait_for(lambda step=step: steps(wall) == list(range(step)))  # the last one may not be complete
    follower.finish()
    assert steps(wall) == [0, 1, 2, 3, 4]
    assert wall.told[3] == ("sft-aaaaaaaa", 3, {"loss": 0.25, "lr": 2e-5})
    assert (wall.opened, wall.closed, said) == (["sft-aaaaaaaa"], ["sft-aaaaaaaa"], [])


def test_a_resumed_run_tells_no_step_twice_and_leaves_none_out(run: RunDirectory, wall: Wall) -> None:
    stage = begin(run)
    log(stage, 0, 1, 2, 3)
    attempt(run, wall)
    log(stage).rewind(1)  # the last checkpoint was after step 1
    log(stage, 2, 3, 4)
    attempt(run, wall)
    log(stage).rewind(4)
    log(stage, 5)
    attempt(run, wall)
    assert steps(wall) == [0, 1, 2, 3, 4, 5]


def test_a_rollback_while_it_looks_tells_no_step_twice(run: RunDirectory, wall: Wall) -> None:
    stage = begin(run)
    follower, _ = follow(run, wall)
    events = log(stage, 0, 1, 2, 3)
    wait_for(lambda: steps(wall) == [0, 1, 2])
    events.rewind(0)
    log(stage, 1, 2, 3, 4, 5)
    follower.finish()
    assert steps(wall) == [0, 1, 2, 3, 4, 5]


def test_a_step_that_is_half_written_is_told_whole(run: RunDirectory, wall: Wall) -> None:
    stage = begin(run)
    whole = log(stage, 0, 1).path.read_bytes()
    follower, _ = follow(run, wall)
    for length in range(len(whole) // 2, len(whole), 5):
        stage.events.write_bytes(whole[:length])
        time.sleep(0.002)
    stage.events.write_bytes(whole)
    follower.finish()
    assert [values for _, _, values in wall.told] == [{"loss": 1.0, "lr": 2e-5}, {"loss": 0.5, "lr": 2e-5}]


def test_stages_are_told_in_their_order_each_with_a_sink_of_its_own(run: RunDirectory, wall: Wall) -> None:
    for name in ("sft", "ppo"):
        stage = begin(run, name)
        log(stage, 0, 1)
        stage.publish({}, seconds=1.0)
    attempt(run, wall, "sft", "ppo")
    assert wall.opened == wall.closed == ["sft-aaaaaaaa", "ppo-aaaaaaaa"]
    assert [(name, step) for name, step, _ in wall.told] == [("sft-aaaaaaaa", 0), ("sft-aaaaaaaa", 1), ("ppo-aaaaaaaa", 0), ("ppo-aaaaaaaa", 1)]


def test_a_published_stage_is_told_to_its_end_at_once(run: RunDirectory, wall: Wall) -> None:
    stage = begin(run)
    log(stage, 0, 1)
    follower, _ = follow(run, wall)
    wait_for(lambda: steps(wall) == [0])
    stage.publish({}, seconds=1.0)
    wait_for(lambda: steps(wall) == [0, 1])
    follower.finish()


def test_a_stage_with_other_settings_is_another_curve(run: RunDirectory, wall: Wall) -> None:
    log(begin(run), 0, 1, 2)
    attempt(run, wall)
    log(begin(run, fingerprint="b" * 64), 0, 1)
    attempt(run, wall)
    assert steps(wall) == [0, 1, 2]
    assert steps(wall, "sft-bbbbbbbb") == [0, 1]


def test_one_that_fails_is_reported_once_and_dropped(run: RunDirectory, wall: Wall) -> None:
    wall.fails_at = 1
    stage = begin(run)
    follower, said = follow(run, wall)
    log(stage, 0, 1, 2, 3)
    follower.finish()
    assert said == ["tracker wall: failed and is dropped (ConnectionError: the server); the run goes on, events.jsonl has every number"]
    assert steps(wall) == [0]
    assert wall.closed == ["sft-aaaaaaaa"]


def test_one_that_hangs_is_left_behind(run: RunDirectory, wall: Wall) -> None:
    wall.hangs_at = 1
    log(begin(run), 0, 1, 2)
    follower, said = follow(run, wall, patience=0.2)
    follower.finish()
    assert said == ["tracker wall: not finished within 0.2 s, and left behind; events.jsonl has every number"]


def test_one_that_cannot_write_its_notes_is_dropped(run: RunDirectory, wall: Wall) -> None:
    log(begin(run), 0)
    (run.path / "trackers").write_text("a file in its place")
    (said,) = attempt(run, wall)
    assert "tracker wall: failed and is dropped (" in said
    assert wall.told == []


def test_spoiled_notes_drop_the_tracker_and_not_the_run(run: RunDirectory, wall: Wall) -> None:
    log(begin(run), 0)
    (run.path / "trackers" / "wall").mkdir(parents=True)
    (run.path / "trackers" / "wall" / "told.json").write_text("{")
    (said,) = attempt(run, wall)
    assert "tracker wall: failed and is dropped (JSONDecodeError" in said
