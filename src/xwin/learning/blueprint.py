"""Blueprint: how a learner is made, in this process or on each of several workers."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from xwin.distributed.world import World
from xwin.learning.learner import Learner
from xwin.learning.optim import Optim
from xwin.models import causal
from xwin.models.causal import Head
from xwin.models.recompute import recompute
from xwin.models.tuning import Frozen, Full, LastLayers, LoRA
from xwin.objectives.base import Objective


@dataclass(frozen=True)
class Blueprint:
    """Everything a learner is made of, apart from where it computes.

    Args:
        folder: Hugging Face folder of the model.
        head: what it says.
        dtype: "float32" or "bfloat16", the type of matrix products.
        tune: what is trained.
        objective: None = frozen.
        optim: how parameters move.
        total: optimizer steps of the schedule.
        heads: of a new reward model.
        seed: of new adapters.
        head_seed: of a new head.
        again: whether the backward pass computes again what a layer computed; see `Training.recompute`.
    """

    folder: Path
    head: Head
    dtype: str
    tune: Full | LoRA | LastLayers | Frozen = field(default_factory=Frozen)
    objective: Objective | None = None
    optim: Optim = field(default_factory=Optim)
    total: int = 1
    heads: int = 1
    seed: int = 0
    head_seed: int = 0
    again: bool = False

    def build(self, world: World) -> Learner:
        """The learner. On several workers each builds all of it, and keeps its part.

        Raises:
            ModelError: the folder cannot be loaded.
        """
        world.seed(self.seed)
        model = causal.load(self.folder, head=self.head, tuning=self.tune, dtype=self.dtype, head_seed=self.head_seed, heads=self.heads)
        if self.again:
            recompute(model.network)
        return Learner(model, self.folder, world, self.objective, self.optim, self.total)
