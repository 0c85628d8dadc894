"""Small plots as inline SVG: curves over steps, values with their intervals, histograms. Plain values in, markup out.

Colours are CSS variables of the page (`--ink`, `--rule`, `--first`, `--second`), so one SVG serves light and dark; text stays text in the
page's own font. Each is drawn at the width of a phone and scales with its column.
"""

from __future__ import annotations

import hashlib
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from matplotlib.typing import RcKeyType

WIDTH = 4.7
"""Inches at 72 points each: 338 points."""
HEIGHT = 2.1
"""Inches of a curve."""
POINTS = 400
"""A curve with more is thinned to this many, each the mean of its neighbours."""
SMOOTH_FROM = 48
"""Points from which a curve gets a running mean, over a sixteenth of them."""

INK, RULE, FIRST, SECOND = "#010101", "#020202", "#030303", "#040404"
"""Stand-ins that become variables of the page."""
VARIABLES = {INK: "var(--ink-2)", RULE: "var(--rule)", FIRST: "var(--first)", SECOND: "var(--second)"}

STYLE: dict[RcKeyType, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "xwin",  # the same run gives the same page
    "font.family": "DejaVu Sans",
    "font.size": 10.5,
    "text.parse_math": False,  # names come from recipes: a dollar sign is a dollar sign
    "text.color": INK,
    "axes.edgecolor": RULE,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "axes.formatter.limits": (-3, 5),
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
}


@dataclass(frozen=True, slots=True)
class Series:
    """One curve: value over step. Values that are not finite leave a gap."""

    steps: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Whisker:
    """One value with its interval.  Example: Whisker("ppo", 61.2, 58.0, 64.2)"""

    name: str
    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Dot:
    """A model in the plane.  Example: Dot("ppo", 24.6, 61.2, 58.0, 64.2)"""

    name: str
    x: float
    y: float
    low: float
    """Ends of the interval of y."""
    high: float


def curve(name: str, main: Series, overlay: Series | None = None) -> str:
    """An SVG of one metric over steps: `main` as a line (with a running mean when it is long), `overlay` as marked points on it.

    Args:
        name: no other plot of the page has it; it makes the ids inside.
    """
    with mpl.rc_context(STYLE):
        figure, axes = _canvas(HEIGHT)
        _line(axes, main)
        if overlay and overlay.steps:
            axes.plot(overlay.steps, _gaps(overlay.values), color=SECOND, linewidth=1.4, marker="o", markersize=4)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.grid(visible=False, axis="x")
        axes.margins(x=0.02, y=0.08)
        return _svg(figure, name)


def whiskers(name: str, rows: Sequence[Whisker], *, low: float | None = None, high: float | None = None) -> str:
    """An SVG with a row per model: a dot at the value, a line over its interval, the value written at the right.

    Args:
        name: no other plot of the page has it; it makes the ids inside.
        rows: from top to bottom; the last is drawn in the second colour.
        low, high: ends of the axis, the same over plots that stand side by side; None = from the rows.
    """
    with mpl.rc_context(STYLE):
        figure, axes = _canvas(0.45 + 0.29 * len(rows))
        for place, row in enumerate(rows):
            colour = SECOND if place == len(rows) - 1 else FIRST
            ends = [row.low, row.high] if math.isfinite(row.low) and math.isfinite(row.high) else [row.value, row.value]
            axes.plot(ends, [place, place], color=colour, linewidth=2, solid_capstyle="round")
            axes.plot([row.value], [place], color=colour, marker="o", markersize=6.5)
            text = f"{row.value:.1f}" if math.isfinite(row.value) else "-"
            axes.annotate(text, (1.02, place), xycoords=("axes fraction", "data"), va="center", ha="left", annotation_clip=False)
        axes.set_yticks(range(len(rows)), [_short(row.name) for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlim(low, high)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.spines["left"].set_visible(False)
        axes.grid(visible=False, axis="y")
        return _svg(figure, name)


def scatter(name: str, dots: Sequence[Dot], *, x: str, y: str, trails: Sequence[Sequence[tuple[float, float]]] = ()) -> str:
    """An SVG with a named dot per model and the interval of its height, over thin lines of how models got there.

    Args:
        name: no other plot of the page has it; it makes the ids inside.
        dots: the last is drawn in the second colour.
        x, y: what the axes are, with units.
        trails: the (x, y) that models passed, a line each.
    """
    with mpl.rc_context(STYLE):
        figure, axes = _canvas(2.9)
        for trail in trails:
            axes.plot([at for at, _ in trail], [height for _, height in trail], color=FIRST, linewidth=1.0, alpha=0.45, marker=".", markersize=4)
        for place, dot in enumerate(dots):
            colour = SECOND if place == len(dots) - 1 else FIRST
            if math.isfinite(dot.low) and math.isfinite(dot.high):
                axes.plot([dot.x, dot.x], [dot.low, dot.high], color=colour, linewidth=1.6, solid_capstyle="round")
            axes.plot([dot.x], [dot.y], color=colour, marker="o", markersize=6)
            axes.annotate(_short(dot.name), (dot.x, dot.y), xytext=(6, 4), textcoords="offset points")
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.margins(x=0.16, y=0.12)
        return _svg(figure, name)


def bars(name: str, categories: Sequence[str], rows: Sequence[Sequence[Whisker]], *, top: float = 100) -> str:
    """An SVG of what a few models reach in each category, as bars with their intervals.

    Args:
        name: no other plot of the page has it; it makes the ids inside.
        categories: from top to bottom.
        rows: of each category a bar per model, in one order; nan where a model has none. The last model is drawn in the second colour.
        top: where the axis ends; it begins at 0.
    """
    count = max(map(len, rows))
    with mpl.rc_context(STYLE):
        figure, axes = _canvas(0.5 + len(rows) * (0.14 + 0.13 * count))
        for place, row in enumerate(rows):
            for k, bar in enumerate(row):
                at = place + 0.8 * ((k + 0.5) / count - 0.5)
                colour, faint = (SECOND, 1.0) if k == count - 1 else (FIRST, 1 - 0.6 * (count - 2 - k) / max(count - 1, 1))
                axes.barh([at], [bar.value if math.isfinite(bar.value) else 0.0], height=0.74 / count, color=colour, alpha=faint)
                if math.isfinite(bar.low) and math.isfinite(bar.high):
                    axes.plot([bar.low, bar.high], [at, at], color=INK, linewidth=1.0)
        axes.set_yticks(range(len(rows)), [_short(category) for category in categories])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlim(0, top)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.grid(visible=False, axis="y")
        return _svg(figure, name)


def histogram(name: str, edges: Sequence[int], counts: Sequence[int]) -> str:
    """An SVG of how many rows each bin holds. Bins are drawn equally wide whatever their edges: give edges that grow and the axis is logarithmic.

    Args:
        name: no other plot of the page has it; it makes the ids inside.
        edges: one more than counts, rising.
        counts: rows of each bin.
    """
    with mpl.rc_context(STYLE):
        figure, axes = _canvas(HEIGHT)
        axes.bar([i + 0.5 for i in range(len(counts))], list(counts), width=0.86, color=FIRST)
        every = math.ceil(len(edges) / 8)
        shown = range(0, len(edges), every)
        axes.set_xticks(list(shown), [f"{edges[i]:,}" for i in shown])
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.set_xlim(0, len(counts))
        axes.grid(visible=False, axis="x")
        return _svg(figure, name)


def _canvas(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasSVG(figure)
    figure.patch.set_visible(False)
    axes = figure.subplots()
    axes.patch.set_visible(False)
    return figure, axes


def _line(axes: Axes, series: Series) -> None:
    series = thinned(series)
    steps, values = series.steps, _gaps(series.values)
    width = len(steps) // 16 | 1 if len(steps) >= SMOOTH_FROM else 0
    finite = sum(math.isfinite(v) for v in values)
    marker = "o" if finite <= 2 else None  # a line of one point cannot be seen
    axes.plot(steps, values, color=FIRST, linewidth=1.0 if width else 1.6, alpha=0.4 if width else 1.0, marker=marker, markersize=4)
    if width:
        axes.plot(steps, _running_mean(values, width), color=FIRST, linewidth=1.8)


def thinned(series: Series) -> Series:
    """At most POINTS points: neighbours become their mean at the last one's step."""
    size = math.ceil(len(series.steps) / POINTS)
    if size <= 1:
        return series
    starts = range(0, len(series.steps), size)
    return Series(
        tuple(series.steps[min(start + size, len(series.steps)) - 1] for start in starts),
        tuple(_mean(series.values[start : start + size]) for start in starts),
    )


def _running_mean(values: Sequence[float], width: int) -> list[float]:
    half = width // 2
    return [_mean(values[max(0, i - half) : i + half + 1]) for i in range(len(values))]


def _mean(values: Sequence[float]) -> float:
    known = [v for v in values if math.isfinite(v)]
    return math.fsum(known) / len(known) if known else math.nan


def _gaps(values: Sequence[float]) -> list[float]:
    """matplotlib leaves a gap at nan, and fails on inf."""
    return [v if math.isfinite(v) else math.nan for v in values]


def _short(name: str) -> str:
    return name if len(name) <= 18 else name[:17] + "\N{HORIZONTAL ELLIPSIS}"


def _svg(figure: Figure, name: str) -> str:
    """The figure as an <svg> that takes its width and colours from the page, names no address, and shares no id with another `name`."""
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = out.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<g id=\"[^\"]*\"/>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'\s(?:xmlns(?::\w+)?|width|height|version)="[^"]*"', "", text[: (end := text.index(">"))]) + text[end:]
    text = re.sub(r"\s*\n\s*", "\n", re.sub(r'<g id="[^"]*">', "<g>", text))
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, variable)
    mark = "f" + hashlib.sha256(name.encode()).hexdigest()[:12]
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{mark}", text)
    return text.replace("'DejaVu Sans'", "var(--sans)")
