"""What the run folders of a study say: every method's answers to the test prompts, seed by seed, and what the method cost."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xwin.errors import UserError
from xwin.run.facts import StageFacts, read_run

Json = Any


@dataclass(frozen=True, slots=True)
class Answer:
    """A method's answer to one test prompt."""

    gold: float
    length: float
    """Tokens."""
    proxy: float | None
    """Score of the reward model that the method learned from, where the row has one."""
    kl: float | None
    """Nats to the reference."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What was spent beyond the reference, SFT.  Example: Cost(36_000, 88_000, 415.0)"""

    written: float = 0.0
    """Tokens sampled to learn from; looks at validation prompts are not counted."""
    trained: float = 0.0
    """Tokens of optimizer steps, prompts included."""
    seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.written + other.written, self.trained + other.trained, self.seconds + other.seconds)


@dataclass(frozen=True)
class Passed:
    """Where a method stood when it was looked at while it learned."""

    kl: float
    tokens: float
    """Written and trained so far, in this stage alone."""
    gold: float
    """Less that of the first look."""


@dataclass(frozen=True)
class Method:
    """A row of the table, by seed."""

    name: str
    n: int
    """Answers that it chooses one of."""
    answers: dict[int, list[Answer]] = field(default_factory=dict)
    cost: dict[int, Cost] = field(default_factory=dict)
    trail: dict[int, list[Passed]] = field(default_factory=dict)
    alarms: dict[int, list[str]] = field(default_factory=dict)
    """Metrics whose guards went off."""


@dataclass(frozen=True)
class Study:
    """All runs together."""

    reference: str
    prompts: Sequence[str]
    families: Sequence[str]
    """Of each prompt."""
    methods: Sequence[Method]
    proxies: Mapping[int, float]
    """Seed -> share of held-out pairs that the reward model of its methods ranks right, where there is one that was asked."""

    @property
    def verified(self) -> bool:
        """Whether gold says right or wrong and nothing between."""
        return all(answer.gold in {0.0, 1.0} for method in self.methods for some in method.answers.values() for answer in some)


@dataclass(frozen=True)
class Report:
    """The first evaluate stage of a run, with prompts of its own, and the run around it."""

    path: Path
    seed: int
    name: str
    stages: Mapping[str, StageFacts]
    settings: Mapping[str, Json]
    rows: Sequence[Json]
    """Of samples.jsonl."""

    @classmethod
    def of(cls, path: Path) -> Report:
        """Of a run directory.

        Raises:
            UserError: the path is no run, or no such stage has finished.
        """
        run = read_run(path)
        stage = next((stage for stage in run.stages if stage.kind == "evaluate" and stage.status == "published" and stage.samples), None)
        if stage is None:
            raise UserError("has no finished evaluate stage with prompts", str(path), "run its recipe to the end first")
        rows = list(_rows(path / "stages" / stage.name / "samples.jsonl"))
        return cls(path, run.seed or 0, stage.name, {s.name: s for s in run.stages}, manifest_of(path, stage.name)["settings"], rows)

    def proxy(self) -> float | None:
        """Share of held-out pairs that the reward model of the rows ranks right; None where there is none, or it was not asked."""
        named = [name for c in self.settings["contenders"] for name in _models(c["scorer"]) if name in self.stages]
        return self.stages[named[0]].metrics.get("final_accuracy") if named else None


def read_study(paths: Sequence[Path], costs: Mapping[str, Mapping[str, float]]) -> Study:
    """Reads finished runs of one recipe over several seeds; a run of the same seed adds the rows that the first one lacks.

    Args:
        paths: run directories, at least one.
        costs: what rows cost that no stage of a run made: row -> {"written", "trained", "seconds"}.

    Raises:
        UserError: a path is no run, no evaluate stage has finished, or two runs were tested on different prompts.
    """
    reports = [Report.of(path) for path in paths]
    first, prompts = reports[0], [row["prompt"] for row in reports[0].rows]
    methods: dict[str, Method] = {}
    for report in reports:
        if [row["prompt"] for row in report.rows] != prompts:
            raise UserError(f"was tested on other prompts than {first.path}", str(report.path), "compare runs that read one data run")
        for contender in report.settings["contenders"]:
            method = methods.setdefault(contender["name"], Method(contender["name"], contender["n"]))
            if report.seed not in method.answers:
                _add(method, report, contender, Cost(**costs.get(contender["name"], {})))
    proxies = {report.seed: accuracy for report in reports if (accuracy := report.proxy()) is not None}
    return Study(first.settings["reference"], prompts, [row["family"] for row in first.rows], list(methods.values()), proxies)


def _add(method: Method, report: Report, contender: Mapping[str, Json], more: Cost) -> None:
    """What a run says of a method."""
    seed, own = report.seed, report.stages.get(contender["model"].partition("/")[0])
    method.answers[seed] = [_answer(row["answers"][method.name]) for row in report.rows]
    method.cost[seed] = _cost(report, contender) + more
    if own is not None and method.n == 1:
        method.alarms[seed] = [alarm.metric for alarm in own.alarms]
        method.trail[seed] = _trail(report.path, own)


def _answer(row: Mapping[str, Json]) -> Answer:
    return Answer(row["gold"], row["length"], row["score"], row.get("kl"))


def _cost(report: Report, contender: Mapping[str, Json]) -> Cost:
    """Of every stage that the row stands on but for the reference's and the judge's; where it chooses one of n also what it wrote for the test."""
    chooses, path = contender["n"] > 1, report.path
    origin = next(c["model"] for c in report.settings["contenders"] if c["name"] == report.settings["reference"])
    refs = [contender["model"], *(_models(contender["scorer"]) if chooses else [])]
    needed = _behind(path, report.stages, refs) - _behind(path, report.stages, [origin, *_models(report.settings["gold"])])
    whole = sum((_of_stage(path, report.stages[name]) for name in sorted(needed)), Cost())
    written = _written(path / "stages" / report.name / f"rollouts-{contender['name']}.jsonl") if chooses else {}
    return whole + Cost(written=sum(written.values()))


def _models(scorer: Mapping[str, Json] | None) -> list[str]:
    """The stages that a scorer names."""
    model = (scorer or {}).get("model") or []
    return [model] if isinstance(model, str) else list(model)


def _behind(path: Path, stages: Mapping[str, StageFacts], refs: Sequence[str]) -> set[str]:
    """The stages that these references name, and all before them."""
    found: set[str] = set()
    left = [ref.partition("/")[0] for ref in refs]
    while left:
        name = left.pop()
        if name in stages and name not in found:
            found.add(name)
            left += [ref.partition("/")[0] for ref in manifest_of(path, name)["inputs"]]
    return found


def _of_stage(path: Path, stage: StageFacts) -> Cost:
    """A stage that was killed counts the steps it took, whichever attempt took them; another one its last attempt."""
    trained, steps = (sum(e.value for e in stage.events if e.name == name) for name in ("tokens", "seconds"))
    return Cost(sum(_written(path / "stages" / stage.name / "rollouts.jsonl").values()), trained, max(stage.seconds, steps))


def _written(path: Path) -> dict[int, int]:
    """Step -> tokens sampled in it; a stage without steps has one."""
    found: dict[int, int] = {}
    for row in _rows(path) if path.exists() else ():
        found[row.get("step", 0)] = found.get(row.get("step", 0), 0) + len(row["completion"])
    return found


def _trail(path: Path, stage: StageFacts) -> list[Passed]:
    """The looks by gold, from the one before the first round on; where the first round ends with a look too, that one takes its place."""
    at = {(e.step, e.name): e.value for e in stage.events}
    looks = sorted(step for step, name in at if name == "validation_gold")
    written = _written(path / "stages" / stage.name / "rollouts.jsonl")
    early = bool(looks) and manifest_of(path, stage.name)["settings"]["eval_every"] > 1
    found = []
    for look in looks:
        begun = early and look == looks[0]
        tokens = 0.0 if begun else sum(at.get((step, "tokens"), 0.0) + written.get(step, 0) for step in range(look + 1))
        found.append(Passed(0.0 if begun else at.get((look, "kl"), math.nan), tokens, at[look, "validation_gold"] - at[looks[0], "validation_gold"]))
    return found


def manifest_of(path: Path, stage: str) -> Mapping[str, Json]:
    """What a stage of a run directory says of itself."""
    return json.loads((path / "stages" / stage / "manifest.json").read_text(encoding="utf-8"))


def _rows(path: Path) -> Iterator[Json]:
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)
