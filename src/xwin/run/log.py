"""What a stage leaves while it works: events.jsonl and alarms.jsonl. Lines are only added; a resume takes back those it will write again."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from xwin.errors import CheckpointError
from xwin.run.events import Event, event_from_json
from xwin.run.guards import Alarm, alarm_from_json
from xwin.run.storage import storage_errors, write_atomic

Row = TypeVar("Row")


@dataclass(frozen=True)
class EventLog:
    """The events.jsonl of one stage.  Example: EventLog(Path("events.jsonl"), "sft").append(12, {"loss": 1.31, "lr": 2e-5})"""

    path: Path
    stage: str

    def append(self, step: int, values: Mapping[str, float], samples: Sequence[str] = ()) -> None:
        """Adds one event per value, in one write: a kill loses at most the end of the last line.

        Args:
            step: of all of them.
            values: name -> value.
            samples: the names of those that the values are about, when they must be known.

        Raises:
            StorageError: the disk is full, read-only, or permission is missing.
        """
        now = time.time()
        _append(self.path, [Event(now, self.stage, step, name, value, tuple(samples)).to_json() for name, value in values.items()])

    def rewind(self, step: int) -> None:
        """Takes back the events of steps after `step`, and a half-written last line. A missing file is an empty one.

        Raises:
            CheckpointError: a line that is not an event; names it.
            StorageError: the disk is full, read-only, or permission is missing; the file is as it was.
        """
        _rewind(self.path, lambda line: event_from_json(line).step <= step)

    def read(self) -> list[Event]:
        """The events in the order written, without a half-written last line.

        Raises:
            CheckpointError: a line that is not an event; names it.
        """
        return _parsed(self.path, event_from_json)


@dataclass(frozen=True)
class AlarmLog:
    """The alarms.jsonl of one stage."""

    path: Path

    def append(self, alarms: Sequence[Alarm]) -> None:
        """Adds a line per alarm, in one write.

        Raises:
            StorageError: the disk is full, read-only, or permission is missing.
        """
        _append(self.path, [json.dumps(alarm.to_json()) for alarm in alarms])

    def rewind(self, step: int) -> None:
        """Takes back the alarms of steps after `step`; see EventLog.rewind."""
        _rewind(self.path, lambda line: alarm_from_json(line).step <= step)

    def read(self) -> list[Alarm]:
        """The alarms in the order written; see EventLog.read."""
        return _parsed(self.path, alarm_from_json)


def _append(path: Path, lines: Sequence[str]) -> None:
    if not lines:
        return
    with storage_errors(path), path.open("ab") as out:
        out.write("".join(f"{line}\n" for line in lines).encode())


def _whole_lines(path: Path) -> list[str]:
    """The lines that end in a line feed; what follows the last one was cut off by a kill."""
    if not path.exists():
        return []
    return [line.decode(errors="replace") for line in path.read_bytes().split(b"\n")[:-1]]


def _parsed(path: Path, parse: Callable[[str], Row]) -> list[Row]:
    rows = []
    for number, line in enumerate(_whole_lines(path), 1):
        try:
            rows.append(parse(line))
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"not a line of this log: {line[:80]!r}", f"{path}:{number}", "delete the line") from error
    return rows


def _rewind(path: Path, keeps: Callable[[str], bool]) -> None:
    if not path.exists():
        return
    kept = "".join(f"{line}\n" for line, keep in zip(_whole_lines(path), _parsed(path, keeps), strict=True) if keep)
    if len(kept.encode()) != path.stat().st_size:
        write_atomic(path, kept)
