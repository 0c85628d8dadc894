"""Tune: a stage for tests of the recipe engine. Its model is a folder with one text file."""

from collections.abc import Mapping
from typing import Annotated, ClassVar

from annotated_types import Ge, Gt

from xwin.run.artifacts import Artifact, ConversationsRef, Model, NetworkRef
from xwin.spec import Spec
from xwin.stages.base import Stage


class Speed(Spec):
    """How fast."""

    lr: Annotated[float, Gt(0)] = 1e-5
    """Learning rate, unitless."""
    warmup: Annotated[float, Ge(0)] = 0.1
    """Share of the steps."""


class Tune(Stage):
    """Writes down what it was given."""

    init: NetworkRef
    """The network to start from."""
    data: ConversationsRef | tuple[ConversationsRef, ...]
    """Rows to learn from."""
    epochs: Annotated[int, Ge(1)] = 2
    """Passes over the rows."""
    template: str = "vicuna"
    """Chat template that is learned."""
    speed: Speed = Speed(lr=2e-5, warmup=0.0)
    """How fast."""

    makes: ClassVar[Mapping[str, type[Artifact]]] = {"final": Model}

    def summary(self) -> str:
        return f"{self.epochs} epochs"

    def run(self, ctx) -> None:
        folder = ctx.out("final")
        folder.mkdir()
        (folder / "weights.txt").write_text(f"{self.epochs} {self.speed.lr} {ctx.path(self.init).name}")
        ctx.metrics["loss"] = 1.0 / self.epochs
