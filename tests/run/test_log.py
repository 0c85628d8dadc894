"""events.jsonl and alarms.jsonl: appended, cut by kills, taken back by a resume."""

import math
import os
import signal
from pathlib import Path

import pytest

from xwin.errors import CheckpointError, StorageError
from xwin.run.guards import Alarm
from xwin.run.log import AlarmLog, EventLog


def said(log: EventLog) -> list[tuple[int, str, float]]:
    return [(event.step, event.name, event.value) for event in log.read()]


@pytest.fixture
def log(tmp_path: Path) -> EventLog:
    log = EventLog(tmp_path / "events.jsonl", "sft")
    for step in (1, 2, 3):
        log.append(step, {"loss": 1.0 / step, "lr": 2e-5})
    return log


def test_what_is_appended_is_read_in_order(log: EventLog) -> None:
    assert said(log) == [(1, "loss", 1.0), (1, "lr", 2e-5), (2, "loss", 0.5), (2, "lr", 2e-5), (3, "loss", 1 / 3), (3, "lr", 2e-5)]
    assert {event.stage for event in log.read()} == {"sft"}


def test_numbers_that_are_not_finite_come_back(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl", "sft")
    log.append(1, {"loss": math.nan, "kl": math.inf, "reward": -math.inf})
    assert [str(event.value) for event in log.read()] == ["nan", "inf", "-inf"]


def test_rewind_takes_back_later_steps_and_keeps_the_rest_byte_for_byte(log: EventLog) -> None:
    lines = log.path.read_bytes().splitlines(keepends=True)
    log.rewind(2)
    assert log.path.read_bytes() == b"".join(lines[:4])
    log.rewind(2)
    assert log.path.read_bytes() == b"".join(lines[:4])
    log.rewind(0)
    assert log.path.read_bytes() == b""


def test_a_log_cut_at_any_byte_can_be_read_rewound_and_continued(log: EventLog) -> None:
    whole = log.path.read_bytes()
    for length in range(0, len(whole), 7):
        log.path.write_bytes(whole[:length])
        assert len(log.read()) == whole[:length].count(b"\n")
        log.rewind(2)
        log.append(3, {"loss": 9.0})
        assert said(log)[-1] == (3, "loss", 9.0)
        assert all(event.step <= 2 for event in log.read()[:-1])


def test_a_missing_log_is_an_empty_one(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl", "sft")
    log.rewind(4)
    log.append(1, {})
    assert log.read() == []
    assert not log.path.exists()


@pytest.mark.parametrize("line", ["garbage", "[1]", '{"step": 1}', "\x00\x00"])
def test_a_spoiled_line_is_named(log: EventLog, line: str) -> None:
    lines = log.path.read_text().splitlines()
    log.path.write_text("\n".join([*lines[:2], line, *lines[2:]]) + "\n")
    for use in (log.read, lambda: log.rewind(1)):
        with pytest.raises(CheckpointError, match=r"events\.jsonl:3"):
            use()


def test_a_log_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    full = EventLog(Path("/dev/full"), "sft")
    with pytest.raises(StorageError, match=r"(?s)/dev/full.*No space left.*fix: free some space"):
        full.append(1, {"loss": 1.0})


def test_a_killed_writer_loses_at_most_the_last_line(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl", "sft")
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        step = 0
        while True:
            step += 1
            log.append(step, {"loss": 1.0, "lr": 2.0})
            os.write(writer, f"{step}\n".encode())
    os.close(writer)
    with os.fdopen(reader) as lines:
        for _ in range(200):
            lines.readline()
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        reported = max(200, *(int(line) for line in lines), 0)
    found = said(log)
    assert [step for step, name, _ in found if name == "lr"][:reported] == list(range(1, reported + 1))


def test_alarms_come_back_and_are_taken_back(tmp_path: Path) -> None:
    log = AlarmLog(tmp_path / "alarms.jsonl")
    alarms = [Alarm(2, "kl", 31.5, 25.0, "warn"), Alarm(5, "loss", math.inf, -math.inf, "stop")]
    log.append(alarms[:1])
    log.append([])
    log.append(alarms[1:])
    assert log.read() == alarms
    log.rewind(4)
    assert log.read() == alarms[:1]
    assert log.path.read_text() == '{"step": 2, "metric": "kl", "value": 31.5, "threshold": 25.0, "action": "warn", "steps": 1, "why": ""}\n'
