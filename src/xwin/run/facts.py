"""What a run directory says, as plain frozen values. Reads files only, at any time: while a run writes, after a crash, of an empty run.

Whatever is missing is absent from the values; whatever cannot be read is left out and named in `RunFacts.remarks`. Nothing is hidden and
nothing raises but a path that is no run directory.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from xwin.errors import UserError
from xwin.run.cards import DataCard, PromptCard, RewardCard, read_card
from xwin.run.events import Event

Json = Any
T = TypeVar("T")

MARKS = ("manifest.json", "recipe.resolved.json", "recipe.yaml", "events.jsonl", "stages", ".lock")
"""A folder that holds one of these is a run directory."""

SHARES = frozenset({"accuracy", "rm_accuracy", "longer_wins", "win_rate", "judged", "mt_bench_wins"})
"""Metrics of the final table that are shares, shown in percent."""

ALPACA, ALPACA_LENGTH, ALPACA_CONTROLLED = "alpaca_eval/", "alpaca_length/", "alpaca_lc/"
"""What the names of AlpacaEval's win rates begin with, of answers' lengths, of length-controlled rates; then comes the model to be beaten."""

SHARED = (
    *("accuracy/", "win_rate/", "rm_", "longer_wins/", "pass@", "maj@", "task/", "overlap/", ALPACA, ALPACA_CONTROLLED),
    *("judge_agreement/", "judge_first/", "judge_longer/", "judge_consistent/", "judge_variance/"),
)
"""What the names of other such metrics begin with."""

COLUMNS = ("accuracy", "gold", "win_rate", "judged", "rm_accuracy", "longer_wins", "kl", "length")
"""The order of the final table's columns; other metrics follow as they come."""

DECIMALS = {"gold": 2, "kl": 2, "mt_bench": 2, "mt_bench_1": 2, "mt_bench_2": 2, "judge_kappa": 3}
"""Decimals of a metric in the final table, and of its parts (what stands before "/"); 1 for every other."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A row of an evaluate stage's table.json: one number about one model."""

    model: str
    metric: str
    value: float
    low: float
    high: float
    n: int
    p: float | None = None
    """Of the paired test against the model `against`; None = not tested."""
    against: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """What one model wrote."""

    text: str
    passed: bool
    score: float | None
    judged: float | None = None
    """What the judge gives it against the reference's answer, 0 to 1."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One test prompt and what each model answered, in the order of the models."""

    prompt: str
    family: str
    answers: Mapping[str, Answer]


@dataclass(frozen=True, slots=True)
class Alarm:
    """A guard that went off."""

    step: int
    metric: str
    value: float
    threshold: float
    action: str
    why: str = ""


@dataclass(frozen=True, slots=True)
class Skipped:
    """A step that was passed over after a rollback."""

    step: int
    samples: tuple[str, ...]
    """What it would have learned from, by name."""


@dataclass(frozen=True, slots=True)
class StageFacts:
    """What one stage left behind so far."""

    name: str
    kind: str
    status: str
    """ "published", "running" (begun and not published: at work or stopped), or "waiting"."""
    seconds: float
    """Wall time; nan when not known. Of an unfinished stage: from its start to its last event."""
    finished: float
    """Unix seconds; nan when it is not."""
    metrics: Mapping[str, float]
    """As published; of an unfinished stage the last value of each."""
    events: tuple[Event, ...]
    """One per (step, name): where a step was repeated after a crash, the last."""
    alarms: tuple[Alarm, ...]
    skipped: tuple[Skipped, ...]
    table: tuple[Cell, ...]
    samples: tuple[Sample, ...]
    card: PromptCard | DataCard | RewardCard | None


@dataclass(frozen=True, slots=True)
class RunFacts:
    """A run directory as values. `manifest` is empty when there is none yet."""

    path: Path
    recipe: str
    seed: int | None
    manifest: Mapping[str, Json]
    recipe_text: str
    stages: tuple[StageFacts, ...]
    remarks: tuple[str, ...]
    """What could not be read, a sentence each."""

    @property
    def table(self) -> tuple[Cell, ...]:
        """The rows of every evaluate stage, in plan order."""
        return tuple(cell for stage in self.stages for cell in stage.table)


def read_run(path: Path) -> RunFacts:
    """Reads a run directory.

    Raises:
        UserError: the path is no run directory.
    """
    _require_run(path)
    remarks: list[str] = []
    manifest = _object(path / "manifest.json", remarks)
    resolved = _object(path / "recipe.resolved.json", remarks)
    plan: Mapping[str, Json] = _mapping(resolved.get("stages"))
    together = _by_stage(_rows(path / "events.jsonl", _event, remarks))
    ordered = manifest.get("stages")
    names = dict.fromkeys([*(str(n) for n in (ordered if isinstance(ordered, list) else [])), *plan, *_folders(path / "stages")])
    stages = tuple(_stage(path / "stages" / n, _mapping(plan.get(n)), together.get(n, ()), remarks) for n in names)
    stem, _, tail = path.resolve().name.rpartition("-s")
    name = manifest.get("recipe") or resolved.get("name") or (stem if stem and tail.isdecimal() else path.resolve().name)
    seed = manifest.get("seed", resolved.get("seed", int(tail) if stem and tail.isdecimal() else None))
    return RunFacts(path, str(name), seed, manifest, _text(path / "recipe.yaml", remarks), stages, tuple(r.removeprefix(f"{path}/") for r in remarks))


def facts(path: Path) -> dict[str, Json]:
    """The facts of a run as one JSON value: recipe, seed, stages and the final table. What is not a number is None.

    Raises:
        UserError: the path is no run directory.
    """
    run = read_run(path)
    shown = ("model", "metric", "value", "low", "high", "n")
    return {
        "recipe": run.recipe,
        "seed": run.seed,
        "stages": {s.name: {"kind": s.kind, "status": s.status, "metrics": {k: _finite(v) for k, v in s.metrics.items()}} for s in run.stages},
        "table": [{key: _finite(value) for key, value in asdict(cell).items() if key in shown} for cell in run.table],
    }


def final_table(rows: Sequence[Mapping[str, Json]], metrics: Sequence[str] = ()) -> list[list[str]]:
    """Models by metrics as text, header first; cells read "61.2 [58.0, 64.2]", shares in percent, "" where nothing was measured.

    Args:
        rows: rows of table.json, or of `facts(...)["table"]`.
        metrics: the columns; when none are named, every metric but the families'. Models that have none of them are left out.

    Returns:
        Lines of cells: model, one per metric, n, and "paired test" when `accuracy` is a column and rows carry one.
    """
    cells = {(c.model, c.metric): c for c in (_cell(row) for row in rows)}
    columns = list(metrics) or ordered([metric for _, metric in cells if "/" not in metric])
    models = dict.fromkeys(model for model, metric in cells if metric in columns)
    tests = {m: _test(c, cells) for m in models if "accuracy" in columns and (c := cells.get((m, "accuracy"))) and c.p is not None}
    table = [["model", *(heading(metric) for metric in columns), "n"] + (["paired test"] if tests else [])]
    for model in models:
        found = [cells.get((model, metric)) for metric in columns]
        counts = "/".join(str(n) for n in dict.fromkeys(c.n for c in found if c))
        line = [model, *(cell_text(c) if c else "" for c in found), counts]
        table.append(line + ([tests.get(model, "")] if tests else []))
    return table


def heading(metric: str) -> str:
    """A metric as the head of a column, with its unit.  Example: "accuracy, %" """
    name = metric.removeprefix("accuracy/")
    units = {"gold": ", reward", "kl": ", nats", "length": ", tokens", "mt_bench": ", 1 to 10", "mt_bench_1": ", 1 to 10", "mt_bench_2": ", 1 to 10"}
    return name + (", %" if is_share(metric) else units.get(metric, ""))


def cell_text(cell: Cell) -> str:
    """A value and its interval.  Example: "61.2 [58.0, 64.2]" """
    scale, digits = (100, 1) if is_share(cell.metric) else (1, DECIMALS.get(cell.metric.partition("/")[0], 1))
    value, low, high = (f"{scale * x:.{digits}f}" if math.isfinite(x) else "-" for x in (cell.value, cell.low, cell.high))
    return value if low == high == "-" else f"{value} [{low}, {high}]"


def is_share(metric: str) -> bool:
    """Whether the final table shows it in percent."""
    return metric in SHARES or metric.startswith(SHARED)


def p_text(p: float) -> str:
    """Example: "p = 0.021", "p < 0.001"."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def ordered(metrics: Sequence[str]) -> list[str]:
    """Each once, in the order of COLUMNS."""
    return sorted(dict.fromkeys(metrics), key=lambda metric: COLUMNS.index(metric) if metric in COLUMNS else len(COLUMNS))


def _test(cell: Cell, cells: Mapping[tuple[str, str], Cell]) -> str:
    before = cells.get((cell.against, cell.metric))
    gain = f"{100 * (cell.value - before.value):+.1f} " if before else ""
    return f"{gain}vs {cell.against}, {p_text(cell.p)}" if cell.p is not None else ""


def _require_run(path: Path) -> None:
    if path.is_dir() and any((path / mark).exists() for mark in MARKS):
        return
    what = "holds no run" if path.is_dir() else "is not a folder" if path.exists() else "no such folder"
    near = sorted(str(p) for base in (path, path.parent, path.parent / "runs") for p in _runs(base) if p != path)
    fix = f"give a run directory: {', '.join(near[:5])}" if near else "give a run directory, what 'xwin run RECIPE' makes: runs/<name>-s<seed>"
    raise UserError(what, str(path), fix)


def _runs(base: Path) -> list[Path]:
    return [p for p in base.iterdir() if p.is_dir() and (p / "manifest.json").exists()] if base.is_dir() else []


def _folders(path: Path) -> list[str]:
    return sorted(p.name for p in path.iterdir() if p.is_dir() and not p.name.startswith(".")) if path.is_dir() else []


def _stage(folder: Path, settings: Mapping[str, Json], together: Sequence[Event], remarks: list[str]) -> StageFacts:
    """One stage; `together` are its events in the run's own events.jsonl, used when the stage has no file of its own."""
    manifest = _object(folder / "manifest.json", remarks)
    own = folder / "events.jsonl"
    found = _rows(own, _event, remarks) if own.exists() else together
    events = tuple({(e.step, e.name): e for e in found}.values())
    metrics = {str(k): _known(v) for k, v in _mapping(manifest.get("metrics")).items()}
    started, last = _known(manifest.get("started")), max((e.time for e in events), default=math.nan)
    seconds = _known(manifest.get("seconds"))
    card = _object(folder / "card.json", remarks)
    return StageFacts(
        name=folder.name,
        kind=str(manifest.get("kind") or settings.get("kind") or ""),
        status=str(manifest.get("status") or ("running" if events else "waiting")),
        seconds=seconds if math.isfinite(seconds) else last - started,
        finished=_known(manifest.get("finished")),
        metrics=metrics or {e.name: e.value for e in events},
        events=events,
        alarms=tuple(_rows(folder / "alarms.jsonl", _alarm, remarks)),
        skipped=tuple(Skipped(e.step, e.samples) for e in events if e.name == "skipped"),
        table=tuple(_made(_list(folder / "table.json", remarks), _cell, folder / "table.json", remarks)),
        samples=tuple(_rows(folder / "samples.jsonl", _sample, remarks)),
        card=next(iter(_made([card] if card else [], read_card, folder / "card.json", remarks)), None),
    )


def _by_stage(events: Sequence[Event]) -> dict[str, list[Event]]:
    out: dict[str, list[Event]] = {}
    for event in events:
        out.setdefault(event.stage, []).append(event)
    return out


def _event(row: Mapping[str, Json]) -> Event:
    samples = tuple(map(str, row.get("samples") or ()))
    return Event(_number(row["time"]), str(row["stage"]), int(row["step"]), str(row["name"]), _number(row["value"]), samples)


def _alarm(row: Mapping[str, Json]) -> Alarm:
    value, threshold = (_number(row[key]) for key in ("value", "threshold"))
    return Alarm(int(row["step"]), str(row["metric"]), value, threshold, str(row["action"]), str(row.get("why") or ""))


def _cell(row: Mapping[str, Json]) -> Cell:
    value, low, high = (_number(row.get(key)) for key in ("value", "low", "high"))
    p = None if row.get("p") is None else _number(row["p"])
    return Cell(
        str(row["model"]), str(row["metric"]), value, low, high, int(row.get("n") or 0), p, str(row.get("against") or ""), str(row.get("note") or "")
    )


def _sample(row: Mapping[str, Json]) -> Sample:
    answers = {
        str(model): Answer(str(a["text"]), bool(a["passed"]), *(None if a.get(key) is None else _number(a[key]) for key in ("score", "judged")))
        for model, a in row["answers"].items()
    }
    return Sample(str(row["prompt"]), str(row.get("family") or ""), answers)


def _rows(path: Path, make: Callable[[Mapping[str, Json]], T], remarks: list[str]) -> list[T]:
    """The rows of a JSONL file. A last line that is cut short is a writer at work, not a defect."""
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        remarks.append(f"{path}: cannot be read ({error.strerror}); left out")
        return []
    rows, bad = [], []
    for number, line in enumerate(lines, 1):
        try:
            rows += [json.loads(line)] if line.strip() else []
        except ValueError:
            bad += [number] if number < len(lines) else []
    if bad:
        remarks.append(f"{path}: {len(bad)} of its lines are not JSON, the first is line {bad[0]}; left out")
    return _made(rows, make, path, remarks)


def _made(rows: Sequence[Json], make: Callable[[Mapping[str, Json]], T], path: Path, remarks: list[str]) -> list[T]:
    """Each row as a value; rows that lack something are counted in one remark."""
    out, bad = [], 0
    for row in rows:
        try:
            out.append(make(row))
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
            bad += 1
    if bad:
        remarks.append(f"{path}: {bad} of its rows are not what was expected; left out")
    return out


def _text(path: Path, remarks: list[str]) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""
    except OSError as error:
        remarks.append(f"{path}: cannot be read ({error.strerror}); left out")
        return ""


def _loaded(path: Path, remarks: list[str]) -> Json:
    text = _text(path, remarks)
    try:
        return json.loads(text) if text else None
    except ValueError:
        remarks.append(f"{path}: not JSON; left out")
        return None


def _object(path: Path, remarks: list[str]) -> Mapping[str, Json]:
    return _mapping(_loaded(path, remarks))


def _list(path: Path, remarks: list[str]) -> list[Json]:
    value = _loaded(path, remarks)
    return value if isinstance(value, list) else []


def _mapping(value: Json) -> Mapping[str, Json]:
    return value if isinstance(value, dict) else {}


def _number(value: Json) -> float:
    """A float; what is absent is nan. "nan" and "inf" are how events write what JSON has no number for."""
    return math.nan if value is None else float(value)


def _known(value: Json) -> float:
    """The number, or nan where there is none."""
    return float(value) if isinstance(value, (int, float)) else math.nan


def _finite(value: Json) -> Json:
    return None if isinstance(value, float) and not math.isfinite(value) else value
