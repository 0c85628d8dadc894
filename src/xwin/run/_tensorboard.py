"""The TensorBoard sink: event files in the format that TensorBoard reads, written by its own package, flushed after every step."""

from __future__ import annotations

import time
from collections.abc import Mapping

from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue] - made when it is imported
from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.summary.writer.record_writer import RecordWriter

from xwin.run.trackers import Subject

FORMAT = "brain.Event:2"
"""What the first record of an event file says."""


class TensorboardSink:
    """See trackers.Sink. Each attempt at a stage has a file of its own; TensorBoard joins them in the order of their names."""

    def __init__(self, subject: Subject) -> None:
        folder = subject.folder / subject.name
        folder.mkdir(exist_ok=True)
        number = len(list(folder.glob("events.out.tfevents.*")))
        self._file = (folder / f"events.out.tfevents.{number:06d}").open("xb")
        self._writer = RecordWriter(self._file)
        self._write(Event(wall_time=time.time(), file_version=FORMAT))

    def tell(self, step: int, time: float, values: Mapping[str, float]) -> None:
        """See Sink."""
        summary = Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()])
        self._write(Event(wall_time=time, step=step, summary=summary))

    def close(self) -> None:
        """See Sink."""
        self._file.close()

    def _write(self, event: Event) -> None:
        self._writer.write(event.SerializeToString())
        self._file.flush()
