"""What a person sees while a run works: rich on a terminal, plain lines everywhere else."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol, TextIO

from rich.cells import cell_len
from rich.console import Console as Rich
from rich.markup import escape
from rich.progress import BarColumn, SpinnerColumn, TaskID, TextColumn
from rich.progress import Progress as Bars
from rich.table import Column, Table
from rich.text import Text

from xwin.run.secrets import hidden

LINES = 50
"""About how many lines a stage may print where there is no terminal."""


class Console:
    """Everything `xwin run` says to a person.

    Args:
        json: stdout is for a program, so people are told on stderr.
        stream: where to write; stdout, or stderr with `json`.
    """

    def __init__(self, *, json: bool = False, stream: TextIO | None = None) -> None:
        self._stream = stream or (sys.stderr if json else sys.stdout)
        self._rich = Rich(file=self._stream, highlight=False, markup=False, emoji=False, soft_wrap=False)
        self._gone = False

    @property
    def terminal(self) -> bool:
        """Whether there is somebody who sees colours and bars."""
        return self._rich.is_terminal

    def stage(self, name: str, kind: str, text: str) -> None:
        """A stage begins.  Example: stage("sft2", "sft", "80 steps from base") prints "sft2  (sft) 80 steps from base" """
        self._line(Text.assemble((name, "bold cyan"), "  ", (f"({kind}) ", "cyan"), text))

    def skipped(self, name: str, reason: str) -> None:
        """A stage is not run.  Example: "sft  skipped: nothing changed" """
        self._line(Text.assemble((name, "bold"), (f"  skipped: {reason}", "dim")))

    def finished(self, name: str, seconds: float, metrics: Mapping[str, float]) -> None:
        """A stage is done.  Example: "sft  done in 0:02:31  validation_loss 1.23" """
        said = "".join(f"  {key} {number(value)}" for key, value in metrics.items())
        self._line(Text.assemble((name, "bold green"), f"  done in {clock(seconds)}", (said, "dim")))

    def message(self, text: str) -> None:
        """Any other text, as it is but for secrets."""
        self._line(Text(hidden(text)))

    def table(self, title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table; columns of numbers stand on the right.

        Args:
            title: a line above it; may be empty.
            header: one name per column.
            rows: as many cells each.
        """
        right = [_numeric([row[i] for row in rows]) for i in range(len(header))]
        if not self.terminal:
            self._print("\n".join(_plain_table(title, header, rows, right)))
            return
        table = Table(title=Text(title) if title else None, title_justify="left", title_style="bold", header_style="bold")
        for name, on_right in zip(header, right, strict=True):
            table.add_column(Text(name), justify="right" if on_right else "left", overflow="fold")
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        self._rich.print(table)

    @contextmanager
    def progress(self, stage: str, total: int, unit: str, done: int = 0) -> Iterator[Progress]:
        """Shows how far a stage is: a bar on a terminal, else a line for some of the steps, the first and the last among them.

        Args:
            stage: its name.
            total: units of work altogether.
            unit: what is counted: "step", "answer" ...
            done: units done before, after a resume.
        """
        if self.terminal:
            with self._bars(stage, f"{total}/{total} {unit}") as bars:
                task = bars.add_task(escape(stage), total=total, completed=done, counter=f"{done}/{total} {unit}", said="")
                yield _Bar(Pace(total, done), unit, bars, task)
            return
        lines = _Lines(Pace(total, done), stage, unit, self._print)
        try:
            yield lines
        finally:
            lines.close()

    def _bars(self, stage: str, counter: str) -> Bars:
        """On a narrow terminal the bar gets short and the values are cut; stage and counter stay whole."""
        fixed = [Column(no_wrap=True, min_width=cell_len(text)) for text in (stage, counter)]
        return Bars(
            SpinnerColumn("dots" if "utf" in self._rich.encoding else "line"),
            TextColumn("[bold cyan]{task.description}", table_column=fixed[0]),
            BarColumn(bar_width=24 if self._rich.width >= 110 else 8),  # noqa: PLR2004 - columns
            TextColumn("{task.fields[counter]}", table_column=fixed[1]),
            TextColumn("[dim]{task.fields[said]}", table_column=Column(no_wrap=True, overflow="ellipsis")),
            console=self._rich,
            transient=True,
        )

    def _line(self, text: Text) -> None:
        if self.terminal:
            self._rich.print(text)
        else:
            self._print(text.plain)

    def _print(self, text: str) -> None:
        """One write; a reader who left (`| head`) must not end a run that works for hours."""
        if self._gone:
            return
        encoding = self._stream.encoding or "utf-8"
        try:
            self._stream.write(text.encode(encoding, "replace").decode(encoding) + "\n")
            self._stream.flush()
        except BrokenPipeError:
            self._gone = True


class Progress(Protocol):
    """How far a stage is; given by `Console.progress`."""

    def advance(self, n: int = 1, *, tokens: int = 0, **values: float) -> None:
        """Units that were just done.

        Args:
            n: how many.
            tokens: processed for them; shown as tokens a second.
            values: shown until the next call, such as loss=1.31.
        """
        ...


@dataclass
class Pace:
    """Counts units and tokens against the clock, from where this process began."""

    total: int
    done: int
    now: Callable[[], float] = time.monotonic
    tokens: int = 0
    begun: int = field(init=False)
    started: float = field(init=False)

    def __post_init__(self) -> None:
        self.begun, self.started = self.done, self.now()

    def add(self, n: int, tokens: int) -> None:
        """Units and tokens that were just done."""
        self.done += n
        self.tokens += tokens

    def rate(self) -> str:
        """Tokens a second and time left, as far as known.  Example: "350 tok/s  eta 0:02:10" """
        spent, units = self.now() - self.started, self.done - self.begun
        parts = []
        if self.tokens and spent > 0:
            parts.append(f"{self.tokens / spent:.0f} tok/s")
        if units > 0 and self.done < self.total:
            parts.append(f"eta {clock(spent / units * (self.total - self.done))}")
        return "  ".join(parts)


@dataclass
class _Bar:
    pace: Pace
    unit: str
    bars: Bars
    task: TaskID

    def advance(self, n: int = 1, *, tokens: int = 0, **values: float) -> None:
        self.pace.add(n, tokens)
        said = "  ".join([self.pace.rate(), *(f"{name} {number(value)}" for name, value in values.items())])
        counter = f"{self.pace.done}/{self.pace.total} {self.unit}"
        self.bars.update(self.task, completed=self.pace.done, counter=counter, said=escape(said))


@dataclass
class _Lines:
    pace: Pace
    stage: str
    unit: str
    write: Callable[[str], None]
    said: int = -1
    """The share of the work, in LINES parts, at which a line was last printed."""
    waiting: str = ""
    """The line of the last call, if it was not printed."""

    def advance(self, n: int = 1, *, tokens: int = 0, **values: float) -> None:
        self.pace.add(n, tokens)
        said = [f"{self.unit} {self.pace.done}/{self.pace.total}", *(f"{name} {number(value)}" for name, value in values.items()), self.pace.rate()]
        self.waiting = "  ".join([self.stage, *(part for part in said if part)])
        share = self.pace.done * (LINES - 2) // max(self.pace.total, 1)
        if self.said < 0 or share > self.said or self.pace.done >= self.pace.total:
            self.said = share
            self.close()

    def close(self) -> None:
        """Prints the last line if it was held back, so that the end is always seen."""
        if self.waiting:
            self.write(self.waiting)
            self.waiting = ""


def number(value: float) -> str:
    """Four significant digits, without an exponent where a person would write none.  Example: 1.234, 0.0123, 24310, 2e-05"""
    return f"{value:.0f}" if 1e4 <= abs(value) < 1e9 else f"{value:.4g}"


def clock(seconds: float) -> str:
    """Hours, minutes, seconds.  Example: clock(131) is "0:02:11" """
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def _numeric(cells: Sequence[str]) -> bool:
    """Whether every cell that says something begins with a number and is no sentence."""
    said = [cell.strip() for cell in cells if cell.strip(" -–")]
    return bool(said) and all(re.match(r"[-+±<>≤≥~. ]*\d", cell) and len(re.findall(r"[A-Za-z]{2,}", cell)) <= 1 for cell in said)


def _plain_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[bool]) -> list[str]:
    widths = [max(len(cell) for cell in column) for column in zip(header, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = [cell.rjust(w) if r else cell.ljust(w) for cell, w, r in zip(cells, widths, right, strict=True)]
        return "  ".join(padded).rstrip()

    rule = "  ".join("-" * width for width in widths)
    return [*([title] if title else []), line(header), rule, *(line(row) for row in rows)]
