"""Judge: a stage for tests of the recipe engine, with two outputs."""

from collections.abc import Mapping
from typing import ClassVar

from xwin.run.artifacts import Artifact, Conversations, NetworkRef, PreferencesRef, RewardModel
from xwin.stages.base import Stage


class Judge(Stage):
    """Makes a reward model and a list of what it was unsure about."""

    init: NetworkRef
    """The network to start from."""
    data: PreferencesRef
    """Pairs."""

    makes: ClassVar[Mapping[str, type[Artifact]]] = {"final": RewardModel, "unsure": Conversations}

    def run(self, ctx) -> None:
        folder = ctx.out("final")
        folder.mkdir()
        (folder / "weights.txt").write_text(ctx.path(self.init).joinpath("weights.txt").read_text())
        ctx.out("unsure").write_text("")
