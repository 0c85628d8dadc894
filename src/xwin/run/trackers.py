"""Trackers: where else a run's numbers go, TensorBoard or Weights & Biases. They may fail as they like: see run/following.py.

A tracker keeps its files in `trackers/<kind>/` of the run directory. Each stage is a curve of its own there, named by the stage and its
fingerprint: a stage with other settings is another curve.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, Self, TypeAlias

from annotated_types import MinLen
from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from xwin.spec import Spec


@dataclass(frozen=True, slots=True)
class Subject:
    """The stage that a sink is told about.  Example: Subject(Path("runs/tiny-s0/trackers/wandb"), "tiny-s0", "9f21", "sft", "1f09c2ab", {...})"""

    folder: Path
    """Where the tracker keeps its files; exists."""
    run: str
    """Name of the run directory."""
    identity: str
    """Of the run directory, as no other has it."""
    stage: str
    fingerprint: str
    """8 hex digits."""
    settings: Mapping[str, Any]
    """Of the stage, as JSON."""

    @property
    def name(self) -> str:
        """The stage and its fingerprint.  Example: "sft-1f09c2ab" """
        return f"{self.stage}-{self.fingerprint}"


class Sink(Protocol):
    """What takes the numbers of one stage. It may raise anything."""

    def tell(self, step: int, time: float, values: Mapping[str, float]) -> None:
        """The numbers of one step; unix seconds. Steps come in order, none twice."""
        ...

    def close(self) -> None:
        """The stage is over, or the run stops."""
        ...


class Tensorboard(Spec):
    """Curves for TensorBoard: `tensorboard --logdir runs/tiny-s0/trackers`."""

    kind: Literal["tensorboard"] = "tensorboard"

    @model_validator(mode="after")
    def _is_installed(self) -> Self:
        return _require(self, "tensorboard")

    def open(self, subject: Subject) -> Sink:
        """The sink of a stage."""
        from xwin.run._tensorboard import TensorboardSink

        return TensorboardSink(subject)


class Wandb(Spec):
    """Curves for Weights & Biases, a run for each stage, together in one group."""

    kind: Literal["wandb"] = "wandb"

    project: Annotated[str, MinLen(1)] = "xwin"
    """Name of the project."""

    mode: Literal["offline", "online"] = "offline"
    """offline leaves everything in the run directory, for `wandb sync` later; online sends it at once, with the key in WANDB_API_KEY."""

    @model_validator(mode="after")
    def _is_installed(self) -> Self:
        return _require(self, "wandb")

    def open(self, subject: Subject) -> Sink:
        """The sink of a stage."""
        from xwin.run._wandb import WandbSink

        return WandbSink(subject, self.project, self.mode)


Tracker: TypeAlias = Annotated[Tensorboard | Wandb, Field(discriminator="kind")]


def _require(tracker: Any, package: str) -> Any:
    """The tracker, if the package it needs is there. Its extra has the same name."""
    if importlib.util.find_spec(package) is None:
        fix = {"package": package, "near": f"pip install 'xwin-lm[{package}]'"}
        raise PydanticCustomError("missing_extra", "the package '{package}' is not installed", fix)
    return tracker
