"""What one process and two must do alike: models, objectives, rows, and one short training of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xwin.data.batch import Batch, Sample, pack
from xwin.distributed.deal import deal
from xwin.distributed.shard import full
from xwin.distributed.world import World
from xwin.learning.learner import Learner
from xwin.learning.optim import Optim
from xwin.models import causal
from xwin.models.recompute import recompute
from xwin.models.tuning import Frozen, Full, LastLayers, LoRA
from xwin.objectives.base import Objective
from xwin.objectives.bradley_terry import BradleyTerry
from xwin.objectives.dpo import Dpo
from xwin.objectives.ppo import Ppo
from xwin.objectives.sft import Sft
from xwin.objectives.value import Value
from xwin.run.events import Measure

LENGTHS = (1, 40, 3, 7, 25, 2, 11, 5)
"""Of the answers, tokens; a pair each two."""
HELD = Optim(lr=1e-3, schedule="constant", warmup=0, max_norm=1e9)
CLIPPED = HELD.model_copy(update={"max_norm": 0.05})


@dataclass(frozen=True)
class Case:
    """A model and how it is trained."""

    objective: Objective
    head: str = "language"
    tune: Any = field(default_factory=Full)
    dtype: str = "float32"
    tied: bool = True
    optim: Optim = HELD
    again: bool = False
    """Whether layers are computed again in the backward pass."""

    def learner(self, folder: Path, world: World) -> Learner:
        """On this worker. `folder` holds the models `tied` and `untied`."""
        where = folder / ("tied" if self.tied else "untied")
        world.seed(3, "init")
        model = causal.load(where, head=self.head, tuning=self.tune, dtype=self.dtype, head_seed=1)  # type: ignore[arg-type]
        random = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for name, p in model.named_parameters():
                if ".lora_B" in name:  # zero when new, and then lora_A has no gradient
                    p.copy_(torch.randn(p.shape, generator=random) * 0.05)
        if self.again:
            recompute(model.network)
        return Learner(model, where, world, None if isinstance(self.tune, Frozen) else self.objective, self.optim, 8)


CASES: Mapping[str, Case] = {
    "sft": Case(Sft()),
    "sft, untied": Case(Sft(), tied=False),
    "sft, layers computed again": Case(Sft(), again=True),
    "sft, gradient clipped": Case(Sft(), optim=CLIPPED),
    "sft, last layer": Case(Sft(), tune=LastLayers(layers=1)),
    "bradley_terry": Case(BradleyTerry(), "score"),
    "dpo": Case(Dpo()),
    "ppo": Case(Ppo()),
    "value": Case(Value(), "value"),
    "sft, lora": Case(Sft(), tune=LoRA(rank=4)),
    "bradley_terry, lora": Case(BradleyTerry(), "score", tune=LoRA(rank=3)),
    "sft, bf16": Case(Sft(), dtype="bfloat16"),
    "ppo, lora, bf16": Case(Ppo(), tune=LoRA(rank=4), dtype="bfloat16"),
}


def rows(objective: Objective) -> list[Sample]:
    """Bonded pairs of very different length over two prompts, with every column the objective needs."""
    random = torch.Generator().manual_seed(0)
    out = []
    for k, length in enumerate(LENGTHS):
        answer = tuple(torch.randint(3, 259, (length,), generator=random).tolist())
        columns: dict[str, Any] = {}
        for name in sorted(objective.needs):
            noise = torch.randn(21 + length, generator=random) * 0.3 - 5.5 * name.endswith("logp")
            columns[name] = 0.0 if name == "margin" else tuple(noise.tolist())
        out.append(Sample(f"s{k}", (*range(70, 90), 100 + k // 4, *answer), (False,) * 21 + (True,) * length, columns, bond=f"p{k // 2}"))
    return out


def steps(samples: Sequence[Sample]) -> list[list[Batch]]:
    """The batches of three steps: shares that are uneven, one of nothing at all, and many."""
    return [
        [*pack(samples[:2], tokens=400), *pack(samples[2:6], tokens=400, share=True), *pack(samples[6:], tokens=400)],
        pack(samples[2:4], tokens=400),
        [batch for k in range(0, 8, 2) for batch in pack(samples[k : k + 2], tokens=400)],
    ]


def share(batches: Sequence[Batch], world: World) -> list[Batch]:
    """This worker's part of them."""
    return list(deal(batches, world.size).shares[world.rank])


def gradient(learner: Learner, batches: Sequence[Batch]) -> tuple[dict[str, Tensor], dict[str, Measure]]:
    """What the optimizer sees in one step, whole, and what the step says."""
    seen: dict[str, Tensor] = {}
    assert learner.optimizer is not None

    def look(*_: Any) -> None:
        seen.update({name: full(p.grad.clone()) for name, p in learner.model.named_parameters() if p.grad is not None})

    handle = learner.optimizer.register_step_pre_hook(look)
    metrics = learner.step(share(batches, learner.world))
    handle.remove()
    return seen, metrics


def whole(learner: Learner) -> dict[str, Tensor]:
    """Trained parameters and moments by name, all of each."""
    state = learner.state()
    moments = {f"{name} {key}": x for name, found in state["moments"].items() for key, x in found.items()}
    return {name: full(x).clone() for name, x in (state["parameters"] | moments).items()}


def trained(case: Case, folder: Path, world: World) -> dict[str, Any]:
    """Three steps of SGD: the first gradient, what each step says, where the parameters end."""
    learner = case.learner(folder, world)
    learner.optimizer = torch.optim.SGD([p for p in learner.model.parameters() if p.requires_grad], lr=1.0)
    slopes, said = {}, []
    for batches in steps(rows(case.objective)):
        slope, metrics = gradient(learner, batches)
        slopes = slopes or slope
        said.append(metrics)
    kinds = {full(p).dtype for p in learner.model.parameters() if p.requires_grad}
    return {"gradient": slopes, "said": said, "ends": learner.weights().tensors, "dtypes": kinds | {g.dtype for g in slopes.values()}}
