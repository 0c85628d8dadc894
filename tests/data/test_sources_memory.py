"""Memory stays flat however large the file is: peak resident memory of a fresh process that indexes, shuffles and reads."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

MIB = 1 << 20
TOOK = 20_000
"""Rows read from the start, and after a seek."""
TEXT = "The quick brown fox jumps over the lazy dog, and then it sleeps. " * 4

WORK = """
import sys
from pathlib import Path
import tokenizers  # what rendering needs, and no torch
from xwin.data.sources import Mixture, open_conversations, window

path, cache, took = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
rows = open_conversations(path, cache=cache)  # index, digest, a check of every row
steps = {"first": [rows[i].id for i in (0, len(rows) // 2, len(rows) - 1)]}
for begin in (0, len(rows) - took // 2):  # the second crosses into the next epoch
    for start in range(begin, begin + took, took // 4):
        batch = window(rows, 17, start, took // 4)
        assert len({row.id for row in batch}) > took // 8
assert len(Mixture((rows, rows), (0.5, 1.0)).window(17, len(rows), took // 4)) == took // 4
assert "torch" not in sys.modules
if len(sys.argv) > 4:  # rendering and packing, which bring torch
    from xwin.data.batch import pack
    from xwin.data.template import load_template, samples

    template = load_template(Path(sys.argv[4]), "vicuna")
    for begin in (0, len(rows) - took // 2):
        for start in range(begin, begin + took, 500):
            batch = window(rows, 17, start, 500)
            packs = pack(list(samples(template, batch)), tokens=16384)
            assert sum(len(b.samples()) for b in packs) == 500
print(len(rows), *steps["first"])
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""


def generate(path: Path, size: int) -> int:
    """Writes about `size` bytes of conversations with ids; the number of rows."""
    rows = 0
    with path.open("w", encoding="utf-8") as out:
        while out.tell() < size:
            lines = []
            for i in range(rows, rows + 500):
                turns = [{"role": "user", "content": f"{i} {TEXT * (1 + i % 7)}"}, {"role": "assistant", "content": TEXT * (1 + i % 13)}]
                lines.append(json.dumps({"id": f"row-{i}", "messages": turns}) + "\n")
            out.writelines(lines)
            rows += 500
    return rows


def peak(path: Path, cache: Path, rows: int, took: int, *model: Path) -> int:
    """Bytes; with the folder of a model, rendering and packing included.

    VmHWM and not ru_maxrss, which a child takes over from the process that starts it."""
    done = subprocess.run([sys.executable, "-c", WORK, path, cache, str(took), *model], capture_output=True, text=True, check=True)
    told, peak_kib = done.stdout.splitlines()
    assert told == f"{rows} row-0 row-{rows // 2} row-{rows - 1}"
    return int(peak_kib) << 10


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize(
    ("size", "ceiling"),
    [(100 * MIB, 160 * MIB), pytest.param(3072 * MIB, 1536 * MIB, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])],
    ids=["100MB", "3GB"],
)
def test_reading_by_index_takes_memory_for_offsets_and_not_for_rows(size: int, ceiling: int, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = generate(path, size)
    try:
        assert peak(path, tmp_path / "cache", rows, TOOK) < ceiling
    finally:
        path.unlink()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize(
    ("size", "took", "ceiling"),
    [(20 * MIB, 1000, 700 * MIB), pytest.param(3072 * MIB, TOOK, 1536 * MIB, marks=[pytest.mark.slow, pytest.mark.timeout(3000)])],
    ids=["20MB", "3GB"],
)
def test_rendering_and_packing_take_memory_for_what_is_packed_and_not_for_the_file(
    size: int, took: int, ceiling: int, tmp_path: Path, tiny_folder: Path
) -> None:
    """A byte tokenizer: some 1,600 tokens a row. torch alone takes about 300 MiB of the ceiling."""
    path = tmp_path / "rows.jsonl"
    rows = generate(path, size)
    try:
        assert peak(path, tmp_path / "cache", rows, took, tiny_folder) < ceiling
    finally:
        path.unlink()
