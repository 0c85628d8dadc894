"""The published files in shared/data/formats, which are not part of the repository: XWIN_TEST_DATA, else ../shared/data."""

import functools
import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from xwin.data.defects import Defect
from xwin.data.formats import Format, Item

DATA = Path(os.environ.get("XWIN_TEST_DATA") or Path(__file__).parents[3] / "shared" / "data") / "formats"


@functools.cache
def rows_of(name: str) -> list[Any]:
    """The rows of one of the files, read without the package. Not to be changed."""
    path = DATA / name
    if not path.exists():
        pytest.skip(f"needs {path}; set XWIN_TEST_DATA")
    if path.suffix == ".parquet":
        return pytest.importorskip("pyarrow.parquet").read_table(path).to_pylist()
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n") if line.strip()] if path.suffix == ".jsonl" else json.loads(text)


def converted(form: Format, rows: list[Any]) -> tuple[list[Item], Counter[Defect], int]:
    """All items, how many rows have each defect, and how many rows give nothing."""
    items: list[Item] = []
    defects: Counter[Defect] = Counter()
    empty = 0
    for row in rows:
        got = form.convert(row)
        items += got.items
        defects.update(flaw.defect for flaw in got.flaws)
        empty += not got.items
    return items, defects, empty


def texts(value: Any) -> Iterator[str]:
    """Every text in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from texts(inner)
