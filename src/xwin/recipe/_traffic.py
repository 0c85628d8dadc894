"""What n GPUs say to each other in a step, and when that takes longer than the work: arithmetic for docs/scaling.md.

For one batch FSDP2 gathers every parameter before the forward pass and those of the layers once more before the backward pass, and sums every
trained parameter's gradient; each of the three moves (n - 1) / n of its bytes into every GPU (ZeRO stage 3: Rajbhandari et al. 2019,
arXiv:1910.02054, section 7). Layers hold M parameters, sent in 2 bytes where they compute in bfloat16; the rest, R, in 4, gradients in 4:

    trained    2 M + 4 R  forward    2 M  backward    4 P'  gradients         together about 8 P where all is trained
    read       2 M + 4 R

A batch of T tokens takes 6 P T / rate to compute and 8 P / bandwidth to talk about. P cancels: below T = 8 rate / (6 bandwidth) tokens a batch
on each GPU a step waits for the network, whatever the size of the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil

from xwin.recipe._machines import Machine
from xwin.recipe.estimate import Held, Load, cache, time

NODE = 8
"""GPUs of a machine, all connected by NVLink."""

INSIDE = 450e9
"""Bytes a second into a GPU from those of its machine: half of NVLink's 900 GB/s, which count both directions (data sheet of the H100 SXM)."""

BETWEEN = 50e9
"""Bytes a second into a machine for each of its GPUs: one adapter of 400 Gbit/s each (data sheet of the DGX H100)."""

REACHED = 0.8
"""Share of these that collectives are assumed to reach."""


@dataclass(frozen=True, slots=True)
class Step:
    """One optimizer step, or one round of reinforcement learning, in seconds."""

    computing: float
    talking: float
    writing: float = 0.0
    """Answers, and handing the weights to those who write them."""

    @property
    def seconds(self) -> float:
        """Talking goes on beside computing, the longer of the two counts; nobody learns while answers are written."""
        return max(self.computing, self.talking) + self.writing


def bandwidth(count: int, adapters: int = NODE) -> float:
    """Bytes a second at which a GPU of `count` takes part in a collective: of the slowest link of the ring, all adapters of a machine together.

    Args:
        count: GPUs.
        adapters: of a machine, 400 Gbit/s each.
    """
    return REACHED * (INSIDE if count <= NODE else min(INSIDE, adapters * BETWEEN))


def moved(network: Held, batches: int, read: int, count: int) -> float:
    """Bytes that come into each of `count` GPUs.

    Args:
        network: one of those held.
        batches: that each GPU goes through with a gradient.
        read: that it goes through without.
        count: GPUs.
    """
    shape, b = network.shape, 2 if network.rounds else 4
    gathered = b * shape.matrices + 4 * (shape.parameters - shape.matrices)
    trained = gathered + b * shape.matrices + 4 * network.trained
    return (batches * trained + read * gathered) * (count - 1) / count


def step(held: Sequence[Held], load: Load, machine: Machine) -> Step:
    """One step of SFT, or one round of PPO, over all GPUs of a machine.

    Args:
        held: the networks.
        load: all tokens of the step or round; `load.batch` is the longest batch of a GPU.
        machine: the GPUs.
    """
    n = machine.count
    share = load.tokens / n
    trained = int(load.steps) * ceil(share / load.steps / load.batch)
    read = ceil(share / load.batch)
    talking = sum(moved(network, trained if network.use.trained else 0, read * network.use.read, n) for network in held) / bandwidth(n)
    learners = [network for network in held if network.use.role != "engine"]
    engines = [network for network in held if network.use.role == "engine"]
    writing = sum(written(network, load, machine) + 4 * network.shape.parameters / bandwidth(n) for network in engines)
    return Step(time(learners, load, machine), talking, writing)


def written(engine: Held, load: Load, machine: Machine) -> float:
    """Seconds in which as many engines as there are GPUs, each with the whole network, write the answers of a round.

    However many there are, the longest answer is written one token after the other, and every token waits until all weights were read once.
    """
    assert load.answers is not None
    shape, data = engine.shape, load.answers
    rows = max(1, min(data.rows, ceil(load.passes * data.n / machine.count)))
    series = ceil(load.passes * data.n / machine.count / rows)
    held = replace(load, answers=replace(data, rows=max(rows, 4)))
    traffic = 2 * shape.matrices + 4 * shape.embedding + cache(shape, held, engine.dtype) / 2
    products = 2 * shape.matrices * rows / (machine.bf16 * machine.share)
    return series * data.longest * max(traffic / machine.bandwidth, products)
