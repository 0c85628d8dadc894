"""How time and memory of a step grow: `python -m benchmarks.growth [--plot FILE.svg]`. Prints one JSON object.

A random Llama shape of 8 layers and width 256, every parameter trained, bf16 products over fp32 weights; each point is a process of its own, its time
the median of three steps after the first, its memory what the process held at most over what it held before the first step.
    tokens      rows of 256 tokens, a vocabulary of 8,192: 512 to 8,192 tokens a step, in batches of as many
    vocabulary  2,048 tokens a step, 2,048 to 65,536 entries: what grows is the embedding, its gradient and moments, and no [tokens, vocabulary]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.side_by_side import peak_mb
from xwin.run.manifest import hardware

LENGTH = 256
TOKENS = (512, 1024, 2048, 4096, 8192)
VOCABULARY = (2048, 8192, 16384, 32768, 65536)
STEPS = 4


def measure(tokens: int, vocabulary: int) -> dict[str, float]:
    """One point, in this process."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from xwin.data.batch import Sample, pack
    from xwin.distributed.world import World
    from xwin.learning.learner import Learner
    from xwin.learning.optim import Optim
    from xwin.models.causal import load
    from xwin.models.tuning import Full
    from xwin.objectives.sft import Sft

    shape = LlamaConfig(
        vocab_size=vocabulary, hidden_size=256, intermediate_size=704, num_hidden_layers=8, num_attention_heads=4, tie_word_embeddings=True
    )
    draw = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        LlamaForCausalLM(shape).save_pretrained(folder)
        model = load(Path(folder), head="language", tuning=Full(), dtype="bfloat16")
        learner = Learner(model, Path(folder), World.alone(), Sft(), Optim(lr=1e-4, schedule="constant", warmup=0), STEPS)
        before, took = peak_mb(), []
        for step in range(STEPS):
            rows = [tuple(draw.integers(0, vocabulary, LENGTH).tolist()) for _ in range(tokens // LENGTH)]
            samples = [Sample(f"{step}/{i}", row, (False, *(True,) * (LENGTH - 1))) for i, row in enumerate(rows)]
            begun = time.perf_counter()
            learner.step(pack(samples, tokens=tokens))
            took.append(time.perf_counter() - begun)
    return {"tokens": tokens, "vocabulary": vocabulary, "seconds": statistics.median(took[1:]), "mb": peak_mb() - before}


def point(tokens: int, vocabulary: int) -> dict[str, Any]:
    """One point, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.growth", "--point", str(tokens), str(vocabulary)]
    found: dict[str, Any] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout.splitlines()[-1])
    print(found, file=sys.stderr)
    return found


def plot(found: dict[str, Any], to: Path) -> None:
    """Both sweeps, time and memory."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(12, 3.4), layout="constrained")
    panels = (("tokens", "seconds", "seconds a step"), ("tokens", "mb", "MB beyond the model"), ("vocabulary", "mb", "MB beyond the model"))
    for axis, (sweep, key, label) in zip(axes, panels, strict=True):
        rows = found[sweep]
        axis.plot([row[sweep] for row in rows], [row[key] for row in rows], marker="o")
        if sweep == "vocabulary":
            whole = [row["tokens"] * row["vocabulary"] * 4 / 1e6 for row in rows]
            axis.plot([row[sweep] for row in rows], whole, linestyle="--", label="one fp32 [tokens, vocabulary]")
            axis.legend()
        axis.set(xlabel="tokens a step" if sweep == "tokens" else "vocabulary", ylabel=label, ylim=(0, None))
        axis.grid(visible=True, alpha=0.3)
    figure.savefig(to)


def main() -> None:
    """See the docstring of this module."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth")
    parser.add_argument("--plot", type=Path, help="where the picture goes, SVG or PNG")
    parser.add_argument("--point", nargs=2, type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.point:
        print(json.dumps(measure(*asked.point)))
        return
    sweeps = {"tokens": [point(t, 8192) for t in TOKENS], "vocabulary": [point(2048, v) for v in VOCABULARY]}
    found = {"name": "growth", "date": datetime.now(UTC).date().isoformat(), "machine": hardware(), **sweeps}
    if asked.plot:
        plot(found, asked.plot)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
