"""Heard: what the workers print, told once, with their rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Heard:
    """Reads the files that workers print to, from where it stopped reading.

    Args:
        files: of each worker, by rank. What they hold already is of an earlier group and is not told again.
    """

    files: Sequence[Path]
    _at: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self._at = [file.stat().st_size if file.exists() else 0 for file in self.files]

    def fresh(self) -> list[str]:
        """The whole lines that are new; one that several print alike comes once.  Example: ["workers 0, 1: hello", "worker 1: out of luck"]"""
        said: dict[str, list[int]] = {}
        for rank in range(len(self.files)):
            for line in dict.fromkeys(self._lines(rank)):
                said.setdefault(line, []).append(rank)
        return [f"worker{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}: {line}" for line, ranks in said.items()]

    def _lines(self, rank: int) -> list[str]:
        try:
            with self.files[rank].open("rb") as file:
                file.seek(self._at[rank])
                data = file.read()
        except FileNotFoundError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._at[rank] += len(whole)
        return [line for line in whole.decode(errors="replace").splitlines() if line.strip()]
