"""What to lower where a stage does not fit a machine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from xwin.recipe._machines import Machine
from xwin.recipe.estimate import Held, Load, fits, memory

SHORT = 256
"""Tokens; shorter batches hold too little to be worth a step."""

MOST_GPUS = 1024
GIB = 2.0**30


def lower(held: Sequence[Held], load: Load, machine: Machine) -> str:
    """What makes a phase fit: the first that does of smaller batches, adapters, fewer rows of an engine, more GPUs."""
    for text, networks, changed, bigger in _choices(held, load, machine):
        if fits(memory(networks, changed, bigger), bigger):
            return text
    return "no setting makes it fit: take a smaller model, or name larger machines with --gpu and --count"


def _choices(held: Sequence[Held], load: Load, machine: Machine) -> Iterator[tuple[str, Sequence[Held], Load, Machine]]:
    from xwin.models.tuning import LoRA  # the stage has brought torch here already

    def batch(size: float) -> Load:
        return replace(load, batch=size, batches=max(load.batches, 2))

    sizes = [SHORT * 2**i for i in reversed(range(8)) if SHORT * 2**i < load.batch]
    yield from ((f"tokens_per_batch: {size}", held, batch(size), machine) for size in sizes)
    if any(network.trains_head for network in held):
        adapted = [replace(h, use=replace(h.use, tune=LoRA())) if h.use.tune is not None else h for h in held]
        yield "tune: {kind: lora}", adapted, load, machine
        yield from ((f"tune: {{kind: lora}} and tokens_per_batch: {size}", adapted, batch(size), machine) for size in sizes)
    if load.answers is not None and load.answers.rows and not load.answers.cache:
        rows = max(4, load.answers.n)
        yield f"engine: {{kind: local, rows: {rows}}}", held, replace(load, answers=replace(load.answers, rows=rows)), machine
    if load.answers is not None and load.answers.cache > GIB:
        yield "engine: {kind: vllm, cache_gb: 1}", held, replace(load, answers=replace(load.answers, cache=GIB)), machine
    counts = [machine.count * 2**i for i in range(1, 11) if machine.count * 2**i <= MOST_GPUS and machine.gpu]
    yield from ((f"--count {n}", held, load, replace(machine, count=n)) for n in counts)
    yield from ((f"--count {n} and tokens_per_batch: {size}", held, batch(size), replace(machine, count=n)) for n in counts for size in sizes)
