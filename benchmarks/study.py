"""The table and the plots of a study over several seeds.

    python -m benchmarks.study runs/study-helpful-s0 runs/study-helpful-s1 runs/study-helpful-s2 --judge runs/study-helpful-data-s0 --to study

Reads finished runs of `recipes/study-helpful/methods.yaml` or `recipes/study-reasoning/methods.yaml` and writes into the folder `--to` table.md,
study.json, kl.svg (gold against KL) and compute.svg (gold against tokens). Gold is what the gold scorer of the evaluate stage gives each answer: a
reward model's score, or 1 and 0 of a verifier. Every mean has a 95 % interval over seeds and prompts (benchmarks/crossed.py); differences are
paired by seed and prompt, and their p-values corrected for the number of rows (Holm). A judge that ranks fewer than 60 % of held-out pairs
right ranks no methods: then there is no comparison with the best.
A run of the same seed with other rows (`recipes/study-helpful/trl.yaml`) may be named too; what its rows cost is in `--costs FILE`.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.crossed import Crossed, crossed, holm
from benchmarks.study_runs import Answer, Cost, Method, Study, read_study
from xwin.errors import UserError, XwinError
from xwin.run.facts import read_run
from xwin.run.plots import VARIABLES, Dot, scatter

SURE_ENOUGH = 0.6
"""Share of held-out pairs that a judge must rank right before it ranks methods."""

MADE_OF = ("seed", "git", "hardware", "versions")
"""What a run's own manifest says of how it was made."""

COLOURS = dict(zip(VARIABLES.values(), ("#333333", "#d5d5d5", "#1f5f8b", "#1f5f8b"), strict=True))
"""What the variables of the report's page are in a picture of its own, in which no method stands out."""


@dataclass(frozen=True)
class Line:
    """A row of the table; None where nothing was measured, or nothing may be said."""

    name: str
    seeds: int
    gold: Crossed
    against_reference: Crossed | None
    against_best: Crossed | None
    proxy: float | None
    kl: float | None
    """Of a row that chooses one of n the most that choosing can be."""
    chooses: bool
    length: float
    cost: Cost
    alarms: tuple[str, ...]
    """Of all seeds."""


@dataclass(frozen=True)
class Worth:
    """How far a judge is right on held-out pairs."""

    accuracy: Mapping[str, Any]
    longer_wins: Mapping[str, Any]

    @property
    def ranks(self) -> bool:
        """Whether it is good enough to rank methods."""
        return self.accuracy["value"] >= SURE_ENOUGH


def worth_of(path: Path) -> Worth:
    """What a judge's own run measured on the set `all`.

    Raises:
        UserError: it has not been measured there.
    """
    cells = {cell.metric: cell for cell in read_run(path).table}
    if not {"rm_accuracy/all", "longer_wins/all"} <= cells.keys():
        raise UserError("did not measure a judge on a set named `all`", str(path), "run recipes/study-helpful/data.yaml to its end")
    return Worth(asdict(cells["rm_accuracy/all"]), asdict(cells["longer_wins/all"]))


def lines_of(study: Study, worth: Worth | None) -> list[Line]:
    """The rows, in the order of the recipe."""
    levels = {method.name: crossed(list(_gold(method).values())) for method in study.methods}
    best = max(study.methods, key=lambda method: levels[method.name].mean)
    reference = next(method for method in study.methods if method.name == study.reference)
    against = {name: _against(study, other) for name, other in (("reference", reference), ("best", best))}
    ranked = worth is None or worth.ranks
    return [
        Line(
            method.name,
            len(method.answers),
            levels[method.name],
            against["reference"].get(method.name),
            against["best"].get(method.name) if ranked else None,
            _mean(method, lambda answer: answer.proxy),
            _kl(method),
            method.n > 1,
            _mean(method, lambda answer: answer.length) or 0.0,
            _spent(method),
            tuple(dict.fromkeys(name for names in method.alarms.values() for name in names)),
        )
        for method in study.methods
    ]


def _gold(method: Method) -> dict[int, list[float]]:
    return {seed: [answer.gold for answer in some] for seed, some in sorted(method.answers.items())}


def _against(study: Study, other: Method) -> dict[str, Crossed]:
    """Each method less `other`, over the seeds that both have; p corrected for their number."""
    theirs = _gold(other)
    found = {}
    for method in study.methods:
        pairs = [(mine, theirs[seed]) for seed, mine in _gold(method).items() if seed in theirs]
        if method.name != other.name and pairs:
            found[method.name] = crossed([[a - b for a, b in zip(*pair, strict=True)] for pair in pairs])
    corrected = holm([one.p for one in found.values()])
    return {name: replace(one, p=p) for (name, one), p in zip(found.items(), corrected, strict=True)}


def _mean(method: Method, of: Callable[[Answer], float | None]) -> float | None:
    """Over all answers of all seeds; None where one has none."""
    values = [of(answer) for some in method.answers.values() for answer in some]
    known = [value for value in values if value is not None]
    return fmean(known) if known and len(known) == len(values) else None


def _kl(method: Method) -> float | None:
    """Mean nats per answer; of the best of n ln n - (n - 1) / n, the most that choosing can be (Beirami et al. 2024, arXiv:2401.01879)."""
    return math.log(method.n) - (method.n - 1) / method.n if method.n > 1 else _mean(method, lambda answer: answer.kl)


def _spent(method: Method) -> Cost:
    """Mean over seeds."""
    costs = list(method.cost.values())
    return Cost(*(fmean(getattr(cost, name) for cost in costs) for name in ("written", "trained", "seconds")))


def table(study: Study, lines: Sequence[Line], worth: Worth | None) -> str:
    """The study as Markdown: what the judge is worth, then a row per method, then families where there are several."""
    unit = "accuracy, %" if study.verified else "gold"
    head = ["method", "seeds", unit, f"less {study.reference}", "p", "less the best", "p"]
    head += ["reward model", "KL, nats", "length", "written, k", "trained, k", "minutes", "alarms"]
    body = [_cells(line, 100 if study.verified else 1) for line in lines]
    shown = [i for i in range(len(head)) if any(row[i] for row in body)]
    text = _head(worth) + _proxies(study) + "\n" + _markdown([head[i] for i in shown], [[row[i] for i in shown] for row in body])
    return text + (_families(study) if len(set(study.families)) > 1 else "")


def _head(worth: Worth | None) -> str:
    if worth is None:
        return "Gold is right or wrong by code.\n"
    right, longer = ("{value:.1%} [{low:.1%}, {high:.1%}]".format(**cell) for cell in (worth.accuracy, worth.longer_wins))
    text = f"The gold judge ranks {right} of held-out pairs right; preferring the longer answer {longer}.\n"
    return text if worth.ranks else text + f"\nThat is below {SURE_ENOUGH:.0%}: no ranking is claimed.\n"


def _proxies(study: Study) -> str:
    said = ", ".join(f"{100 * accuracy:.1f}" for _, accuracy in sorted(study.proxies.items()))
    return f"The reward model that the methods learn from, by seed: {said} %.\n" if said else ""


def _cells(line: Line, scale: int) -> list[str]:
    """The row as text, in the order of the head."""
    digits = 1 if scale == 100 else 2
    cost = line.cost
    kl = "" if line.kl is None else f"{line.kl:.2f}"
    return [
        *(line.name, str(line.seeds), _interval(line.gold, scale, digits, sign="")),
        *_difference(line.against_reference, scale, digits),
        *_difference(line.against_best, scale, digits),
        "" if line.proxy is None else f"{line.proxy:+.2f}",
        f"at most {kl}" if line.chooses else kl,
        f"{line.length:.1f}",
        *(f"{tokens / 1000:.0f}" if cost.written + cost.trained else "" for tokens in (cost.written, cost.trained)),
        f"{cost.seconds / 60:.0f}" if cost.seconds else "",
        ", ".join(line.alarms),
    ]


def _difference(found: Crossed | None, scale: int, digits: int) -> tuple[str, str]:
    if found is None:
        return "", ""
    return _interval(found, scale, digits, sign="+"), "" if math.isnan(found.p) else f"{found.p:.2g}"


def _interval(found: Crossed, scale: int, digits: int, *, sign: str) -> str:
    mean, low, high = (f"{scale * x:{sign}.{digits}f}" for x in (found.mean, found.low, found.high))
    return mean if math.isnan(found.low) else f"{mean} [{low}, {high}]"


def _families(study: Study) -> str:
    """Gold by family of prompts."""
    names = list(dict.fromkeys(study.families))
    body = []
    for method in study.methods:
        cells = []
        for name in names:
            places = [i for i, family in enumerate(study.families) if family == name]
            cells.append(_interval(crossed([[some[i] for i in places] for some in _gold(method).values()]), 100 if study.verified else 1, 0, sign=""))
        body.append([method.name, *cells])
    return "\n" + _markdown(["method", *names], body)


def _markdown(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    return "".join("| " + " | ".join(row) + " |\n" for row in (head, ["---"] * len(head), *body))


def plots(study: Study, lines: Sequence[Line]) -> dict[str, str]:
    """File name -> picture: gold less the reference's against KL, and against the tokens written and trained."""
    scale, unit = (100, "points") if study.verified else (1, "gold")
    y = f"better than {study.reference}, {unit}"
    moved = [(line, line.against_reference) for line in lines if line.against_reference is not None]
    trails = _trails(study)
    found = {}
    at_kl = [_dot(line.name, line.kl, gain, scale) for line, gain in moved if line.kl is not None]
    chosen = [(line.kl, scale * gain.mean) for line, gain in moved if line.chooses and line.kl is not None]
    by_kl = [[(kl, scale * gold) for kl, _, gold in trail] for trail in trails] + ([[(0.0, 0.0), *chosen]] if chosen else [])
    if at_kl:
        found["kl.svg"] = scatter("kl", at_kl, x=f"KL to {study.reference}, nats an answer", y=y, trails=by_kl)
    tokens = {line.name: (line.cost.written + line.cost.trained) / 1000 for line, _ in moved}
    at_cost = [_dot(line.name, tokens[line.name], gain, scale) for line, gain in moved if tokens[line.name]]
    by_cost = [[(spent / 1000, scale * gold) for _, spent, gold in trail] for trail in trails]
    if at_cost:
        found["compute.svg"] = scatter("compute", at_cost, x="tokens written and trained, thousands", y=y, trails=by_cost)
    return {name: picture(svg) for name, svg in found.items()}


def _dot(name: str, x: float, gain: Crossed, scale: int) -> Dot:
    return Dot(name, x, scale * gain.mean, scale * gain.low, scale * gain.high)


def _trails(study: Study) -> list[list[tuple[float, float, float]]]:
    """Of each method that was looked at, (KL, tokens, gold) of its looks, mean over the seeds that have as many; it begins at what it stands on."""
    found = []
    for method in study.methods:
        seeds = [trail for trail in method.trail.values() if len(trail) > 1]
        looks = zip(*[trail for trail in seeds if len(trail) == len(seeds[0])], strict=True) if seeds else ()
        means = [tuple(fmean(getattr(passed, name) for passed in look) for name in ("kl", "tokens", "gold")) for look in looks]
        before = _spent(method).written + _spent(method).trained - means[-1][1] if means else 0.0
        found += [[(kl, before + tokens, gold) for kl, tokens, gold in means]] if means else []
    return found


def picture(svg: str) -> str:
    """A plot of the report's page as a file of its own: on white, with colours and names of its own."""
    for variable, colour in COLOURS.items():
        svg = svg.replace(variable, colour)
    svg = svg.replace("var(--sans)", "sans-serif").replace(
        "<svg", '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"', 1
    )
    return re.sub(r"(<svg[^>]*>)", r'\1<rect width="100%" height="100%" fill="#ffffff"/>', svg, count=1) + "\n"


def summary(lines: Sequence[Line], worth: Worth | None, paths: Sequence[Path]) -> dict[str, Any]:
    """Everything as one JSON object; what is not known is null."""
    found = {
        "name": "study",
        "runs": {path.name: {key: run.manifest.get(key) for key in MADE_OF} for path in paths for run in [read_run(path)]},
        "judge": None if worth is None else asdict(worth) | {"ranks": worth.ranks},
        "methods": [asdict(line) for line in lines],
    }
    return _finite(found)


def _finite(value: Any) -> Any:
    """JSON knows no nan."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def main() -> int:
    """Writes the files and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="python -m benchmarks.study")
    parser.add_argument("runs", nargs="+", type=Path, help="run directories, one per seed")
    parser.add_argument("--judge", type=Path, help="the run that trained and measured the gold reward model; without it gold is a verifier")
    parser.add_argument("--costs", type=Path, help='JSON: row -> {"written", "trained", "seconds"}, of rows that no stage made')
    parser.add_argument("--to", type=Path, help="folder that the files go into")
    asked = parser.parse_args()
    try:
        costs = json.loads(asked.costs.read_text(encoding="utf-8")) if asked.costs else {}
        study, worth = read_study(asked.runs, costs), worth_of(asked.judge) if asked.judge else None
    except XwinError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    lines = lines_of(study, worth)
    text = table(study, lines, worth)
    if asked.to:
        asked.to.mkdir(parents=True, exist_ok=True)
        files = plots(study, lines) | {"table.md": text, "study.json": json.dumps(summary(lines, worth, asked.runs), indent=1) + "\n"}
        for name, content in files.items():
            (asked.to / name).write_text(content, encoding="utf-8")
    print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
