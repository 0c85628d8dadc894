"""The estimates of a plan, as a table for people and as JSON: what each stage needs, how it was found out, and what to lower."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

from xwin.errors import ModelError
from xwin.recipe._amounts import Amounts
from xwin.recipe._machines import GIB, Machine
from xwin.recipe._planned import Estimate, estimate, tokens_a_second
from xwin.recipe.estimate import Memory
from xwin.recipe.plan import Plan, PlannedStage
from xwin.run.console import clock
from xwin.stages._work import Rows

PARTS = ("weights", "gradients", "optimizer", "activations", "logits", "cache", "process")

LATEST = 20
"""Steps of an earlier attempt whose speed is taken for this machine's."""


@dataclass(frozen=True)
class Needs:
    """What the stages of a plan need on a machine."""

    machine: Machine
    stages: Mapping[str, Estimate | ModelError]
    """By stage, in order, those that hold a network; an error says why nothing can be said of one."""
    took: Mapping[str, float]
    """Stage -> seconds, of those that are done."""
    measured: str = ""
    """Where the speed was measured, if it was."""

    def to_json(self) -> dict[str, Any]:
        """{stage: {"parameters", "trained", "memory_gib": {part: number}, "peak_gib", "fits", "seconds", "at_most", "advice"}, or {"unknown"}}"""
        return {name: _json(found) for name, found in self.stages.items()}

    def machine_json(self) -> dict[str, Any]:
        """{"name", "count", "memory_gib", "assumed"}"""
        return {"name": self.machine.name, "count": self.machine.count, "memory_gib": round(self.machine.memory / GIB, 1), "assumed": self._rates()}

    def notes(self) -> list[str]:
        """What a person should know beside the table: assumptions, what does not fit, what is not known."""
        each = " of each GPU" if self.machine.sharded else ""
        lines = [f"GiB: the peak{each}, less than the sum of the parts where a layer's gradients take the place of its activations."]
        lines.append(f"Time: {self._rates()}.")
        if any(isinstance(found, Estimate) and found.bound for found in self.stages.values()):
            lines.append("<: at most, since data are still to be made or answers may end early.")
        for name, found in self.stages.items():
            if isinstance(found, ModelError):
                lines.append(f"{name}: {found.where}: {found.what}" + (f"\n  {found.fix}" if found.fix else ""))
            elif found.advice:
                needed, there = found.memory.peak / GIB, self.machine.memory / GIB
                lines.append(f"{name} does not fit: it needs {needed:.1f} GiB of {there:.1f}\n  fix: {found.advice}")
        return lines

    def _rates(self) -> str:
        return self.measured or self.machine.note


def needs(plan: Plan, machine: Machine) -> Needs:
    """What every stage of a plan needs that holds a network."""
    amounts = Amounts(plan)
    measured, told = (machine, "") if machine.gpu else _calibrated(plan, machine, amounts)
    stages: dict[str, Estimate | ModelError] = {}
    took = {}
    for stage in plan.stages:
        try:
            found = estimate(plan, stage, measured, amounts)
        except ModelError as error:
            found = error
        if found is not None:
            stages[stage.name] = found
        record = stage.directory.find(stage.fingerprint)
        if stage.status == "skip" and record is not None and record.seconds is not None:
            took[stage.name] = record.seconds
    return Needs(measured, stages, took, told)


def needs_table(needed: Needs) -> tuple[str, list[str], list[list[str]]]:
    """Title, header and rows, as Console.table takes them."""
    header = ["stage", "parameters", "trained", "GiB", "time", "most of it"]
    rows = [_row(name, found, needed.took.get(name)) for name, found in needed.stages.items()]
    each = " each" if needed.machine.count > 1 else ""
    return f"Estimate for {needed.machine.name}, {needed.machine.memory / GIB:.1f} GiB{each}", header, rows


def _row(name: str, found: Estimate | ModelError, took: float | None) -> list[str]:
    done = f"took {clock(took)}" if took is not None else ""
    if isinstance(found, ModelError):
        return [name, "?", "?", "?", done or "?", "not known yet"]
    gib = f"{found.memory.peak / GIB:.1f}" + ("!" if found.advice else "")
    time = "?" if found.seconds is None else ("< " if found.bound else "") + duration(found.seconds)
    return [name, short(found.parameters), short(found.trained) if found.trained else "-", gib, done or time, _parts(found.memory)]


SMALL = 0.05
"""Parts of less than this share of the peak are left to --json."""


def _parts(memory: Memory) -> str:
    """The parts that matter, the largest first."""
    parts = sorted(((getattr(memory, part), part) for part in PARTS), reverse=True)
    return ", ".join(f"{part} {size / GIB:.1f}" for size, part in parts if size >= SMALL * memory.peak)


def short(count: float) -> str:
    """Example: 134515008 is "135M" """
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= unit:
            return f"{count / unit:.3g}{name}"
    return f"{count:.0f}"


def duration(seconds: float) -> str:
    """Example: 40 is "1 min", 5400 "90 min", 40000 "11 h", 400000 "4.6 days" """
    if seconds < 2 * 3600:
        return f"{max(1, round(seconds / 60))} min"
    return f"{seconds / 3600:.0f} h" if seconds < 2 * 86400 else f"{seconds / 86400:.1f} days"


def _json(found: Estimate | ModelError) -> dict[str, Any]:
    if isinstance(found, ModelError):
        return {"unknown": found.what, "where": found.where, "fix": found.fix}
    parts = {part: round(asdict(found.memory)[part] / GIB, 3) for part in PARTS}
    return {
        "parameters": found.parameters,
        "trained": found.trained,
        "memory_gib": parts,
        "peak_gib": round(found.memory.peak / GIB, 3),
        "fits": not found.advice,
        "advice": found.advice,
        "seconds": None if found.seconds is None else float(f"{found.seconds:.3g}"),
        "at_most": found.bound,
    }


def _calibrated(plan: Plan, machine: Machine, amounts: Amounts) -> tuple[Machine, str]:
    """The machine with the speed that training had in this run directory before, and where; as it is when there was none."""
    for stage in plan.stages:
        work = stage.spec.work()
        speed = _speed(stage) if work and isinstance(work[-1].data, Rows) else None
        expected = tokens_a_second(plan, stage, machine, amounts) if speed else None
        if speed and expected:
            told = f"as fast as '{stage.name}' was here before, {speed:.0f} tokens a second"
            return replace(machine, share=machine.share * speed / expected), told
    return machine, ""


def _speed(stage: PlannedStage) -> float | None:
    """Tokens a second of the last steps of a stage, of this attempt or a finished one."""
    if not stage.directory.events.is_file():
        return None
    values: list[float] = []
    for line in stage.directory.events.read_text(encoding="utf-8").splitlines():
        try:
            event = json.loads(line)
        except ValueError:  # the last line of a killed run may be cut
            continue
        if event.get("name") == "tokens_per_second" and isinstance(event.get("value"), float | int):
            values.append(float(event["value"]))
    return median(values[-LATEST:]) if values else None
