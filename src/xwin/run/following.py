"""Trackers are told what events.jsonl says, by a thread of their own each: one that fails, hangs or is slow cannot touch the run.

A step is told once. What was told is remembered in `trackers/<kind>/told.json` before it is told, so that a kill at any moment leaves no step
told twice, and at most one untold. Steps that a resume or a rollback takes back and makes again are not told again: events.jsonl is the truth.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from uuid import uuid4

from xwin.run.directory import RunDirectory, StageDirectory, StageRecord
from xwin.run.events import Event, event_from_json
from xwin.run.trackers import Sink, Subject, Tensorboard, Wandb

EVERY = 1.0
"""Seconds between looks at the events."""
PATIENCE = 30.0
"""Seconds that a tracker may take to finish at the end of a run."""

Say = Callable[[str], None]


@contextmanager
def following(trackers: Sequence[Tensorboard | Wandb], run: RunDirectory, stages: Sequence[str], say: Say) -> Iterator[None]:
    """Tells the trackers what the stages do, until the end of the block, however it ends.

    Args:
        trackers: may be none.
        run: locked by this process.
        stages: names, in the order in which they run.
        say: told once of each tracker that failed.
    """
    followers = [Follower(tracker.kind, tracker.open, run, stages, say) for tracker in trackers]
    for follower in followers:
        follower.start()
    try:
        yield
    finally:
        for follower in followers:
            follower.finish()


@dataclass
class _Reading:
    """How far the events of a stage have been read."""

    directory: StageDirectory
    offset: int = 0
    node: int = -1
    waiting: list[Event] = field(default_factory=list)
    """Of the last step read: more of it may come."""

    def fresh(self) -> list[Event]:
        """Whole lines that are new; all of them again when the file was written anew."""
        try:
            with self.directory.events.open("rb") as file:
                state = os.fstat(file.fileno())
                if state.st_ino != self.node or state.st_size < self.offset:
                    self.node, self.offset, self.waiting = state.st_ino, 0, []
                file.seek(self.offset)
                data = file.read()
        except FileNotFoundError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self.offset += len(whole)
        return [event_from_json(line) for line in whole.decode().splitlines()]


class Follower:
    """One tracker, its thread, and how far it was told.

    Args:
        kind: name of the tracker, and of its folder.
        open: makes the sink of a stage.
        run: whose events are followed.
        stages: names, in order.
        say: told when the tracker fails.
        every: seconds between looks.
        patience: seconds that it may take to finish.
    """

    def __init__(  # noqa: PLR0913 - the last two are for impatient tests
        self,
        kind: str,
        open: Callable[[Subject], Sink],
        run: RunDirectory,
        stages: Sequence[str],
        say: Say,
        *,
        every: float = EVERY,
        patience: float = PATIENCE,
    ) -> None:
        self.kind, self._open, self._say, self._every, self._patience = kind, open, say, every, patience
        self._run, self._folder = run, run.path / "trackers" / kind
        self._readings = [_Reading(run.stage(name, {})) for name in stages]
        self._told: dict[str, int] = {}
        self._identity = ""
        self._sink: Sink | None = None
        self._subject: Subject | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, name=f"tracker {kind}", daemon=True)

    def start(self) -> None:
        """Begins to follow."""
        self._thread.start()

    def finish(self) -> None:
        """Tells what is left, and waits for it as long as patience lasts."""
        self._over.set()
        self._thread.join(self._patience)
        if self._thread.is_alive():
            self._say(f"tracker {self.kind}: not finished within {self._patience:g} s, and left behind; events.jsonl has every number")

    def _follow(self) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._remember()
            while not self._over.wait(self._every):
                self._look()
            self._look(last=True)
            self._close()
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a tracker may raise anything, and nothing of it may end a run
            said = (str(error).splitlines() or [""])[0]
            self._say(f"tracker {self.kind}: failed and is dropped ({type(error).__name__}: {said}); the run goes on, events.jsonl has every number")
            with suppress(Exception):
                self._close()

    def _look(self, *, last: bool = False) -> None:
        """Tells every step that is complete: one after which another has begun, or the last one of all."""
        for reading in self._readings:
            record = reading.directory.record()
            if record is None:
                continue
            fresh = reading.fresh()
            steps = [list(rows) for _, rows in groupby(reading.waiting + fresh, key=lambda event: event.step)]
            over = last or record.status == "published"  # as it was before the events were read
            reading.waiting = [] if over or not steps else steps.pop()
            for rows in steps:
                self._tell(record, rows)

    def _tell(self, record: StageRecord, rows: Sequence[Event]) -> None:
        subject = Subject(self._folder, self._run.path.name, self._identity, record.stage, record.fingerprint[:8], record.settings)
        if rows[0].step <= self._told.get(subject.name, -1):
            return
        if self._subject is None or self._subject.name != subject.name:
            self._close()
            self._sink, self._subject = self._open(subject), subject
        self._told[subject.name] = rows[0].step
        self._note()
        assert self._sink is not None
        self._sink.tell(rows[0].step, rows[-1].time, {row.name: row.value for row in rows})

    def _close(self) -> None:
        sink, self._sink, self._subject = self._sink, None, None
        if sink is not None:
            sink.close()

    @property
    def _notes(self) -> Path:
        return self._folder / "told.json"

    def _remember(self) -> None:
        """What was told before, and who this run is."""
        found: Mapping[str, object] = json.loads(self._notes.read_text(encoding="utf-8")) if self._notes.exists() else {}
        told = found.get("told")
        self._told = dict(told) if isinstance(told, dict) else {}
        self._identity = str(found.get("identity") or uuid4().hex[:12])

    def _note(self) -> None:
        """Replaced as a whole, but not forced to the disk for every step: a kill loses nothing of it."""
        draft = self._notes.with_suffix(".tmp")
        draft.write_text(json.dumps({"identity": self._identity, "told": self._told}), encoding="utf-8")
        draft.replace(self._notes)
