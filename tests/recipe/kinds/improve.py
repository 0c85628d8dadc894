"""Improve: a stage for tests of the recipe engine, with a kind and a reference inside nested settings."""

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar

from annotated_types import Ge

from xwin.objectives.base import Objective
from xwin.objectives.ppo import Ppo
from xwin.run.artifacts import Artifact, ConversationsRef, Model, ModelRef, RewardModelRef
from xwin.run.events import Event
from xwin.spec import Spec
from xwin.stages.base import Stage

COLUMNS = frozenset({"old_logp", "advantage"})


class Critic(Spec):
    """The value model."""

    init: RewardModelRef
    """The network to start from."""


class Improve(Stage):
    """Reinforcement, in name."""

    policy: ModelRef
    """The model to improve."""
    scorer: RewardModelRef
    """Who judges."""
    prompts: ConversationsRef
    """What to answer."""
    critic: Critic | None = None
    """The value model; null = none."""
    objective: Objective = Ppo(clip=0.3)
    """What a step makes smaller."""
    steps: Annotated[int, Ge(1)] = 10
    """Optimizer steps."""

    makes: ClassVar[Mapping[str, type[Artifact]]] = {"final": Model}

    def check(self) -> Sequence[tuple[str, str, str]]:
        if self.objective.needs <= COLUMNS:
            return ()
        return [("objective", f"'{self.objective.kind}' needs a column that nothing makes", "choose another objective")]

    def run(self, ctx) -> None:
        ctx.stop.obey()
        folder = ctx.out("final")
        folder.mkdir()
        (folder / "weights.txt").write_text(f"{self.objective}")
        ctx.directory.events.write_text(Event(0.0, ctx.name, 1, "reward", 1.0).to_json() + "\n")
