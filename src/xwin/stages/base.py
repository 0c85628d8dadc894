"""Stage: a verb of a recipe. Its fields say what it takes, `makes` says what it gives, `run` does it, knowing nothing of ranks or files.

A field annotated with `Wants` is an edge of the plan: its value names a stage, an output of a stage (`stage/output`), an entry of
`models:`, a file or folder (`./x`), or a model elsewhere (`hf:org/name`, `pypi:name==version`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, TypeAlias

from xwin.spec import Kind

if TYPE_CHECKING:
    from xwin.stages._context import Context


class Artifact:
    """What a stage leaves behind: a folder or a file in its directory."""


class Network(Artifact):
    """A Hugging Face folder with weights: a Model or a RewardModel."""


class Model(Network):
    """A Hugging Face folder of a causal language model."""


class RewardModel(Network):
    """A Hugging Face folder of a sequence classifier with one label."""


class Conversations(Artifact):
    """A JSONL file of conversations or prompts."""


class Preferences(Artifact):
    """A JSONL file of preferences."""


class Report(Artifact):
    """`table.json`: rows of model, metric, value, low, high, n."""


@dataclass(frozen=True, slots=True)
class Wants:
    """What a reference must point at.  Example: Annotated[str, Wants(Model)]"""

    artifact: type[Artifact]


ModelRef: TypeAlias = Annotated[str, Wants(Model)]
RewardModelRef: TypeAlias = Annotated[str, Wants(RewardModel)]
NetworkRef: TypeAlias = Annotated[str, Wants(Network)]
"""A policy or a reward model: both have weights to start from."""
ConversationsRef: TypeAlias = Annotated[str, Wants(Conversations)]
PreferencesRef: TypeAlias = Annotated[str, Wants(Preferences)]


class Stage(Kind):
    """Settings and behaviour of one stage. Each file in this folder is one."""

    package: ClassVar[str] = "xwin.stages"
    makes: ClassVar[Mapping[str, type[Artifact]]]
    """Output name -> what it is. The first is what the bare stage name refers to. A model is the folder `<name>/`, data is `<name>.jsonl`,
    a report is `<name>.json`, in the stage's directory."""

    def run(self, ctx: Context) -> None:
        """Does the work and leaves every output of `makes` in `ctx.out(name)`."""
        raise NotImplementedError
