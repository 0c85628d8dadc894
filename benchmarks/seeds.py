"""Several runs of one recipe with different seeds, as one table: `python -m benchmarks.seeds runs/tiny-s0 runs/tiny-s1 runs/tiny-s2 [--json]`.

Reads `samples.jsonl` of each run's evaluate stage: every test prompt with the verdict on every model's answer. The prompts of different
seeds are different prompts, so pooling them is pooling pairs: an exact McNemar test over all prompts of all runs.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from xwin.errors import UserError, XwinError
from xwin.run.facts import facts
from xwin.run.manifest import hardware, versions
from xwin.run.statistics import paired, proportion

Verdicts = Mapping[str, Sequence[bool]]
"""Model -> whether its answer to each test prompt was accepted."""


def verdicts(run: Path) -> dict[str, list[bool]]:
    """What the evaluate stage of a run found.

    Raises:
        UserError: the run has no evaluate stage that finished.
    """
    found = sorted(run.glob("stages/*/samples.jsonl"))
    if not found:
        raise UserError("has no finished evaluate stage", str(run), "run its recipe to the end first")
    rows = [json.loads(line) for line in found[0].read_text(encoding="utf-8").splitlines()]
    return {model: [row["answers"][model]["passed"] for row in rows] for model in rows[0]["answers"]}


def compare(runs: Mapping[str, Verdicts], first: str, second: str) -> dict[str, object]:
    """Second against first, pooled over runs: difference of accuracies with a 95 % interval, p of the exact McNemar test, n."""
    a = [x for run in runs.values() for x in run[first]]
    b = [x for run in runs.values() for x in run[second]]
    test = paired(a, b)
    return {"first": first, "second": second, "difference": test.difference, "low": test.low, "high": test.high, "p": test.p, "n": test.n}


def summary(paths: Sequence[Path]) -> dict[str, object]:
    """Everything as one JSON object."""
    runs = {path.name: verdicts(path) for path in paths}
    models = list(next(iter(runs.values())))
    pooled = {}
    for model in models:
        passed = [x for run in runs.values() for x in run[model]]
        interval = proportion(sum(passed), len(passed))
        pooled[model] = {"accuracy": interval.value, "low": interval.low, "high": interval.high, "n": interval.n}
    return {
        "name": "seeds",
        "machine": hardware(),
        "versions": versions(),
        "seeds": {name: {model: sum(v) / len(v) for model, v in run.items()} for name, run in runs.items()},
        "pooled": pooled,
        "paired": [compare(runs, a, b) for a, b in (("base", "sft"), ("sft", "best"), ("sft", "sft2"), ("sft2", "ppo"), ("sft", "ppo"))],
        "tables": {path.name: facts(path)["table"] for path in paths},
        "seconds": {path.name: _seconds(path) for path in paths},
    }


def _seconds(run: Path) -> dict[str, float]:
    """Stage -> seconds, as its manifest says."""
    manifests = {path.parent.name: json.loads(path.read_text(encoding="utf-8")) for path in sorted(run.glob("stages/*/manifest.json"))}
    return {name: manifest["seconds"] for name, manifest in manifests.items() if manifest.get("seconds") is not None}


def main() -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="run directories of one recipe, one per seed")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    try:
        found = summary(arguments.runs)
    except XwinError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    if arguments.json:
        print(json.dumps(found, indent=1))
        return 0
    for name, run in found["seeds"].items():  # type: ignore[attr-defined]
        print(f"{name:16}" + "  ".join(f"{model} {value:.1%}" for model, value in run.items()))
    for test in found["paired"]:  # type: ignore[attr-defined]
        print("{second} - {first}: {difference:+.1%} [{low:+.1%}, {high:+.1%}], p = {p:.2g}, n = {n}".format(**test))
    return 0


if __name__ == "__main__":
    sys.exit(main())
