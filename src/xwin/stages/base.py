"""Stage: a verb of a recipe. Its fields say what it takes, `makes` says what it gives, `run` does it, knowing nothing of ranks or files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from xwin.run.artifacts import Artifact
from xwin.spec import Kind

if TYPE_CHECKING:
    from xwin.stages._context import Context
    from xwin.stages._work import Amount, Phase


class Stage(Kind):
    """Settings and behaviour of one stage. Each file in this folder is one."""

    package: ClassVar[str] = "xwin.stages"
    makes: ClassVar[Mapping[str, type[Artifact]]]
    """Output name -> what it is. The first is what the bare stage name refers to. A model is the folder `<name>/`, data is `<name>.jsonl`,
    a report is `<name>.json`, in the stage's directory."""

    def run(self, ctx: Context) -> None:
        """Does the work and leaves every output of `makes` in `ctx.out(name)`."""
        raise NotImplementedError

    def summary(self) -> str:
        """What the stage will do, in a few words, for the plan."""
        return ""

    def work(self) -> Sequence[Phase]:
        """The networks it holds and what goes through them, part after part, for the estimate in the plan; () = it needs no network."""
        return ()

    def gives(self, output: str, amount: Callable[[str], Amount | None]) -> Amount | None:
        """How much data an output will hold, at most, as far as it can be said before the stage has run.

        Args:
            output: a name of `makes`.
            amount: says the same of a reference.
        """
        return None

    def check(self) -> Sequence[tuple[str, str, str]]:
        """Mistakes that no single field can see: (field, what is wrong, fix) each."""
        return ()

    def require(self) -> None:
        """Sees to it, before any stage runs, that this machine can do what the settings ask for.

        Raises:
            UserError: it cannot: an optional package or a device is missing.
        """
