"""One worker and two, and clusters on paper: `python -m benchmarks.scaling [--quick]`. Prints one JSON object; needs the extra `cluster`.

Measured, on this machine: SFT of every parameter of a random Llama shape of 8 layers and width 256, bf16 products over fp32 weights, 2,048 tokens a
step in batches of 512. One worker is this process with one thread; two are Ray actors with one thread each, so that both have one core a worker.
Bytes are what the loopback interface carried during the steps, everything included; beside them what recipe/_traffic.py says.

On paper: `xwin.recipe.scaling.cell` for 8, 64 and 512 H100s; see docs/scaling.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

THREADS = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
LENGTH, TOKENS, BATCH, VOCABULARY = 256, 2048, 512, 8192
LAYERS, WIDTH, INNER, HEADS = 8, 256, 704, 4
SHAPE = {"hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "vocab_size": VOCABULARY}


def model(folder: Path) -> None:
    """Writes the random model."""
    from transformers import LlamaConfig, LlamaForCausalLM

    LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=True)).save_pretrained(folder)  # type: ignore[arg-type]


def measured(learner: Any, steps: int) -> dict[str, float]:
    """Tokens a second and bytes a step: medians over the steps after the first."""
    import numpy as np

    from xwin.data.batch import Sample, pack

    draw, took, sent = np.random.default_rng(0), [], []
    for step in range(steps + 1):
        rows = [tuple(draw.integers(0, VOCABULARY, LENGTH).tolist()) for _ in range(TOKENS // LENGTH)]
        batches = pack([Sample(f"{step}/{i}", row, (False, *(True,) * (LENGTH - 1))) for i, row in enumerate(rows)], tokens=BATCH)
        before, begun = loopback(), time.perf_counter()
        learner.step(batches)
        took.append(time.perf_counter() - begun)
        sent.append(loopback() - before)
    return {"tokens_per_second": round(TOKENS / statistics.median(took[1:]), 1), "bytes_per_step": statistics.median(sent[1:])}


def loopback() -> int:
    """Bytes that processes of this machine have sent each other over its network so far."""
    return sum(counters.bytes_sent for name, counters in psutil.net_io_counters(pernic=True).items() if name.startswith("lo"))


def measurements(steps: int) -> dict[str, Any]:
    """Of one worker and of two."""
    from xwin.distributed.cluster import Cluster
    from xwin.distributed.workers import Workers
    from xwin.distributed.world import World
    from xwin.learning.blueprint import Blueprint
    from xwin.learning.group import SharedLearner
    from xwin.learning.optim import Optim
    from xwin.models.tuning import Full
    from xwin.objectives.sft import Sft

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model(folder)
        blueprint = Blueprint(folder, "language", "bfloat16", Full(), Sft(), Optim(lr=1e-4, schedule="constant", warmup=0), steps + 1)
        one = measured(blueprint.build(World.alone()), steps)
        print("one worker:", one, file=sys.stderr)
        with Workers(Cluster(2, folder), lambda line: print(line, file=sys.stderr)) as workers:
            two = measured(SharedLearner.build(workers, blueprint), steps)
        print("two workers:", two, file=sys.stderr)
    return {"one": one, "two": two | {"bytes_by_formula": formula()}, "ratio": round(two["tokens_per_second"] / one["tokens_per_second"], 3)}


def formula() -> float:
    """Bytes that come into both workers in a step; see recipe/_traffic.py."""
    from xwin.models._llama import LlamaShape
    from xwin.models.tuning import Full
    from xwin.recipe._networks import NetworkShape
    from xwin.recipe._traffic import moved
    from xwin.recipe.estimate import Held
    from xwin.stages._work import Use

    shape = LlamaShape(LAYERS, WIDTH, INNER, HEADS, HEADS, WIDTH // HEADS, VOCABULARY, 0, 0.0, 0.0)
    held = Held(Use("policy", "", tune=Full(), trained=1), NetworkShape(shape, tied=True), "bfloat16")
    return 2 * moved(held, TOKENS // BATCH // 2, 0, 2)


def on_paper() -> list[dict[str, Any]]:
    """Every cell of the table of docs/scaling.md."""
    from xwin.recipe.scaling import CLUSTERED, CLUSTERS, SHAPES, cell

    found = [cell(name, method, count) for name in SHAPES for method in CLUSTERED for count in CLUSTERS]
    return [{"model": c.model, "method": c.method, "gpus": c.count, "said": c.text()} for c in found]


def main() -> None:
    """See the docstring of this module."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling")
    parser.add_argument("--quick", action="store_true", help="three steps instead of ten")
    parser.add_argument("--json", action="store_true", help="the same: it always prints JSON")
    asked = parser.parse_args()
    os.environ.update(THREADS)
    from xwin.run.manifest import hardware, versions

    found = {"name": "scaling", "date": datetime.now(UTC).date().isoformat(), "machine": hardware(), "versions": versions()}
    print(json.dumps(found | {"measured": measurements(3 if asked.quick else 10), "on_paper": on_paper()}, indent=2))


if __name__ == "__main__":
    main()
