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

    @property
    def verified(self) -> bool:
        """Whether gold says right or wrong and nothing between."""
        return all(answer.gold in {0.0, 1.0} for method in self.methods for some in method.answers.values() for answer in some)


def read_study(paths: Sequence[Path], costs: Mapping[str, Mapping[str, float]]) -> Study:
    """Reads finished runs of one recipe over several seeds; a run of the same seed adds the rows that the first one lacks.

    Args:
        paths: run directories.
        costs: what rows cost that no stage of a run made: row -> {"written", "trained", "seconds"}.

    Raises:
        UserError: a path is no run, no evaluate stage has finished, or two runs were tested on different prompts.
    """
    methods: dict[str, Method] = {}
    first: tuple[list[str], list[str], str] | None = None
    for path in paths:
        run = read_run(path)
        report = next((stage for stage in run.stages if stage.kind == "evaluate" and stage.status == "published" and stage.samples), None)
        if report is None:
            raise UserError("has no finished evaluate stage with prompts", str(path), "run its recipe to the end first")
        settings = _manifest(path, report.name)["settings"]
        rows = _lines(path / "stages" / report.name / "samples.jsonl")
        asked = ([row["prompt"] for row in rows], [row["family"] for row in rows], settings["reference"])
        if first is not None and asked[0] != first[0]:
            raise UserError(f"was tested on other prompts than {paths[0]}", str(path), "compare runs that read one data run")
        first = first or asked
        stages = {stage.name: stage for stage in run.stages}
        origin = next(c["model"] for c in settings["contenders"] if c["name"] == settings["reference"])
        for contender in settings["contenders"]:
            method = methods.setdefault(contender["name"], Method(contender["name"], contender["n"]))
            if (seed := run.seed or 0) not in method.answers:
                method.answers[seed] = [_answer(row["answers"][contender["name"]]) for row in rows]
                method.cost[seed] = _cost(path, report.name, stages, contender, origin) + Cost(**costs.get(contender["name"], {}))
                own = stages.get(contender["model"].partition("/")[0])
                if own is not None and contender["n"] == 1:
                    method.alarms[seed] = [alarm.metric for alarm in own.alarms]
                    method.trail[seed] = _trail(path, own)
    if first is None:
        raise UserError("no run is named", "", "name run directories")
    return Study(first[2], first[0], first[1], list(methods.values()))


def _answer(row: Mapping[str, Json]) -> Answer:
    return Answer(row["gold"], row["length"], row["score"], row.get("kl"))


def _cost(path: Path, report: str, stages: Mapping[str, StageFacts], contender: Mapping[str, Json], origin: str) -> Cost:
    """Of every stage that the row stands on and the reference does not; of a row that chooses among n answers also what it wrote for the test."""
    chooses = contender["n"] > 1
    refs = [contender["model"], *(_models(contender["scorer"]) if chooses else [])]
    needed = _behind(path, stages, refs) - _behind(path, stages, [origin])
    whole = sum((_of_stage(path, stages[name]) for name in sorted(needed)), Cost())
    written = _written(path / "stages" / report / f"rollouts-{contender['name']}.jsonl") if chooses else {}
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
            left += [ref.partition("/")[0] for ref in _manifest(path, name)["inputs"]]
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
    early = bool(looks) and _manifest(path, stage.name)["settings"]["eval_every"] > 1
    found = []
    for look in looks:
        begun = early and look == looks[0]
        tokens = 0.0 if begun else sum(at.get((step, "tokens"), 0.0) + written.get(step, 0) for step in range(look + 1))
        found.append(Passed(0.0 if begun else at.get((look, "kl"), math.nan), tokens, at[look, "validation_gold"] - at[looks[0], "validation_gold"]))
    return found


def _manifest(path: Path, stage: str) -> Mapping[str, Json]:
    return json.loads((path / "stages" / stage / "manifest.json").read_text(encoding="utf-8"))


def _rows(path: Path) -> Iterator[Json]:
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def _lines(path: Path) -> list[Json]:
    return list(_rows(path))
