"""Resolved: what a reference of a recipe turned out to be. The plan resolves it, the Context of a stage opens it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from xwin.models.hub import ModelSource
from xwin.run.artifacts import Artifact, Network, Report


@dataclass(frozen=True, slots=True)
class Resolved:
    """What one reference points at.

    Example: Resolved("sft", Path("runs/tiny-s0/stages/sft/final"), Model, "vicuna", "float32", None, "stage:1c0e.../final")
    """

    ref: str
    """As written in the recipe: a stage, `stage/output`, an entry of `models:`, a path, or a model elsewhere."""
    path: Path | None
    """The file or folder; None when it is not made or not fetched yet."""
    artifact: type[Artifact]
    template: str
    """Of a Network: the name of its chat template, inherited along `init` unless a stage taught it another. Empty for data."""
    dtype: str
    """Of a Network: "float32" or "bfloat16", inherited along `init` from the entry of `models:` it started from. Empty for data."""
    source: ModelSource | None
    """Where a model that no stage makes comes from; None otherwise."""
    digest: str
    """What it holds, as text that is equal for equal content."""


def filename(output: str, artifact: type[Artifact]) -> str:
    """Where an output lies in the directory of its stage: `final` (a folder), `train.jsonl`, `table.json`."""
    if issubclass(artifact, Network):
        return output
    return f"{output}.json" if issubclass(artifact, Report) else f"{output}.jsonl"


def filenames(makes: Mapping[str, type[Artifact]]) -> dict[str, str]:
    """Output name -> file or folder name, in order."""
    return {name: filename(name, artifact) for name, artifact in makes.items()}
