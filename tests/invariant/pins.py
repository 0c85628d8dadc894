"""Trajectories of 50 steps of small recipes, as numbers in a file: `python -m tests.invariant.pins NAME ...` writes those of NAME anew.

When numbers moved, results of users will differ for the same recipe, so the `revision` of the stage or the objective has to be raised first: it is
part of every fingerprint, and old results are not taken for new ones. The command refuses to write other numbers under the old revisions.
"""

from __future__ import annotations

import io
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from xwin.recipe.execute import run
from xwin.recipe.plan import revisions
from xwin.recipe.schema import read_recipe
from xwin.run.console import Console

from . import reward

HERE = Path(__file__).parent
STEPS = 50
POINT, MEAN = 3e-4, 3e-5
"""Largest residual of one step, and of the mean over all steps; relative to the mean size of the pinned curve.

Processors differ in the order of sums, the width of vectors, fused multiplication: a number of a step moves by a few 1e-7 of itself, and AdamW,
which divides by the root of the second moment, carries such differences along and lets them grow. Seen over all curves: up to 4e-6 at one step and
2e-7 in the mean between AVX-512 and plain SSE kernels; up to 3e-5 and 2e-6 from weights that were moved by 1e-6 of themselves at random, some ten
times what a processor does. The bounds are ten times that. A change of the mathematics (a weight, a mask, a schedule off by one step) pushes the
steps to one side, and shows in the mean long before a single step stands out.
"""

WORDS = ("river", "stone", "cloud", "lamp", "seven", "green", "north", "paper", "salt", "wheel")


def _say(k: int) -> str:
    """A text that is a function of k, of 1 to 6 words."""
    return " ".join(WORDS[(k * 7 + j * (3 + k % 4)) % len(WORDS)] for j in range(1 + k % 6))


def _prompt(k: int) -> list[dict[str, str]]:
    return [{"role": "system", "content": "Be short."}, {"role": "user", "content": f"Say {_say(k + 5)}!"}]


CHATS = [{"id": f"c{k}", "messages": [*_prompt(k), {"role": "assistant", "content": _say(k)}]} for k in range(66)]
PAIRS = [
    {
        "id": f"p{k}",
        "prompt": _prompt(k),
        "chosen": {"role": "assistant", "content": _say(k)},
        "rejected": {"role": "assistant", "content": _say(k).upper()},
    }
    for k in range(52)
]
PROMPTS = [{"id": f"q{k}", "messages": _prompt(k)} for k in range(40)]
OPTIM = {"lr": 5e-4, "warmup": 0.1, "weight_decay": 0.1}
ROWS = {"init": "base", "tokens_per_step": 256, "tokens_per_batch": 512, "optim": OPTIM}
ROUNDS = {
    "kind": "rl",
    "init": "base",
    "prompts": "./prompts.jsonl",
    "scorer": {"kind": "function", "function": f"{reward.__name__}:letters"},
    "steps": STEPS,
    "prompts_per_step": 2,
    "n": 2,
    "sampling": {"max_tokens": 5},
    "optim": {"lr": 2e-4},
    "minibatches": 1,
}
STAGES: Mapping[str, Mapping[str, Any]] = {
    "sft": {"kind": "sft", "data": "./chats.jsonl", "epochs": 2, "template": "chatml", **ROWS},
    "reward_model": {"kind": "reward_model", "data": "./pairs.jsonl", **ROWS},
    "dpo": {"kind": "preference", "data": "./pairs.jsonl", "objective": "dpo", **ROWS},
    "ppo": {**ROUNDS, "critic": {"init": "base", "optim": {"lr": 1e-3}}},
    "grpo": {**ROUNDS, "objective": "grpo", "credit": "group", "kl": None},
}
METRICS: Mapping[str, Sequence[str]] = {
    "sft": ("loss", "grad_norm"),
    "reward_model": ("loss", "grad_norm"),
    "dpo": ("loss", "chosen_logp", "rejected_logp", "grad_norm"),
    "ppo": ("reward", "entropy", "critic/loss", "kl_k3"),
    "grpo": ("reward", "entropy", "grad_norm"),
}


@dataclass(frozen=True)
class Trajectory:
    """What a stage did in its first 50 steps."""

    revisions: Mapping[str, Sequence[str | int]]
    """Place in the settings -> the kind there and its revision."""
    curves: Mapping[str, Sequence[float]]
    """Metric -> its value at each step."""

    @classmethod
    def pinned(cls, name: str) -> Trajectory:
        """The one in the file."""
        return cls(**json.loads((HERE / f"{name}.json").read_text(encoding="utf-8")))

    def write(self, name: str) -> None:
        """Into the file."""
        rows = [f'    "{metric}": {json.dumps(list(curve))}' for metric, curve in self.curves.items()]
        text = f'{{\n  "revisions": {json.dumps(self.revisions)},\n  "curves": {{\n' + ",\n".join(rows) + "\n  }\n}\n"
        (HERE / f"{name}.json").write_text(text, encoding="utf-8")


def trajectory(name: str, folder: Path, **changes: Any) -> Trajectory:
    """Runs the recipe `name` in an empty folder; `changes` are settings that must not matter."""
    for file, rows in {"chats": CHATS, "pairs": PAIRS, "prompts": PROMPTS}.items():
        (folder / f"{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recipe = {"name": "pinned", "models": {"base": {"path": "random:2x64", "template": "chatml"}}, "stages": {name: {**STAGES[name], **changes}}}
    path = folder / "pinned.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    run(path, (), folder / "run", Console(stream=io.StringIO()))
    found: dict[str, list[float]] = {metric: [] for metric in METRICS[name]}
    for line in (folder / "run" / "stages" / name / "events.jsonl").read_text(encoding="utf-8").splitlines():
        event = json.loads(line)
        if event["name"] in found and event["step"] < STEPS:
            found[event["name"]].append(float(f"{event['value']:.9g}"))
    return Trajectory(revisions(read_recipe(path).recipe.stages[name]), found)


def residuals(found: Sequence[float], pinned: Sequence[float]) -> tuple[float, float]:
    """(largest, absolute value of the mean) of found - pinned, relative to the mean size of what is pinned."""
    size = sum(map(abs, pinned)) / len(pinned)
    gaps = [(a - b) / size for a, b in zip(found, pinned, strict=True)]
    return max(map(abs, gaps)), abs(sum(gaps)) / len(gaps)


def moved(found: Trajectory, pinned: Trajectory) -> list[str]:
    """The curves that are not the pinned ones, in words."""
    out = []
    for metric, curve in pinned.curves.items():
        largest, mean = residuals(found.curves[metric], curve)
        if not (largest <= POINT and mean <= MEAN):
            out.append(f"{metric}: residuals of up to {largest:.2g} (allowed {POINT:g}), their mean {mean:.2g} (allowed {MEAN:g})")
    return out


def main(names: Sequence[str]) -> None:
    """Writes the trajectories of these names, or of all."""
    for name in names or STAGES:
        with tempfile.TemporaryDirectory() as folder:
            found = trajectory(name, Path(folder))
        before = Trajectory.pinned(name) if (HERE / f"{name}.json").exists() else None
        if before is not None and moved(found, before) and before.revisions == found.revisions:
            sys.exit(f"{name} moved: raise `revision` of the kind that changed, one of {json.dumps(found.revisions)}, then write it anew")
        found.write(name)
        print(f"{name}: {', '.join(f'{metric} {curve[0]:.4g} -> {curve[-1]:.4g}' for metric, curve in found.curves.items())}")


if __name__ == "__main__":
    main(sys.argv[1:])
