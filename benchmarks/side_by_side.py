"""The face of the benchmarks that stand beside a peer: each run in a process of its own, ours and theirs in turn (A B A B), medians printed.

A benchmark is a module with `measure(side, quick) -> Measured` and a `main()` that calls `main_of`. Its process calls itself with `--side`.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from xwin.run.manifest import hardware
from xwin.run.memory import peak

DATA = Path(os.environ.get("XWIN_TEST_DATA") or Path(__file__).parents[2] / "shared" / "data")
"""Real data, which is no part of the repository."""


@dataclass(frozen=True)
class Measured:
    """What one run says."""

    rate: float
    """Higher is better, in the unit of the benchmark."""
    peak_mb: float | None = None
    more: Mapping[str, Any] = field(default_factory=dict)
    """Whatever else is worth keeping: counts that must agree, losses, a second time."""
    rates: Mapping[str, float] = field(default_factory=dict)
    """Further rates, by name, higher is better: each is compared with the best peer's in it."""


def peak_mb() -> float:
    """The most memory this process has held, MB."""
    return peak() * 2**30 / 1e6


def main_of(name: str, unit: str, sides: Mapping[str, Callable[[bool], Measured]], packages: Sequence[str], rounds: int = 3) -> None:
    """The command line of a benchmark.

    Args:
        name: module in this folder.
        unit: of the rate.
        sides: "ours" first, then one or more forms of the peer; each measures itself. The fastest peer is the one that counts.
        packages: whose versions are stated.
        rounds: runs of each side.
    """
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else on stdout")
    parser.add_argument("--rounds", type=int, default=rounds, help="runs of each side")
    parser.add_argument("--quick", action="store_true", help="a small part of the work, once: to see that it runs")
    parser.add_argument("--side", choices=list(sides), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.side:
        print(json.dumps(asdict(sides[asked.side](asked.quick))))
        return
    runs: dict[str, list[Measured]] = {side: [] for side in sides}
    failed: dict[str, str] = {}
    for number in range(1 if asked.quick else asked.rounds):
        for side in [side for side in sides if side not in failed]:
            found = _apart(name, side, quick=asked.quick)
            if isinstance(found, Measured):
                runs[side].append(found)
                print(f"{name} {number + 1} {side}: {found.rate:.3g} {unit}, {found.peak_mb or 0:.0f} MB", file=sys.stderr)
            else:
                failed[side] = found
                print(f"{name} {number + 1} {side}: {found}", file=sys.stderr)
    ours, *peers = sides
    if ours in failed or not set(peers) - set(failed):
        sys.exit(1)
    result = _result(name, unit, {side: found for side, found in runs.items() if side not in failed}, packages)
    print(json.dumps({**result, **({"failed": failed} if failed else {})}, indent=None if asked.json else 2))


def _apart(name: str, side: str, *, quick: bool) -> Measured | str:
    """What the side measured in a process of its own; or how it ended, where it measured nothing: a peer may need more memory than there is."""
    command = [sys.executable, "-m", f"benchmarks.{name}", "--side", side, *(["--quick"] if quick else [])]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False, text=True)
    if done.returncode:
        return "killed, as the kernel does where memory is short" if done.returncode == -signal.SIGKILL else f"exit status {done.returncode}"
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def _result(name: str, unit: str, runs: Mapping[str, Sequence[Measured]], packages: Sequence[str]) -> dict[str, Any]:
    middle = {side: _median(unit, found) for side, found in runs.items()}
    ours, *peers = middle
    best = max(peers, key=lambda side: middle[side]["rate"])
    memory = [middle[side]["peak_mb"] for side in (ours, best)]
    return {
        "name": name,
        "date": datetime.now(UTC).date().isoformat(),
        "machine": hardware(),
        "versions": {package: metadata.version(package) for package in packages},
        "threads": int(os.environ.get("OMP_NUM_THREADS", 0)) or hardware()["cores"],
        "ours": middle[ours],
        "peer": {"name": best, **middle[best]},
        "ratio": middle[ours]["rate"] / middle[best]["rate"],
        "memory_ratio": memory[0] / memory[1] if None not in memory else None,
        "others": {side: middle[side] for side in peers if side != best},
        **_ratios(middle, ours, peers),
        "rounds": {side: [m.rate for m in found] for side, found in runs.items()},
    }


def _ratios(middle: Mapping[str, Mapping[str, Any]], ours: str, peers: Sequence[str]) -> dict[str, Any]:
    """Of the further rates, where there are any."""
    found = {name: rate / max(middle[peer]["rates"][name] for peer in peers) for name, rate in middle[ours].get("rates", {}).items()}
    return {"ratios": found} if found else {}


def _median(unit: str, found: Sequence[Measured]) -> dict[str, Any]:
    memory = [m.peak_mb for m in found if m.peak_mb is not None]
    return {
        "rate": statistics.median(m.rate for m in found),
        "unit": unit,
        "peak_mb": statistics.median(memory) if memory else None,
        **({"rates": {name: statistics.median(m.rates[name] for m in found) for name in found[0].rates}} if found[0].rates else {}),
        **found[-1].more,
    }
