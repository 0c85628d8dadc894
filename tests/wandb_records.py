"""What Weights & Biases has written offline: records of its own protocol, in blocks as LevelDB's log has them."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

HEADER, BLOCK = 7, 1 << 15
WHOLE, LAST = 1, 4
"""Types of a piece that end a record."""


def records(path: Path) -> Iterator[Record]:
    """Every record of a .wandb file."""
    data, at, parts = path.read_bytes(), HEADER, b""  # the file has a header of the same size as a piece
    while at + HEADER <= len(data):
        if BLOCK - at % BLOCK < HEADER:
            at += BLOCK - at % BLOCK
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + HEADER])
        parts += data[at + HEADER : at + HEADER + size]
        at += HEADER + size
        if kind in {WHOLE, LAST}:
            record = Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def history(path: Path) -> list[dict[str, Any]]:
    """The numbers of every step."""
    rows = [r.history.item for r in records(path) if r.WhichOneof("record_type") == "history"]
    return [{item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in row} for row in rows]
