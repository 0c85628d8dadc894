"""A run directory as one self-contained HTML page: results, samples, curves, alarms, data, costs, and how to run it again.

Works offline, without scripts, at any time: while the run works, after a crash, of an empty run. Reads files only. Everything that comes
from the disk is escaped: a model may write markup.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.resources import files
from itertools import zip_longest
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from xwin.errors import UserError
from xwin.run import _boards as boards
from xwin.run import plots
from xwin.run.cards import DataCard, PromptCard, RewardCard
from xwin.run.events import CATALOGUE, Unit
from xwin.run.facts import ALPACA, Cell, RunFacts, Sample, StageFacts, final_table, ordered, read_run
from xwin.run.storage import write_atomic

CURVES: Mapping[str, tuple[str, ...]] = {
    "sft": ("loss", "verified", "grad_norm", "lr"),
    "raft": ("reward", "kept_reward", "loss", "accepted", "unique", "length"),
    "reward_model": ("loss", "accuracy", "score_margin"),
    "rl": (
        *("reward", "validation_gold", "hacking", "verified", "kl", "entropy", "length", "clipped"),
        *("engine_gap", "explained_variance", "value_loss"),
    ),
}
"""The metrics of a kind that are shown open; the others, and those of other kinds, are one click away."""

OVERLAYS: Mapping[str, str] = {"loss": "validation_loss", "accuracy": "validation_accuracy", "reward": "validation_reward"}
"""Metric -> its held-out twin, drawn on the same axes."""

ACTIONS: Mapping[str, str] = {"warn": "warned", "stop": "stopped", "rollback": "rolled back"}
"""What a guard did, in words."""
SAID_ELSEWHERE = ("overlap/", "task/", "rm_accuracy/", "longer_wins/", "rm_length_matched/")
"""Metrics whose notes stand in a table, or say what its columns say."""
CATEGORIES = ("accuracy/", "win_rate/", "task/mmlu/", "mt_bench/")
"""What the metrics begin with whose categories are drawn side by side."""
WHOLE: Mapping[str, str] = {
    "accuracy": "accuracy, all families",
    "win_rate": "win rate",
    "judged": "win rate, judged",
    "mt_bench_wins": "MT-bench, games won",
}
"""Metrics over everything that are drawn with their intervals -> the name of the plot."""

KEY_METRICS = 5
"""Metrics of a stage shown in the table of stages."""
SHOWN = {"fixed": 8, "broken": 8, "failed": 4, "passed": 2}
"""Samples shown of each group: failed at the first model and passed at the last, the reverse, failed at both, passed at both."""
CASES = 6
"""Prompts of the case study."""
LONGEST = 1500
"""Characters of a text that are shown."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One plot with its caption."""

    name: str
    unit: str
    meaning: str
    svg: Markup
    overlay: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Curves:
    """The plots of one stage."""

    stage: str
    kind: str
    shown: tuple[Figure, ...]
    folded: tuple[Figure, ...]


@dataclass(frozen=True, slots=True)
class Result:
    """The final table of one evaluate stage: tables of text and plots."""

    stage: str
    tables: tuple[tuple[str, list[list[str]]], ...]
    figures: tuple[Figure, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Samples of one evaluate stage, side by side."""

    stage: str
    models: tuple[str, ...]
    counts: Mapping[str, int]
    groups: tuple[tuple[str, tuple[Sample, ...]], ...]
    cases: tuple[Sample, ...]
    """Prompts that are shown with the answers of every model, whatever became of them."""
    every: tuple[str, ...]
    """Every model."""


def write_report(run: Path, to: Path | None = None) -> Path:
    """Writes the page, whole or not at all, and returns its path.

    Args:
        run: a run directory, in any state.
        to: the file to write; None = `report.html` in the run directory.

    Raises:
        UserError: `run` is no run directory, or the folder of `to` does not exist.
        StorageError: the disk is full, read-only, or permission is missing; an older page is untouched.
    """
    page = render(read_run(run), now=datetime.now(UTC))
    target = to if to is not None else run / "report.html"
    if not target.absolute().parent.is_dir():
        raise UserError("no such folder", str(target.parent), "make the folder first, or choose another --out")
    if target.is_dir():
        raise UserError("is a folder", str(target), "name the file to write, for instance report.html")
    write_atomic(target, page)
    return target


def render(run: RunFacts, now: datetime) -> str:
    """The page as text. The same facts and time give the same page."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"seconds": seconds_text, "number": number_text, "percent": percent_text, "moment": moment_text, "clip": clipped}
    template = environment.from_string(files("xwin.run").joinpath("report.html.j2").read_text(encoding="utf-8"))
    longest = max((s.seconds for s in run.stages if math.isfinite(s.seconds)), default=0.0)
    costs = [_cost(s, longest) for s in run.stages if s.status != "waiting"]
    return template.render(
        run=run,
        now=now.timestamp(),
        command=_command(run.manifest),
        commit=str(_section(run, "git").get("commit") or ""),
        about=_about(run),
        results=[_result(s) for s in run.stages if s.table],
        comparisons=[_comparison(s) for s in run.stages if s.samples],
        stages=[(s, _key_metrics(s)) for s in run.stages],
        curves=[c for s in run.stages if s.events and (c := _curves(s))],
        alarms=[(s.name, alarm) for s in run.stages for alarm in s.alarms],
        actions=ACTIONS,
        skipped=[(s.name, found) for s in run.stages for found in s.skipped],
        cards=[(s.name, s.card, _families(s.card)) for s in run.stages if isinstance(s.card, PromptCard)],
        data=[(s.name, s.card, _lengths(s.name, s.card)) for s in run.stages if isinstance(s.card, DataCard)],
        rewards=[(s.name, s.card) for s in run.stages if isinstance(s.card, RewardCard)],
        costs=costs,
        tokens=math.fsum(c["tokens"] for c in costs if math.isfinite(c["tokens"])) or math.nan,
        total=math.fsum(s.seconds for s in run.stages if math.isfinite(s.seconds)),
        unfinished=[s for s in run.stages if s.status != "published"],
    )


def seconds_text(seconds: float) -> str:
    """Example: "4.2 s", "3 min 05 s", "2 h 07 min"."""
    if not math.isfinite(seconds):
        return "\N{EN DASH}"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def number_text(value: float) -> str:
    """Four digits that matter.  Example: "0.6931", "12,480", "2e-05"."""
    if not math.isfinite(value):
        return "\N{EN DASH}"
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def percent_text(share: float | None) -> str:
    """A share in percent.  Example: "71.4"; a dash where there is none."""
    return "\N{EN DASH}" if share is None else f"{100 * share:.1f}"


def moment_text(time: float) -> str:
    """Unix seconds as a date and time, UTC."""
    return datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%d %H:%M UTC") if math.isfinite(time) else "\N{EN DASH}"


def clipped(text: str) -> str:
    """The text, cut where it is too long to show, and saying so."""
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}\N{HORIZONTAL ELLIPSIS} ({len(text) - LONGEST:,} more characters)"


def pick(samples: Sequence[Sample], models: Sequence[str]) -> dict[str, list[Sample]]:
    """Samples by what changed from the first of `models` to the last: fixed, broken, failed (both), passed (both).

    Within a group the families take turns, so that one family cannot fill it.
    """
    groups: dict[str, dict[str, list[Sample]]] = {"fixed": {}, "broken": {}, "failed": {}, "passed": {}}
    names = {(False, True): "fixed", (True, False): "broken", (False, False): "failed", (True, True): "passed"}
    for sample in samples:
        if models[0] in sample.answers and models[-1] in sample.answers:
            change = (sample.answers[models[0]].passed, sample.answers[models[-1]].passed)
            groups[names[change]].setdefault(sample.family, []).append(sample)
    return {name: _in_turn(families.values()) for name, families in groups.items()}


def side_by_side(models: Sequence[str]) -> tuple[str, ...]:
    """The models to show: the first, sft (or the middle one), the last."""
    between = models[1:-1]
    middle = ["sft"] if "sft" in between else [between[len(between) // 2]] if between else []
    return tuple(dict.fromkeys([models[0], *middle, models[-1]]))


def _in_turn(families: Iterable[Sequence[Sample]]) -> list[Sample]:
    return [sample for turn in zip_longest(*families) for sample in turn if sample is not None]


def _command(manifest: Mapping[str, Any]) -> str:
    command = manifest.get("command") or ""
    return command if isinstance(command, str) else " ".join(map(str, command))


def _section(run: RunFacts, name: str) -> Mapping[str, Any]:
    """A mapping of the manifest; empty when it has none of that name."""
    value = run.manifest.get(name)
    return value if isinstance(value, dict) else {}


def _about(run: RunFacts) -> list[tuple[str, list[tuple[str, str]]]]:
    """What the manifest says, as named lists of (key, text)."""
    git = _section(run, "git")
    code = [("commit", str(git["commit"]))] if git.get("commit") else []
    if git.get("dirty"):
        code.append(("uncommitted changes", f"yes, digest {str(git.get('diff_sha256') or 'unknown')[:16]}"))
    named = {"Hardware": "hardware", "Versions": "versions", "Inputs, sha256": "inputs"}
    lists = {"Code": code} | {title: [(str(k), str(v)) for k, v in _section(run, name).items()] for title, name in named.items()}
    return [(title, rows) for title, rows in lists.items() if rows]


def _key_metrics(stage: StageFacts) -> list[tuple[str, float]]:
    """The few metrics that say how a stage went: what its kind is watched by first, then the others."""
    first = [name for shown in CURVES.get(stage.kind, ()) for name in (OVERLAYS.get(shown, shown), shown)]
    order = sorted(stage.metrics, key=lambda name: first.index(name) if name in first else len(first))
    return [(name, stage.metrics[name]) for name in order[:KEY_METRICS]]


def _result(stage: StageFacts) -> Result:
    rows = [asdict(cell) for cell in stage.table]
    metrics = ordered([cell.metric for cell in stage.table])
    reward = [m for m in metrics if m in boards.REWARD]
    others = [m for m in metrics if "/" not in m and m not in reward and m not in boards.TURNS]
    alpaca = boards.alpaca_eval(stage.table)
    families = {m: m.removeprefix("accuracy/") for m in metrics if m.startswith("accuracy/")}
    tables = (
        ("", final_table(rows, others) if others else []),
        ("Leaderboard", boards.leaderboard(stage.table)),
        ("AlpacaEval, win rate, %", alpaca if len(alpaca) > 2 else []),  # of one opponent it is the leaderboard again
        ("Accuracy by family, %", boards.side_by_side(stage.table, "family", families)),
        ("Reward model, on held-out pairs", final_table(rows, reward) if reward else []),
        *boards.by_suite(stage.table).items(),
    )
    noted = (c for c in stage.table if c.note and not c.metric.startswith(SAID_ELSEWHERE))
    notes = tuple(dict.fromkeys(f"{c.model}, {c.metric}: {c.note}" for c in noted))
    return Result(stage.name, tuple(t for t in tables if t[1]), tuple(_comparisons(stage)), notes)


def _comparisons(stage: StageFacts) -> Iterator[Figure]:
    """Accuracy and win rate with their intervals, win rate against length, and bars by category."""
    metrics = ordered([cell.metric for cell in stage.table])
    for metric in (m for m in metrics if m in WHOLE or m.startswith(ALPACA)):
        yield _dots(stage.name, stage.table, metric)
    if dots := boards.win_rate_dots(stage.table):
        svg = plots.scatter(f"{stage.name}/win rate and length", dots, x=boards.lengths(stage.table)[1], y="win rate, %")
        yield Figure("win rate against length", "", "a judge that likes length puts long answers high", Markup(svg))
    for metric in (m for m in metrics if m.startswith("accuracy/")):
        yield _dots(stage.name, stage.table, metric)
    for prefix in dict.fromkeys(m.rpartition("/")[0] + "/" for m in metrics if m.startswith(CATEGORIES) and m.rpartition("/")[2]):
        yield from _bars(stage, prefix)


def _bars(stage: StageFacts, prefix: str) -> Iterator[Figure]:
    """A metric's categories side by side; one alone is no comparison."""
    models = side_by_side(list(dict.fromkeys(c.model for c in stage.table if c.metric.startswith(prefix))))
    names, rows = boards.categories(stage.table, prefix, models)
    if len(names) > 1:
        meaning = f"from top to bottom in each: {', '.join(models)}" if len(models) > 1 else ""
        unit, top = ("1 to 10", 10) if prefix == boards.MT_BENCH else ("%", 100)
        svg = plots.bars(f"{stage.name}/{prefix}", names, rows, top=top)
        yield Figure(f"{prefix.removeprefix('task/').rstrip('/')} by category", unit, meaning, Markup(svg))


def _dots(stage: str, table: Sequence[Cell], metric: str) -> Figure:
    cells = [c for c in table if c.metric == metric]
    rows = [plots.Whisker(c.model, 100 * c.value, 100 * c.low, 100 * c.high) for c in cells]
    counts = sorted({c.n for c in cells})
    name = WHOLE.get(metric, metric.removeprefix("accuracy/").replace(ALPACA, "win rate on AlpacaEval, against "))
    return Figure(name, f"%, n = {' or '.join(map(str, counts))}", "", Markup(plots.whiskers(f"{stage}/{metric}", rows, low=-2, high=102)))


def _comparison(stage: StageFacts) -> Comparison:
    every = list(dict.fromkeys(model for sample in stage.samples for model in sample.answers)) or [""]
    models = side_by_side(every)
    groups = pick(stage.samples, models)
    counts = {name: len(found) for name, found in groups.items()}
    shown = tuple((name, tuple(found[: SHOWN[name]])) for name, found in groups.items() if found)
    families: dict[str, list[Sample]] = {}
    for sample in stage.samples:
        families.setdefault(sample.family, []).append(sample)
    return Comparison(stage.name, models, counts, shown, tuple(_in_turn(families.values())[:CASES]), tuple(every))


def _curves(stage: StageFacts) -> Curves | None:
    series = _series(stage)
    overlays = {twin for metric, twin in OVERLAYS.items() if metric in series}
    names = [name for name in series if name not in overlays]
    wanted = [name for name in CURVES.get(stage.kind, ()) if name in names]
    shown = wanted or names[:6]
    figures = {name: _figure(stage.name, name, series) for name in names}
    return Curves(stage.name, stage.kind, tuple(figures[n] for n in shown), tuple(figures[n] for n in names if n not in shown))


def _series(stage: StageFacts) -> dict[str, plots.Series]:
    found: dict[str, dict[int, float]] = {}
    for event in stage.events:
        found.setdefault(event.name, {})[event.step] = event.value
    return {name: plots.Series(tuple(sorted(at)), tuple(at[step] for step in sorted(at))) for name, at in found.items()}


def _figure(stage: str, name: str, series: Mapping[str, plots.Series]) -> Figure:
    main, twin = series[name], OVERLAYS.get(name, "")
    overlay = series.get(twin)
    unit = CATALOGUE.get(name, Unit("", "part of the reward" if name.startswith("reward/") else ""))
    lost = sum(not math.isfinite(v) for v in main.values)
    notes = (f"{lost} of {len(main.values)} values were not finite",) if lost else ()
    svg = Markup(plots.curve(f"{stage}/{name}", main, overlay))
    return Figure(name, unit.unit, unit.meaning, svg, twin if overlay else "", notes)


def _families(card: PromptCard) -> list[tuple[str, list[int | None]]]:
    """Family -> rows in each split."""
    names = dict.fromkeys(family for split in card.splits for family in split.families)
    return [(family, [split.families.get(family) for split in card.splits]) for family in names]


def _lengths(stage: str, card: DataCard) -> list[Figure]:
    """A histogram of each part of the rows."""
    figures = []
    for found in card.lengths:
        if found.counts and len(found.edges) == len(found.counts) + 1:
            named = {"median": found.median, "mean": found.mean, "95 % up to": found.p95, "longest": found.max}
            meaning = ", ".join(f"{name} {number_text(value)}" for name, value in named.items())
            svg = Markup(plots.histogram(f"{stage}/{found.part}", found.edges, found.counts))
            figures.append(Figure(found.part, f"rows by {found.unit}", meaning, svg))
    return figures


def _cost(stage: StageFacts, longest: float) -> dict[str, Any]:
    """What a stage took; nan where it did not say."""
    series = _series(stage)

    def of(name: str) -> list[float]:
        return [v for v in series[name].values if math.isfinite(v)] if name in series else []

    trained, memory = of("tokens"), of("memory")
    return {
        "stage": stage.name,
        "seconds": stage.seconds,
        "share": 100 * stage.seconds / longest if longest and math.isfinite(stage.seconds) else 0.0,
        "steps": max((len(found.steps) for found in series.values()), default=math.nan),
        "tokens": math.fsum(trained) if trained else math.nan,
        "memory": max(memory, default=math.nan),
    }
