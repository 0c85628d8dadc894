"""The tables of docs/scaling.md: what 7B, 13B and 70B models need on H100s, as recipe/estimate.py computes it.

Write them anew with  python -m xwin.recipe.scaling docs/scaling.md
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from xwin.models._llama import LlamaShape
from xwin.models.tuning import Full, LoRA
from xwin.recipe._machines import GIB, Machine, named
from xwin.recipe._needs import short
from xwin.recipe._networks import NetworkShape
from xwin.recipe._traffic import Step, step
from xwin.recipe.estimate import Held, Load, fits, memory, time
from xwin.stages._work import Amount, Answers, Use

SHAPES = {
    "7B": LlamaShape(32, 4096, 11008, 32, 32, 128, 32000, 4096, 1e4, 1e-5),
    "13B": LlamaShape(40, 5120, 13824, 40, 40, 128, 32000, 4096, 1e4, 1e-5),
    "70B": LlamaShape(80, 8192, 28672, 64, 8, 128, 32000, 4096, 1e4, 1e-5),
}
"""Of Llama 2 (arXiv:2307.09288)."""

COUNTS = (1, 8, 64)
BATCH = 2048
"""Tokens of a batch on each GPU."""

SMALLEST, LARGEST = 256, 32768
"""Tokens; batches that are tried."""

CLUSTERS = (8, 64, 512)
"""GPUs of the table of clusters."""

STEP = 2**18
"""Tokens of an optimizer step of SFT there."""

BEGIN, END = "<!-- written by python -m xwin.recipe.scaling -->\n", "<!-- end -->\n"


def tables() -> str:
    """All tables as Markdown."""
    return f"{_memory_table()}\n{_speed_table()}\n{_cluster_table()}"


def held(name: str, shape: LlamaShape) -> list[Held]:
    """The networks of a method: "SFT, full", "SFT, LoRA" or "PPO, four models"."""
    network, judge = NetworkShape(shape, tied=False), NetworkShape(shape, tied=False, writes=False)
    policy = Use("policy", "", tune=LoRA() if "LoRA" in name else Full(), trained=1, read=int("PPO" in name))
    found = [Held(policy, network, "bfloat16")]
    if "PPO" in name:
        found.append(Held(Use("critic", "", "value", tune=Full(), trained=1, read=1), judge, "bfloat16"))
        found.append(Held(Use("reference", "", read=1), network, "bfloat16"))
        found.append(Held(Use("scorer", "", "score", read=1), judge, "bfloat16"))
        found.append(Held(Use("engine", ""), network, "bfloat16"))
    return found


def load(name: str, batch: int) -> Load:
    """What goes through them: conversations of 512 tokens, half of them trained; or 64 x 8 prompts of 256 tokens, 4 answers of 512 to each."""
    if "PPO" not in name:
        return Load(Amount(1e4, 256, 256), 1.0, batch, 1, 0)
    answers = Answers("", 4, 512, 96, 512, asked=512, steps=4)
    return Load(Amount(512, 256, 2048, 4, 256), 512, batch, 2, 4, answers)


METHODS = ("SFT, full", "SFT, LoRA", "PPO, four models")


def _memory_table() -> str:
    lines = ["| model | method | " + " | ".join(f"{n} GPU{'s' * (n > 1)}" for n in COUNTS) + " |", "|---|---|" + "---|" * len(COUNTS)]
    for model, shape in SHAPES.items():
        for name in METHODS:
            cells = [_cell(name, shape, named("h100", n)) for n in COUNTS]
            lines.append(f"| {model} | {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(name: str, shape: LlamaShape, machine: Machine) -> str:
    """GiB of a GPU at BATCH tokens, and the largest batch that fits."""
    networks = held(name, shape)
    needed = memory(networks, load(name, BATCH), machine)
    largest = _largest(networks, load(name, BATCH), machine)
    told = f"up to {largest} tokens" if largest else "does not fit"
    return f"{needed.peak / GIB:.0f} GiB, {told}"


def _largest(networks: Sequence[Held], each: Load, machine: Machine) -> int:
    """Tokens of the largest batch that fits, a power of two; 0 = none."""
    sizes = [SMALLEST * 2**i for i in range((LARGEST // SMALLEST).bit_length())]
    return max((size for size in sizes if fits(memory(networks, replace(each, batch=size), machine), machine)), default=0)


def _speed_table() -> str:
    machine = named("h100", 1)
    lines = ["| model | parameters | trained by LoRA | SFT, full: tokens/s a GPU | SFT, LoRA: tokens/s a GPU |", "|---|---|---|---|---|"]
    for model, shape in SHAPES.items():
        full, lora = held("SFT, full", shape), held("SFT, LoRA", shape)
        each = load("SFT, full", BATCH)
        speeds = [f"{each.tokens / time(networks, each, machine):.0f}" for networks in (full, lora)]
        lines.append(f"| {model} | {short(full[0].shape.parameters)} | {short(lora[0].trained)} | {' | '.join(speeds)} |")
    return "\n".join(lines) + "\n"


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell of the table of clusters."""

    model: str
    method: str
    count: int
    """GPUs."""
    load: Load
    step: Step
    fits: bool
    """Whether it does in memory."""

    def text(self) -> str:
        """As the table has it."""
        if not self.fits:
            return "does not fit"
        parts = f"{self.step.computing:.3g} s computing, {self.step.talking:.3g} s talking"
        writing = f", {self.step.writing:.3g} s writing" if self.step.writing else ""
        batches = f", batches of {self.load.batch:.0f}" if self.load.batch < BATCH else ""
        return f"{self.load.tokens / self.step.seconds:,.0f} tokens/s: {parts}{writing}{batches}"


def cell(model: str, method: str, count: int) -> Cell:
    """One step of SFT of STEP tokens, or one round of PPO, on H100s. Every GPU holds a whole engine, as engines/_replicas.py has it."""
    networks, machine, whole = held(method, SHAPES[model]), named("h100", count), load(method, BATCH)
    if whole.answers is None:
        whole = replace(whole, passes=STEP / (whole.amount.prompt + whole.amount.answer), steps=1)
    engines = sum(2.0 * network.shape.matrices + 4.0 * network.shape.embedding for network in networks if network.use.role == "engine")
    largest = _largest(networks, whole, replace(machine, memory=machine.memory - engines * (1 - 1 / count)))
    whole = replace(whole, batch=min(BATCH, largest) or SMALLEST)
    return Cell(model, method, count, whole, step(networks, whole, machine), largest > 0)


CLUSTERED = ("SFT, full", "PPO, four models")


def _cluster_table() -> str:
    lines = ["| model | method | " + " | ".join(f"{n} GPUs" for n in CLUSTERS) + " |", "|---|---|" + "---|" * len(CLUSTERS)]
    for model in SHAPES:
        for method in CLUSTERED:
            lines.append(f"| {model} | {method} | " + " | ".join(cell(model, method, n).text() for n in CLUSTERS) + " |")
    return "\n".join(lines) + "\n"


def put_into(text: str) -> str:
    """The page with its tables written anew."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + "\n" + tables() + "\n" + END + rest.split(END)[1]


if __name__ == "__main__":
    page = Path(sys.argv[1])
    page.write_text(put_into(page.read_text(encoding="utf-8")), encoding="utf-8")
