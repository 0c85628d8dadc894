"""Training steps on one GPU: tokens/s and MFU of our learner, and of TRL's SFTTrainer where it is installed. `python -m benchmarks.gpu [--json]`.

SmolLM2-135M (trained weights), and Llama shapes of 1 and 7 billion parameters (random weights; a step takes as long), every parameter and LoRA of
rank 16. Rows of random ids of 64 to 2,048 tokens, every token trained, 16,384 tokens a step, bf16; layers are computed again in the backward pass
from 1 billion parameters on, on both sides. The rate is of real tokens, over all steps but the first two; `peak_mb` is what torch allocated on the
device. MFU = FLOPs / seconds / the data sheet's rate in bf16, where the FLOPs are those that the mathematics needs (Chowdhery et al. 2022,
arXiv:2204.02311, appendix B; what is computed again is not counted): 6 for each weight of a matrix and token, 4 where the weight is frozen.
What does not fit into the memory of the device says so. It refuses to run without a GPU. Needs `pip install 'xwin-lm[bench]'` for the peer.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import metadata, util
from typing import Any

import numpy as np
import torch

from benchmarks.side_by_side import Measured
from benchmarks.smollm2 import LR, SEED, Clock, folder, trainer_settings

SHAPES: Mapping[str, Mapping[str, int]] = {
    "135m": {},
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8},
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32},
}
"""What config.json of SmolLM2 is changed to. 1b has the body of Llama 3.2 1B, 7b that of Llama 2 7B; both a vocabulary of 32,000."""
TUNES = ("full", "lora")
SIDES = ("ours", "TRL padded", "TRL packed, bfd")
STEP, PACK = 16384, 8192
"""Tokens of an optimizer step, and of a batch."""


def device_name() -> str:
    """The GPU, as the table of `xwin plan --gpu` calls it."""
    if not torch.cuda.is_available():
        sys.exit("benchmarks.gpu measures on a GPU, and torch finds none on this machine")
    return torch.cuda.get_device_name().lower().removeprefix("nvidia ").split()[0]


def rows(count: int, vocabulary: int) -> list[list[list[int]]]:
    """Random ids of each of `count` steps, row by row."""
    draw = np.random.default_rng(SEED)
    found: list[list[list[int]]] = []
    for _ in range(count):
        left, step = STEP, []
        while left >= 64:
            size = min(int(draw.lognormal(6.0, 0.8)) + 64, 2048, left)
            step.append(draw.integers(3, vocabulary, size).tolist())
            left -= size
        found.append(step)
    return found


def network_of(shape: str, dtype: torch.dtype, attention: str) -> Any:
    """The model of a shape on the CPU."""
    from transformers import AutoConfig, AutoModelForCausalLM

    if shape == "135m":
        return AutoModelForCausalLM.from_pretrained(folder(), dtype=dtype, attn_implementation=attention)
    config = AutoConfig.from_pretrained(folder())
    change = {**SHAPES[shape], "head_dim": SHAPES[shape]["hidden_size"] // 32, "vocab_size": 32000, "tie_word_embeddings": False}
    for name, value in change.items():
        setattr(config, name, value)
    return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)


def flops(steps: Sequence[Sequence[Sequence[int]]], config: Any, tune: str) -> float:
    """Of these steps, forward and backward."""
    d, layers = config.hidden_size, config.num_hidden_layers
    heads, shared = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    weights = layers * (d * (2 * heads + 2 * shared) + 3 * d * config.intermediate_size) + config.vocab_size * d
    sizes = [len(row) for step in steps for row in step]
    return (6.0 if tune == "full" else 4.0) * weights * sum(sizes) + 6.0 * layers * heads * sum(size**2 for size in sizes)


def ours(shape: str, tune: str, count: int) -> Measured:
    """The learner, on packed batches."""
    from xwin.data.batch import Sample, pack
    from xwin.distributed.world import World
    from xwin.learning.learner import Learner
    from xwin.learning.optim import Optim
    from xwin.models.attention import NAME
    from xwin.models.causal import PackedModel
    from xwin.models.lean import slim
    from xwin.models.recompute import recompute
    from xwin.models.tuning import Full, LoRA
    from xwin.objectives.sft import Sft

    network = network_of(shape, torch.float32, NAME)
    (Full() if tune == "full" else LoRA(rank=16)).apply(network)
    slim(network, torch.bfloat16)
    if shape != "135m":
        recompute(network)
    model = PackedModel(network, None, torch.bfloat16)
    learner = Learner(model, folder(), World.alone(), Sft(), Optim(lr=LR, schedule="constant", warmup=0), count)
    steps, clock = rows(count, network.config.vocab_size), Clock()
    for number, step in enumerate(steps):
        samples = [Sample(f"{number}/{k}", tuple(row), (False, *(True,) * (len(row) - 1))) for k, row in enumerate(step)]
        learner.step(pack(samples, tokens=PACK))
        torch.cuda.synchronize()
        clock.tick(sum(map(len, step)))
    return measured(clock, steps, network.config, tune)


def trl(shape: str, tune: str, count: int, side: str) -> Measured:
    """The peer, each row padded to the longest of its step, or rows laid end to end."""
    from datasets import Dataset, disable_progress_bars
    from peft import LoraConfig
    from transformers import AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    disable_progress_bars()
    network = network_of(shape, torch.float32 if tune == "full" else torch.bfloat16, "sdpa")
    steps, packing = rows(count, network.config.vocab_size), side != "TRL padded"
    each = STEP // PACK if packing else max(map(len, steps))
    clock = Clock()
    with tempfile.TemporaryDirectory() as out:
        given = trainer_settings(out, each, count) | {"use_cpu": False, "gradient_checkpointing": shape != "135m"}
        settings = SFTConfig(**given, max_length=PACK, packing=packing, packing_strategy="bfd")
        table = Dataset.from_list([{"input_ids": row, "labels": row} for step in steps for row in step])
        adapters = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear") if tune == "lora" else None
        tokenizer = AutoTokenizer.from_pretrained(folder())
        trainer = SFTTrainer(network, settings, train_dataset=table, processing_class=tokenizer, peft_config=adapters)
        sizes = [len(row) for row in trainer.train_dataset["input_ids"]]

        class Tick(TrainerCallback):
            def on_step_end(self, *_: Any, **__: Any) -> None:
                torch.cuda.synchronize()
                clock.tick(sum(sizes[len(clock.ends) * each : (len(clock.ends) + 1) * each]))

        trainer.add_callback(Tick())
        trainer.train()
    return measured(clock, steps, network.config, tune)


def measured(clock: Clock, steps: Sequence[Any], config: Any, tune: str) -> Measured:
    """Rate, memory and MFU. The first two steps warm up."""
    from xwin.recipe._machines import named

    rate = sum(clock.counts[2:]) / (clock.ends[-1] - clock.ends[1])
    a_token = flops(steps, config, tune) / sum(len(row) for step in steps for row in step)
    more = {"mfu": a_token * rate / named(device_name(), 1).bf16, "steps": len(clock.ends)}
    return Measured(rate, torch.cuda.max_memory_allocated() / 1e6, more)


def side(shape: str, tune: str, who: str, *, quick: bool) -> dict[str, Any]:
    """One run, in this process."""
    count = 5 if quick else 20
    try:
        return asdict(ours(shape, tune, count) if who == "ours" else trl(shape, tune, count, who))
    except torch.cuda.OutOfMemoryError:
        return {"failed": "out of memory"}


def apart(shape: str, tune: str, who: str, *, quick: bool) -> dict[str, Any]:
    """The same in a process of its own."""
    asked = ["--shape", shape, "--tune", tune, "--side", who, *(["--quick"] if quick else [])]
    done = subprocess.run([sys.executable, "-m", "benchmarks.gpu", *asked], stdout=subprocess.PIPE, text=True, check=False)
    found = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {"failed": f"exit {done.returncode}"}
    print(f"gpu {shape} {tune} {who}: {found.get('failed') or format(found['rate'], '.0f')}", file=sys.stderr)
    return found


def compared(shape: str, tune: str, *, quick: bool) -> dict[str, Any]:
    """Ours, the faster form of the peer, and their ratios."""
    mine = apart(shape, tune, "ours", quick=quick)
    peers = {who: apart(shape, tune, who, quick=quick) for who in SIDES[1:]} if util.find_spec("trl") else {}
    found = {who: peer for who, peer in peers.items() if "rate" in peer}
    best = max(found, key=lambda who: found[who]["rate"], default=None)
    result = {"shape": shape, "tune": tune, "ours": mine, "peer": {"name": best, **found[best]} if best else None, "others": peers}
    both = best is not None and "rate" in mine
    ratios = [mine[key] / found[best][key] if both else None for key in ("rate", "peak_mb")]  # type: ignore[index]
    return result | dict(zip(("ratio", "memory_ratio"), ratios, strict=True))


def main() -> None:
    """See the docstring of this module."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else on stdout")
    parser.add_argument("--quick", action="store_true", help="a few steps of each: to see that it runs")
    parser.add_argument("--shape", choices=list(SHAPES), help="only this one")
    parser.add_argument("--tune", choices=TUNES, help="only this one")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    device = device_name()
    if asked.side:
        print(json.dumps(side(asked.shape, asked.tune, asked.side, quick=asked.quick)))
        return
    shapes, tunes = [asked.shape] if asked.shape else list(SHAPES), [asked.tune] if asked.tune else list(TUNES)
    packages = [name for name in ("xwin-lm", "trl", "transformers", "torch") if name == "xwin-lm" or util.find_spec(name)]
    versions = {name: metadata.version(name) for name in packages}
    runs = [compared(shape, tune, quick=asked.quick) for shape in shapes for tune in tunes]
    result = {"name": "gpu", "device": device, "unit": "tokens/s", "versions": versions, "runs": runs}
    print(json.dumps(result, indent=None if asked.json else 2))


if __name__ == "__main__":
    main()
