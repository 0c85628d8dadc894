"""Judge: a stage for tests of the recipe engine, with two outputs."""

from collections.abc import Mapping
from typing import ClassVar

from xwin.stages.base import Artifact, Conversations, NetworkRef, PreferencesRef, RewardModel, Stage


class Judge(Stage):
    """Makes a reward model and a list of what it was unsure about."""

    init: NetworkRef
    """The network to start from."""
    data: PreferencesRef
    """Pairs."""

    makes: ClassVar[Mapping[str, type[Artifact]]] = {"final": RewardModel, "unsure": Conversations}

    def run(self, ctx) -> None:
        ctx.out("final").mkdir(exist_ok=True)
        (ctx.out("final") / "weights.txt").write_text("judge")
        ctx.out("unsure").write_text("")
